"""Creating Jobs as a user does: drafts, encoding, hashing, signing, HTTPS, one durable commit a request."""

from __future__ import annotations

import time
from contextlib import ExitStack

from benchmarks import rawsqlite
from benchmarks.bench import Bench
from benchmarks.contract import MS
from benchmarks.rig import bed


def run(bench: Bench) -> None:
    """The SDK's bulk path, and the same rows by raw sqlite3, in turn."""
    jobs = bench.scaled(40_000, 10_000)
    keys = ("create", "create.sqlite")
    with ExitStack() as stack:
        stack.enter_context(bench.attempt(*keys))
        directory = stack.enter_context(bench.private("create"))
        the = stack.enter_context(bed(directory))
        client = stack.enter_context(the.hub.client())
        app = client.app("true", site="bench")
        app.map([{}] * 1_000)  # connections, the signing key, the names of sites
        for n in range(bench.rounds):
            before = rawsqlite.marks(the.hub.database)
            cpu, own = the.hub.cpu_s, time.process_time()
            began = time.perf_counter()
            app.map([{}] * jobs)
            bench.add("create", jobs / (time.perf_counter() - began))
            bench.add("create.hub_cpu", (the.hub.cpu_s - cpu) / jobs * MS)
            bench.add("create.client_cpu", (time.process_time() - own) / jobs * MS)
            scratch = directory / f"raw{n}.sqlite"
            raw = rawsqlite.jobs_per_s(the.hub.database, before, scratch)
            bench.add("create.sqlite", raw)
