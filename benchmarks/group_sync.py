"""The pilot's protocol with 1 000 items a call: acquire, starts, ends, and a Job's life in all.

Two pilots speak at a time, as a Hub has many: while the answer to one is written or on its way, the other's
request is read. What one alone reaches, waiting for each answer, is shown apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

from benchmarks.bench import Bench
from benchmarks.contract import MS
from benchmarks.pilotlike import PilotLike
from benchmarks.rig import Bed, bed

BATCH = 1_000
PILOTS = 2


def run(bench: Bench) -> None:
    """Rounds of whole lives; a rate counts the time of its calls alone, encoding included."""
    jobs = bench.scaled(20_000, 4_000)
    keys = ("acquire", "report", "report.start", "report.end", "acquire.alone", "report.alone")
    with (
        bench.attempt(*keys, "hub_cpu.protocol"),
        bench.private("sync") as directory,
        bed(directory, pilots=PILOTS) as the,
        ThreadPoolExecutor(PILOTS) as pool,
    ):
        for _ in range(bench.rounds):
            cpu = the.hub.cpu_s
            taken = _lives(the, pool, the.pilots, jobs)
            bench.add("hub_cpu.protocol", (the.hub.cpu_s - cpu) / jobs * MS)
            bench.add("acquire", jobs / taken["acquire"])
            bench.add("report.start", jobs / taken["start"])
            bench.add("report.end", jobs / taken["end"])
            bench.add("report", 2 * jobs / (taken["start"] + taken["end"]))
            taken = _lives(the, pool, the.pilots[:1], jobs // PILOTS)
            bench.add("acquire.alone", jobs / PILOTS / taken["acquire"])
            bench.add("report.alone", jobs / (taken["start"] + taken["end"]))


def _lives(the: Bed, pool: Executor, pilots: Sequence[PilotLike], jobs: int) -> dict[str, float]:
    """Seconds that the calls of each kind took in all, until the last pilot had its answer."""
    taken = {"acquire": 0.0, "start": 0.0, "end": 0.0}
    for body in [the.maker.body(BATCH) for _ in range(jobs // BATCH)]:
        the.create(body)

    def together(kind: str, call: Callable[..., Any], *args: Sequence[Any]) -> list[Any]:
        answers = list(pool.map(call, pilots, *args))
        calls = [pilot.last_call for pilot in pilots]
        taken[kind] += max(call.ended for call in calls) - min(call.began for call in calls)
        return answers

    for _ in range(jobs // (BATCH * len(pilots))):
        answers = together("acquire", PilotLike.acquire, [BATCH] * len(pilots))
        grants = [some for some, _ in answers]
        assert all(len(some) == BATCH for some in grants)
        together("start", PilotLike.start, grants)
        together("end", PilotLike.end, grants)
    return taken
