"""The launcher alone, without Hub and pilot, beside the bare loop (see launcher_micro)."""

from __future__ import annotations

import asyncio

from benchmarks import launcher_micro
from benchmarks.bench import Bench
from benchmarks.site import SLOTS


def run(bench: Bench) -> None:
    """Rounds of: bare loop, launcher with lanes."""
    jobs = bench.scaled(4_000, 1_000)
    with bench.attempt("launcher.bare", "launcher.lanes"), bench.private("launcher") as work:
        for _ in range(bench.rounds):
            bench.add("launcher.bare", launcher_micro.bare(jobs, SLOTS, work).per_s)
            row = asyncio.run(launcher_micro.through_launcher(jobs, SLOTS, work, True, False))
            bench.add("launcher.lanes", row.per_s)
