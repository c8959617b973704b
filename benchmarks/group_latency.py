"""From submit() to a started process, one Job at a time, on a pilot that waits."""

from __future__ import annotations

import os
import random
import time
from contextlib import ExitStack

import chappe
from benchmarks.bench import Bench
from benchmarks.contract import MS
from benchmarks.figures import percentile
from benchmarks.rig import hub
from benchmarks.site import Site, site

_PAUSE_S = (0.02, 0.08)


def run(bench: Bench) -> None:
    """What the launcher says of the start, and what the job itself does first."""
    with ExitStack() as stack:
        stack.enter_context(bench.attempt("latency.p50", "latency.p99", "latency.own_p50"))
        directory = stack.enter_context(bench.private("latency"))
        running = stack.enter_context(hub(directory))
        client = stack.enter_context(running.client())
        the = stack.enter_context(site(running, directory / "site", client))
        client.wait_all(the.app("lean").map([{}] * 20), timeout_s=60)
        for _ in range(bench.rounds):
            taken = [_told(client, the) for _ in range(bench.scaled(150, 50))]
            bench.add("latency.p50", percentile(taken, 50))
            bench.add("latency.p99", percentile(taken, 99))
            bench.add("latency.own_p50", percentile(_own(the, bench.scaled(50, 20)), 50))


def _told(client: chappe.Client, the: Site) -> float:
    """Milliseconds until the start, by the launcher's own clock reading (same machine)."""
    time.sleep(random.uniform(*_PAUSE_S))
    began = time.time()
    job = the.app("lean").submit()
    job.wait(timeout_s=60)
    (started,) = [e.occurred_at for e in job.events() if e.new == "RUNNING"]
    assert started is not None
    return (started - began) * MS


def _own(the: Site, jobs: int) -> list[float]:
    """Milliseconds until a job's own write arrives here: sh has started by then, too."""
    pipe = the.directory / "data" / "pipe"
    os.mkfifo(pipe)
    taken = []
    try:
        # Open for writing as well, so that a job never waits for a reader.
        fd = os.open(pipe, os.O_RDWR)
        try:
            for _ in range(jobs):
                time.sleep(random.uniform(*_PAUSE_S))
                began = time.perf_counter()
                job = the.app("ping").submit()
                os.read(fd, 1)
                taken.append((time.perf_counter() - began) * MS)
                job.wait(timeout_s=60)
        finally:
            os.close(fd)
    finally:
        pipe.unlink()
    return taken
