"""The Hub on PostgreSQL, with 1 000 items a call over HTTPS. The server is this run's own, on the disk."""

from __future__ import annotations

import time

from benchmarks.bench import Bench
from benchmarks.group_sync import BATCH
from benchmarks.rig import bed
from chappe.testing.postgres import HOW_TO_GET, PostgresServer, binaries

#: What an administrator sets on a machine of this size.
SETTINGS = (
    "shared_buffers = 1GB",
    "max_wal_size = 4GB",
    "min_wal_size = 1GB",
    "wal_buffers = 16MB",
)
KEYS = ("postgres.create", "postgres.acquire", "postgres.report")


def run(bench: Bench) -> None:
    """Rounds of whole lives; a rate counts the time of its calls alone, encoding included."""
    jobs = bench.scaled(20_000, 5_000)
    with bench.attempt(*KEYS), bench.private("postgres") as directory:
        if binaries() is None:
            raise RuntimeError(f"no PostgreSQL; to get it: {HOW_TO_GET}")
        with (
            PostgresServer.start(*SETTINGS, memory=False) as server,
            bed(directory, db=server.database()) as the,
            the.hub.client() as client,
        ):
            app = client.app("true", site="bench")
            app.map([{}] * BATCH)  # connections, the signing key, the names of sites
            for _ in range(bench.rounds):
                began = time.perf_counter()
                app.map([{}] * jobs)
                bench.add("postgres.create", jobs / (time.perf_counter() - began))
                acquire = report = 0.0
                for _ in range(jobs // BATCH):
                    grants, taken_s = the.pilot.acquire(BATCH)
                    assert len(grants) == BATCH
                    acquire += taken_s
                    report += the.pilot.start(grants) + the.pilot.end(grants)
                bench.add("postgres.acquire", jobs / acquire)
                bench.add("postgres.report", 2 * jobs / report)
