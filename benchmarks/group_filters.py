"""100 000 finished Jobs: pages of `job ls` with each documented filter, over HTTP, from first to last."""

from __future__ import annotations

import time
from typing import Any

import msgspec

import chappe
from benchmarks.bench import Bench
from benchmarks.contract import MS
from benchmarks.figures import percentile
from benchmarks.rig import Bed, bed
from chappe.wire.bulk import JobCount
from chappe.wire.jobs import JobFilter, JobPage, QueryJobs

BATCH = 1_000
#: One Job in so many is tagged `rare`, or is the child of one Job.
RARE = 1_000
TIMES = 20


def run(bench: Bench) -> None:
    """Fill, finish, list: the row is the worst filter's p95, the note says which one it was."""
    jobs = bench.scaled(100_000, 10_000)
    keys = ("filters.ls", "filters.count")
    with bench.attempt(*keys), bench.private("filters") as directory, bed(directory) as the:
        began = time.time()
        with the.hub.client() as client:
            parent = _fill(client, the, jobs)
        for _ in range(bench.rounds):
            found = {_words(f): _pages(the, f) for f in _filters(began, parent)}
            worst = max(found, key=lambda name: percentile(found[name], 95))
            for name, taken in found.items():
                bench.say(
                    f"p50 {percentile(taken, 50):5.1f} p95 {percentile(taken, 95):5.1f} ms {name}"
                )
            bench.add("filters.ls", percentile(found[worst], 95))
            middle = percentile([t for taken in found.values() for t in taken], 50)
            bench.note("filters.ls", f"{jobs} jobs; worst: {worst}; p50 of all {middle:.1f} ms")
            counts = [_count(the, f) for f in _filters(began, parent)]
            bench.add("filters.count", max(counts))


def _fill(client: chappe.Client, the: Bed, jobs: int) -> str:
    """Jobs of five studies, all of which have finished; the parent of some of them."""
    app = client.app("true", site="bench")
    first = app.options(name="parent").submit()
    _finish(the, 1)
    for at in range(0, jobs, BATCH):
        drafts = []
        for i in range(at, at + BATCH):
            tags = {"study": str(i % 5), "all": "yes"} | ({"rare": "yes"} if i % RARE == 0 else {})
            parents = [first] if i % RARE == 1 else []
            drafts.append(app.options(name=f"run-{i:06}", tags=tags, parents=parents)({}))
        client.submit(drafts)
        _finish(the, BATCH)
    return first.id


def _finish(the: Bed, jobs: int) -> None:
    while jobs:
        grants, _ = the.pilot.acquire(min(jobs, BATCH))
        the.pilot.start(grants)
        the.pilot.end(grants)
        jobs -= len(grants)


def _filters(began: float, parent: str) -> list[JobFilter]:
    """Each documented condition, once where it finds much and once where it finds little."""
    middle = (began + time.time()) / 2
    conditions: list[dict[str, Any]] = [
        {},
        {"site": "bench"},
        {"app": "true"},
        {"state": "JOB_FINISHED"},
        {"phase": "finished"},
        {"phase": "failed"},
        {"name": "run-000007"},
        {"name_prefix": "run-"},
        {"name_prefix": "run-00001"},
        {"tags": {"all": "yes"}},
        {"tags": {"rare": "yes"}},
        {"tags": {"all": "yes", "study": "3"}},
        {"parent": parent},
        {"held": True},
        {"created_since": middle},
        {"created_until": middle},
        {"ended_since": middle},
        {"ended_until": middle},
        {"ended_until": began},
        {"site": "bench", "app": "true", "phase": "finished", "tags": {"study": "1"}},
    ]
    return [JobFilter(**one) for one in conditions]


def _pages(the: Bed, f: JobFilter) -> list[float]:
    """Milliseconds of page after page, from the first again after the last."""
    taken, cursor = [], None
    for _ in range(TIMES):
        began = time.perf_counter()
        page = the.user.ask("POST", "/v1/jobs/query", QueryJobs(f, 100, cursor), JobPage)
        taken.append((time.perf_counter() - began) * MS)
        cursor = page.next
    return taken


def _count(the: Bed, f: JobFilter) -> float:
    began = time.perf_counter()
    the.user.ask("POST", "/v1/jobs/count", f, JobCount)
    return (time.perf_counter() - began) * MS


def _words(f: JobFilter) -> str:
    return msgspec.json.encode(f).decode()
