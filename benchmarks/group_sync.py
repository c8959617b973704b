"""The pilot's protocol with 1 000 items a call: acquire, starts, ends, and a Job's life in all."""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.contract import MS
from benchmarks.rig import bed

BATCH = 1_000


def run(bench: Bench) -> None:
    """Rounds of whole lives; a rate counts the time of its calls alone, encoding included."""
    jobs = bench.scaled(20_000, 5_000)
    keys = ("acquire", "report", "report.start", "report.end", "hub_cpu.protocol")
    with bench.attempt(*keys), bench.private("sync") as directory, bed(directory) as the:
        for _ in range(bench.rounds):
            bodies = [the.maker.body(BATCH) for _ in range(jobs // BATCH)]
            cpu = the.hub.cpu_s
            for body in bodies:
                the.create(body)
            acquire = start = end = 0.0
            for _ in bodies:
                grants, taken_s = the.pilot.acquire(BATCH)
                assert len(grants) == BATCH
                acquire += taken_s
                start += the.pilot.start(grants)
                end += the.pilot.end(grants)
            bench.add("acquire", jobs / acquire)
            bench.add("report.start", jobs / start)
            bench.add("report.end", jobs / end)
            bench.add("report", 2 * jobs / (start + end))
            bench.add("hub_cpu.protocol", (the.hub.cpu_s - cpu) / jobs * MS)
