"""A million waiting Jobs: what they take, how quickly the few that fit are found, how soon a Hub is back."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import chappe
from benchmarks.bench import Bench
from benchmarks.contract import MS
from benchmarks.figures import percentile
from benchmarks.jobs import shapes
from benchmarks.processes import stop
from benchmarks.rig import Bed, HubProcess, bed, hub
from chappe.core.jobs import Resources

SHAPES, FITTING = 200, 2
WANTED = 32
_CREATOR_S = 60.0


def run(bench: Bench) -> None:
    """Fill to a tenth, weigh; fill up, weigh; acquire idle and beside a creator; start again."""
    jobs = bench.scaled(1_000_000, 100_000)
    weights = ("disk.waiting", "rss.waiting")
    acquires = ("acquire_1m.idle", "acquire_1m.busy", "acquire_1m.creator")
    with bench.attempt(*weights, *acquires, "ready.million"), bench.private("million") as directory:
        with bed(directory) as the, the.hub.client() as client:
            _fill(client, jobs // 10)
            before = _weigh(the.hub)
            _fill(client, jobs - jobs // 10)
            for key, then, now in zip(weights, before, _weigh(the.hub), strict=True):
                bench.add(key, (now - then) / (jobs - jobs // 10))
            _acquire(bench, the, jobs)
        with bench.attempt("ready.million"):
            for _ in range(bench.rounds):
                with hub(directory) as again:
                    bench.add("ready.million", again.ready_s)


def _fill(client: chappe.Client, jobs: int) -> None:
    """As many Jobs of each Shape."""
    each = jobs // SHAPES
    for need in shapes(SHAPES, FITTING):
        _app(client, need).map([{}] * each)


def _app(client: chappe.Client, need: Resources) -> chappe.App:
    app = client.app("true", site="bench")
    return app.options(cores=need.cores, mem_bytes=need.mem_bytes)


def _weigh(running: HubProcess) -> tuple[int, int]:
    return running.disk_bytes, running.rss_bytes


def _acquire(bench: Bench, the: Bed, jobs: int) -> None:
    """Rounds of: the Hub otherwise idle, then beside a creator."""
    times = bench.scaled(200, 100)
    for _ in range(bench.rounds):
        taken = _acquires(the, times)
        bench.add("acquire_1m.idle", percentile(taken, 95))
        bench.note("acquire_1m.idle", f"{jobs} jobs; p50 {percentile(taken, 50):.2f} ms")
        with _creator(bench, the.hub):
            taken = _acquires(the, times)
        bench.add("acquire_1m.busy", percentile(taken, 95))
        bench.note("acquire_1m.busy", f"p50 {percentile(taken, 50):.2f} ms")


def _acquires(the: Bed, times: int) -> list[float]:
    """Milliseconds of each acquire; what it brought goes back, so that every one meets the same queue."""
    taken = []
    for _ in range(times):
        grants, taken_s = the.pilot.acquire(WANTED)
        assert len(grants) == WANTED
        taken.append(taken_s * MS)
        the.pilot.give_back(grants)
    return taken


@contextmanager
def _creator(bench: Bench, running: HubProcess) -> Iterator[None]:
    config, key = running.running.client_config, running.key_file
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.creator", str(config), str(key)],
        cwd=Path(__file__).parent.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield
        out, _ = process.communicate(timeout=_CREATOR_S)
        bench.add("acquire_1m.creator", float(out))
    finally:
        stop(process)
