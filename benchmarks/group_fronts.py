"""What somebody waits for who calls `chappe-sbatch` or `chappe-squeue`: a start of Python, and a request."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.figures import median
from benchmarks.rig import hub
from benchmarks.site import site

JOBS = 100


def run(bench: Bench) -> None:
    """Rounds of calls, each a process of its own; the median of each round."""
    with (
        bench.attempt("fronts.sbatch", "fronts.squeue", "fronts.python"),
        bench.private("fronts") as directory,
        hub(directory) as running,
        running.client() as client,
        site(running, directory / "site", client),
    ):
        script = directory / "job.sh"
        script.write_text("#!/bin/sh\n#SBATCH -J one --begin=now+1hour -t 10\ntrue\n")
        env = {
            **os.environ,
            "CHAPPE_CONFIG": str(running.running.client_config),
            "CHAPPE_KEY": str(running.key_file),
        }
        _call(env, "chappe-sbatch", f"--array=1-{JOBS}", str(script))
        for _ in range(bench.rounds):
            calls = bench.scaled(10, 3)
            for key, argv in (
                ("fronts.sbatch", ("chappe-sbatch", str(script))),
                ("fronts.squeue", ("chappe-squeue", "-r")),
                ("fronts.python", (Path(sys.executable).name, "-c", "pass")),
            ):
                bench.add(key, median([_call(env, *argv) for _ in range(calls)]))


def _call(env: dict[str, str], *argv: str) -> float:
    """Seconds that a command of our environment took. Raises CalledProcessError."""
    program = str(Path(sys.executable).with_name(argv[0]))
    began = time.perf_counter()
    subprocess.run([program, *argv[1:]], env=env, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began
