"""Parsl as a reference: its HighThroughputExecutor from PyPI, in a process of its own.

python -m benchmarks.parsl_ref DIRECTORY CALLS SINGLES SLOTS     (prints a line of JSON)
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.figures import percentile

_RUN_S = 300.0


class ParslRun(NamedTuple):
    """One run: calls per second, and the p50 of one call after the other (ms). Nothing is durable."""

    per_s: float
    p50_ms: float


def measure(directory: Path, calls: int, singles: int, slots: int) -> ParslRun:
    """Call a function that returns its argument's square, in workers that are warm."""
    command = [sys.executable, "-m", "benchmarks.parsl_ref", str(directory)]
    command += [str(calls), str(singles), str(slots)]
    # Parsl finds its own programs by PATH.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        check=True,
        env={**os.environ, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        timeout=_RUN_S,
    )
    return ParslRun(*json.loads(done.stdout.splitlines()[-1]))


def version() -> str:
    """The version of the package."""
    return str(importlib.import_module("parsl").__version__)


def square(n: int) -> int:
    """What is called."""
    return n * n


def _run(directory: Path, calls: int, singles: int, slots: int) -> ParslRun:
    parsl = importlib.import_module("parsl")
    htex = importlib.import_module("parsl.executors").HighThroughputExecutor
    config = importlib.import_module("parsl.config").Config
    executor = htex(label="htex", address="127.0.0.1", max_workers_per_node=slots)
    made = config(executors=[executor], run_dir=str(directory / "runinfo"), usage_tracking=0)
    with parsl.load(made):
        call = parsl.python_app(square)
        assert [f.result() for f in [call(n) for n in range(50)]][-1] == 49 * 49
        taken = []
        for n in range(singles):
            began = time.perf_counter()
            call(n).result()
            taken.append((time.perf_counter() - began) * 1e3)
        began = time.perf_counter()
        found = [f.result() for f in [call(n) for n in range(calls)]]
        per_s = calls / (time.perf_counter() - began)
        assert found[-1] == (calls - 1) ** 2
    return ParslRun(per_s, percentile(taken, 50))


if __name__ == "__main__":
    print(json.dumps(_run(Path(sys.argv[1]), *map(int, sys.argv[2:5]))))
