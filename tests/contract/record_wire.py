"""Records a version of the wire: `python -m tests.contract.record_wire`.

It writes tests/contract/wire_v<WIRE_VERSION>/:

    openapi.json     the document: every route and every type
    samples.json     every type with every field filled
    exchanges.jsonl  what a real agent, a real pilot and the SDK asked a real hub, and what it answered

When: as long as a version was not released, whenever its types change on purpose. Before the first release
with a new WIRE_VERSION, once more, into a directory of its own. What a release has spoken is never
changed; the directory of the version before the last can go (promise I17: versions may differ by one).
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from chappe.hub.app import openapi_document
from chappe.testing.cluster import Cluster, until
from chappe.wire.events import WIRE_VERSION
from tests.contract.wire_types import filled, types

HERE = Path(__file__).parent
PATCH = """\
from pathlib import Path
from tests.contract import wire_tap
wire_tap.install(Path({path!r}))
"""


def use(cluster: Cluster) -> None:
    """What a user, an agent and a pilot say to a hub."""
    client = cluster.client
    site = cluster.site("paris", slots=4, keep=1)
    site.start()
    cluster.offers(site)
    first = cluster.submit(2, site, beats=1, tags={"study": "wire"}, priority=3)
    app = client.app("trace", site="paris")
    child = client.submit(app.options(parents=first)())
    with_result = client.submit(client.app("trace-result", site="paris")())
    cluster.wait([*first, child, with_result])
    with_result.result()
    held = client.submit(app.options(not_before=time.time() + 3_600, retries=1)())
    for ask in _questions(cluster, first[0].id):
        ask()
    held.cancel()
    held.retry()
    held.cancel()
    client.delete(tags={"study": "wire"})
    allocation = client.admin.new_batch_job(site.id)
    client.admin.cancel_batch_job(allocation.id)
    until(lambda: client.admin.batch_jobs(state="cancelled"), "the order was taken back")
    site.stop()


def _questions(cluster: Cluster, job: str) -> list[Callable[[], Any]]:
    client = cluster.client
    asked = client.job(job)
    return [
        lambda: list(client.views(tags={"study": "wire"})),
        lambda: list(client.events()),
        asked.why,
        client.counts,
        client.admin.sites,
        client.admin.sessions,
        client.admin.batch_jobs,
        client.admin.tokens,
    ]


def exchanges(directory: Path) -> list[dict[str, Any]]:
    """Use a hub, and return what passed."""
    tap, patch = directory / "tap.jsonl", directory / "patch"
    patch.mkdir()
    (patch / "sitecustomize.py").write_text(PATCH.format(path=str(tap)))
    search = os.pathsep.join((str(patch), str(HERE.parents[1])))
    with Cluster(directory / "cluster", environ={"PYTHONPATH": search}) as cluster:
        project = cluster.hub.project
        use(cluster)
    text = tap.read_text().replace(str(directory), "/somewhere")
    # As a whole word: a short name is found in signatures as well.
    text = re.sub(rf"\b{re.escape(socket.gethostname())}\b", "host.example", text)
    lines = list[dict[str, Any]](map(json.loads, text.splitlines()))
    told = dict[str, str]()
    news = [  # who waits for something asks the same again and again
        line
        for line in lines
        if line["method"] != "GET" or told.get(line["path"]) != line["reply"]
        for _ in [told.update({line["path"]: line["reply"]})]
    ]
    return [{"project": project}, *news]


def main() -> None:
    """Write the files of this version."""
    target = HERE / f"wire_v{WIRE_VERSION}"
    target.mkdir(exist_ok=True)
    document = openapi_document()
    document["info"]["version"] = f"wire {WIRE_VERSION}"
    samples = {name: json.loads(filled(kind)) for name, kind in sorted(types().items())}
    with tempfile.TemporaryDirectory() as directory:
        lines = exchanges(Path(directory).resolve())
    (target / "openapi.json").write_text(json.dumps(document) + "\n")
    (target / "samples.json").write_text(json.dumps(samples, indent=1) + "\n")
    (target / "exchanges.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    print(f"{target}: {len(samples)} types, {len(lines) - 1} exchanges", file=sys.stderr)


if __name__ == "__main__":
    main()
