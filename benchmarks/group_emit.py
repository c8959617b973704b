"""What a report costs the simulation, and how long it takes to be seen."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import chappe
from benchmarks.bench import Bench
from benchmarks.contract import MS
from benchmarks.figures import percentile
from benchmarks.rig import hub
from benchmarks.site import site
from chappe.emit import chappe_emit as emit

FOLDER = Path(emit.__file__).parent
_WITHIN_S = 30.0
_PAUSE_S = 0.05


def run(bench: Bench) -> None:
    """Processes that append, calls in a process, and messages up to the feed."""
    with bench.private("emit") as directory:
        _processes(bench, directory)
        _calls(bench, directory)
        with bench.attempt("emit.https", "emit.spool"), ExitStack() as stack:
            running = stack.enter_context(hub(directory))
            client = stack.enter_context(running.client())
            the = stack.enter_context(site(running, directory / "site", client))
            token = directory / "site" / "secrets" / "site.token"
            https = {
                "url": running.running.url,
                "token_file": str(token),
                "ca_file": str(running.running.ca_file),
                "spool": str(directory / "https"),
            }
            spool = {"transports": "spool", "spool": str(the.directory / "data" / "spool")}
            with _feed(client) as seen:
                for _ in range(bench.rounds):
                    count = bench.scaled(60, 20)
                    bench.add("emit.https", percentile(_seen(https, seen, count), 95))
                    bench.add("emit.spool", percentile(_seen(spool, seen, count), 95))


def _processes(bench: Bench, directory: Path) -> None:
    """A process for each message, on a machine that has run one before."""
    env = {
        **{k: v for k, v in os.environ.items() if not k.startswith("CHAPPE_EMIT")},
        "CHAPPE_EMIT_SPOOL": str(directory / "spool"),
        "CHAPPE_EMIT_SIMULATION": "benchmark",
    }
    words = ["metric", "name=energy", "value=1.5", "step=3"]
    commands = {
        "emit.python": [str(Path(sys.executable).with_name("chappe-emit")), *words],
        "emit.shell": ["sh", str(FOLDER / "chappe-emit.sh"), *words],
    }
    for key, command in commands.items():
        for _ in range(bench.rounds):
            taken = [_once(command, env) for _ in range(bench.scaled(40, 10))]
            bench.add(key, percentile(taken, 50))


def _once(command: list[str], env: dict[str, str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, env=env, check=True)
    return (time.perf_counter() - began) * MS


def _calls(bench: Bench, directory: Path) -> None:
    settings = emit.Settings(spool=str(directory / "calls"), transports="spool")
    emitter = emit.Emitter(settings)
    for _ in range(bench.rounds):
        taken = []
        for n in range(bench.scaled(20_000, 2_000)):
            began = time.perf_counter()
            emitter.message("metric", "benchmark", name="energy", value=1.5 * n, step=n)
            taken.append((time.perf_counter() - began) * 1e6)
        bench.add("emit.call", percentile(taken, 50))
    emitter.close()


@contextmanager
def _feed(client: chappe.Client) -> Iterator[Callable[[str], float]]:
    """Gives what waits until the feed tells of a simulation; it says when that was."""
    told: queue.Queue[tuple[str, float]] = queue.Queue()
    events = client.events(follow=True, cursor=client.cursor(), kinds=["simulation"])

    def listen() -> None:
        for event in events:
            told.put((str(event.data.get("id")), time.perf_counter()))

    def seen(uid: str) -> float:
        while True:
            found, at = told.get(timeout=_WITHIN_S)
            if found == uid:
                return at

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    yield seen


def _seen(given: dict[str, str], seen: Callable[[str], float], count: int) -> list[float]:
    """Milliseconds from telling that a simulation starts until the feed tells of it."""
    emitter = emit.Emitter(emit.Settings(**given))
    taken = []
    for _ in range(count):
        time.sleep(_PAUSE_S)
        uid = emit.new_uid()
        began = time.perf_counter()
        emitter.message("simulation.started", uid, name=uid)
        taken.append((seen(uid) - began) * MS)
    emitter.close()
    return taken
