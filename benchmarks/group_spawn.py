"""/bin/true end to end, beside a bare loop and HyperQueue in the same rounds."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

import chappe
from benchmarks import hq, launcher_micro
from benchmarks.bench import Bench
from benchmarks.contract import MS
from benchmarks.rig import HubProcess, hub
from benchmarks.site import SLOTS, Site, site


def run(bench: Bench) -> None:
    """Rounds of: bare loop, ours (lean), HyperQueue, ours (full)."""
    ours = ("true", "true.cpu", "hub_cpu", "true.of_bare", "true.of_hq", "true.cpu_over_bare")
    with ExitStack() as stack:
        stack.enter_context(bench.attempt(*ours, "true.full"))
        directory = stack.enter_context(bench.private("spawn"))
        running = stack.enter_context(hub(directory))
        client = stack.enter_context(running.client())
        the = stack.enter_context(site(running, directory / "site", client))
        _to_the_end(client, the, "lean", 500)
        _to_the_end(client, the, "full", 100)
        for n in range(bench.rounds):
            _round(bench, running, client, the, directory / f"round{n}")
        bench.note("true.hq", f"HyperQueue {hq.version()}")
        bench.note("true.full", "the result is written by dash, which is part of the job")


def _round(
    bench: Bench, running: HubProcess, client: chappe.Client, the: Site, directory: Path
) -> None:
    directory.mkdir()
    bare = launcher_micro.bare(bench.scaled(6_000, 2_000), SLOTS, directory)
    bare_cpu = bare.own_ms + bare.jobs_ms
    bench.add("true.bare", bare.per_s)
    bench.add("true.bare_cpu", bare_cpu)

    jobs = bench.scaled(10_000, 3_000)
    hub_cpu, site_cpu, own_cpu = running.cpu_s, the.cpu_s(), time.process_time()
    per_s = _to_the_end(client, the, "lean", jobs)
    own = (time.process_time() - own_cpu) / jobs * MS
    at_site = (the.cpu_s() - site_cpu) / jobs * MS
    at_hub = (running.cpu_s - hub_cpu) / jobs * MS
    bench.add("true", per_s)
    bench.add("true.of_bare", per_s / bare.per_s)
    bench.add("hub_cpu", at_hub)
    bench.add("true.cpu", own + at_site + at_hub)
    bench.add("true.cpu_over_bare", own + at_site + at_hub - bare_cpu)
    bench.note("true.cpu", f"hub {at_hub:.3f}, client {own:.3f}, the rest {at_site:.3f} ms")

    with bench.attempt("true.hq", "true.hq_cpu", "true.of_hq"):
        other = hq.measure(directory / "hq", bench.scaled(3_000, 1_000), SLOTS)
        bench.add("true.hq", other.per_s)
        bench.add("true.hq_cpu", other.cpu_ms)
        bench.add("true.of_hq", per_s / other.per_s)

    bench.add("true.full", _to_the_end(client, the, "full", bench.scaled(4_000, 1_000)))


def _to_the_end(client: chappe.Client, the: Site, app: str, jobs: int) -> float:
    """Jobs per second from the first draft until the last durable end is known here."""
    began = time.perf_counter()
    submitted = the.app(app).map([{}] * jobs)
    client.wait_all(submitted, timeout_s=300)
    per_s = jobs / (time.perf_counter() - began)
    failed = [job for job in submitted if not job.ok]
    assert not failed, f"{len(failed)} of {jobs} failed: {failed[0]} {failed[0].outcome}"
    return per_s
