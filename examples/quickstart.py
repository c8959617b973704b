"""Three greetings and one more after them, at the first of your sites: `python examples/quickstart.py`."""

import chappe

with chappe.Client() as client:
    site = client.sites()[0].name

    # An App of the site, called with its parameters, is the draft of a Job: it has its id already.
    hello = client.app("hello", site=site)
    greetings = [hello.options(name=f"hello {who}")(name=who) for who in ("Marie", "Claude", "Ada")]

    # So Jobs can wait for each other before anything is sent. All travel in one signed request.
    last = hello.options(name="hello all", parents=greetings)(name="everybody")
    jobs = client.submit([*greetings, last])

    for job in chappe.as_completed(jobs):  # no polling: the hub says when each has ended
        print(f"{job.name}: {job.state}")

    # Any command runs, too, at a site that trusts your key. A failure raises, with the end of stderr.
    client.run(site, ["sh", "-c", "uname -n > /dev/null"], cores=1, wall_s=60).result()
