"""One head that leads 256 hands through 10 000 Jobs a minute. The hands are simulated, in one other process:
what they would do on their nodes is the launcher's figure; here the head alone is measured."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.bench import Bench
from benchmarks.contract import MB
from benchmarks.processes import cpu_s, rss_bytes, stopped
from benchmarks.rig import hub
from chappe.core.jobs import Resources
from chappe.testing.hub import RunningHub
from chappe.wire.jobs import Counts
from tests.integration.pilot_rig import Pilot, RealSite, until

HANDS = 256
SLOTS = 2
PER_MIN = 10_000
LIFE_S = HANDS * SLOTS * 60 / (1.1 * PER_MIN)
"""With every slot taken, a tenth more end in a minute: between two Jobs a slot is empty for a moment."""

_MEM_BYTES = 1 << 39
"""More than the head's own node is said to have: it runs none of them."""


class _Sample(NamedTuple):
    at: float
    cpu_s: float
    finished: int


def run(bench: Bench) -> None:
    """Rounds of: a Site, a head, its hands, and a while at full rate."""
    with bench.attempt("hands.cpu", "hands.rss", "hands.rate"):
        for _ in range(bench.rounds):
            with bench.private("hands") as directory, hub(directory / "hub") as running:
                asyncio.run(_round(bench, running.running, directory))


async def _round(bench: Bench, running: RunningHub, directory: Path) -> None:
    site = RealSite(
        directory / "site", running.url, running.token, running.project, running.ca_file or None
    )
    await site.register()
    try:
        names = ["head", *(f"h{k}" for k in range(HANDS))]
        hosts = {
            "kind": "command",
            "names": ["printf", "\\n".join(names)],
            "start": ["/bin/sh", "-c", "exec sleep 600", "{node}"],
        }
        pilot = await site.session({"slots": 1, "mem_bytes": 1}, hosts=hosts)
        await pilot.start()
        await until((pilot.directory / "head.json").exists, "the head listens")
        argv = [sys.executable, "-m", "benchmarks.fake_hands", "--dir", str(pilot.directory)]
        argv += ["--count", str(HANDS), "--slots", str(SLOTS), "--life-s", str(LIFE_S)]
        with stopped(subprocess.Popen(argv)):  # noqa: ASYNC220 - once, before anything is measured
            await until(lambda: len(pilot.logged("hand.joined")) == HANDS, "all hands join")
            await _measure(bench, site, pilot, bench.scaled(30, 10))
    finally:
        await site.close()


async def _measure(bench: Bench, site: RealSite, pilot: Pilot, seconds: int) -> None:
    jobs = int((seconds + 3 * LIFE_S) * PER_MIN / 60)
    need = Resources(mem_bytes=_MEM_BYTES, estimate_s=LIFE_S)
    specs = [site.dir.spec("true", resources=need) for _ in range(jobs)]
    for at in range(0, jobs, 5_000):
        await site.submit(specs[at : at + 5_000])
    await asyncio.sleep(2 * LIFE_S)  # to full rate
    before = await _sample(site, pilot)
    await asyncio.sleep(seconds)
    after = await _sample(site, pilot)
    assert pilot.process is not None
    wall_s = after.at - before.at
    bench.add("hands.cpu", 100 * (after.cpu_s - before.cpu_s) / wall_s)
    bench.add("hands.rate", 60 * (after.finished - before.finished) / wall_s)
    bench.add("hands.rss", rss_bytes(pilot.process.pid) / MB)


async def _sample(site: RealSite, pilot: Pilot) -> _Sample:
    assert pilot.process is not None
    counts = await site.user.request("GET", "/v1/jobs/counts", reply=Counts)
    finished = sum(n for _, _, state, n in counts.counts if state == "JOB_FINISHED")
    return _Sample(time.monotonic(), cpu_s(pilot.process.pid), finished)
