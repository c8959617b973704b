"""Creating Jobs as a user does: drafts, encoding, hashing, signing, HTTPS, one durable commit a request."""

from __future__ import annotations

import time

from benchmarks import rawsqlite
from benchmarks.bench import Bench
from benchmarks.rig import bed


def run(bench: Bench) -> None:
    """The SDK's bulk path, and the same rows by raw sqlite3, in turn."""
    jobs = bench.scaled(40_000, 10_000)
    with bench.attempt("create", "create.sqlite"), bench.private("create") as directory:
        with bed(directory) as the, the.hub.client() as client:
            app = client.app("true", site="bench")
            app.map([{}] * 1_000)  # connections, the signing key, the names of sites
            for n in range(bench.rounds):
                before = rawsqlite.marks(the.hub.database)
                began = time.perf_counter()
                app.map([{}] * jobs)
                bench.add("create", jobs / (time.perf_counter() - began))
                scratch = directory / f"raw{n}.sqlite"
                raw = rawsqlite.jobs_per_s(the.hub.database, before, scratch)
                bench.add("create.sqlite", raw)
