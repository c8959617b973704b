"""Slurm's commands, played by a script that does what it is told: it lies, stalls, forgets and loses answers.

    fake = FakeSlurm(directory)
    fake.will("sbatch", "accept_timeout")      # the next call; "ok" after that
    os.environ["PATH"] = f"{fake.bin}:{os.environ['PATH']}"

Nothing runs: tests say what becomes of a job (`change`). This file is also the script, started without
Chappe; so it imports the standard library only.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

COMMANDS = ("sbatch", "squeue", "sacct", "scancel")
_TIMEOUT = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"
_DOWN = "error: Unable to contact slurm controller (connect failure)"


class FakeSlurm:
    """The stand-in's state, in files that its commands share."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.bin = directory / "bin"
        self.bin.mkdir(parents=True)
        for name in COMMANDS:
            script = self.bin / name
            me = [sys.executable, "-I", "-S", str(Path(__file__).resolve()), str(directory), name]
            script.write_text(f'#!/bin/sh\nexec {shlex.join(me)} "$@"\n')
            script.chmod(0o755)

    def will(self, command: str, *behaviours: str) -> None:
        """What the next calls of `command` do: see `_Play`."""
        with _state(self.directory) as state:
            state["next"].setdefault(command, []).extend(behaviours)

    def jobs(self) -> dict[str, dict[str, Any]]:
        """All jobs that were ever accepted, by id."""
        with _state(self.directory) as state:
            found: dict[str, dict[str, Any]] = state["jobs"]
            return found

    def change(self, job: str, **facts: Any) -> None:
        """Change a job: `state`; `listed`: whether squeue knows it; `history`: what sacct has; `name`."""
        with _state(self.directory) as state:
            state["jobs"][job].update(facts)

    def calls(self, command: str) -> list[tuple[float, list[str]]]:
        """When `command` was called (seconds of some clock), and with what."""
        with _state(self.directory) as state:
            return [(at, argv) for at, name, argv in state["calls"] if name == command]


@contextmanager
def _state(directory: Path) -> Iterator[dict[str, Any]]:
    with open(directory / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        path = directory / "state.json"
        state: dict[str, Any] = {"jobs": {}, "next": {}, "calls": [], "late": []}
        if path.exists():
            state = json.loads(path.read_text())
        yield state
        # A command may be killed at any moment.
        written = directory / "state.new"
        written.write_text(json.dumps(state))
        written.replace(path)


class _Play:
    """One call of one command."""

    def __init__(self, directory: Path, name: str, argv: list[str]) -> None:
        with _state(directory) as state:
            state["calls"].append((time.monotonic(), name, argv))
            waiting = state["next"].get(name, [])
            self.how = waiting.pop(0) if waiting else "ok"
            self.jobs: dict[str, dict[str, Any]] = state["jobs"]
            self.argv = argv
            self.words = ""
            self.late: list[str] = state["late"]
            self.code = int(getattr(self, name)())
        if self.how.endswith("hang"):
            time.sleep(3600)

    def option(self, name: str) -> str:
        """The value of `--name=value`."""
        return next((a.split("=", 1)[1] for a in self.argv if a.startswith(f"--{name}=")), "")

    def accept(self, name: str) -> str:
        """A new job. Ids are given out again after a while, as they are in reality."""
        job = str(1 + len(self.jobs))
        facts = {"name": name, "state": "PENDING", "listed": True, "history": "PENDING"}
        self.jobs[job] = facts
        return job

    def fail(self, words: str, code: int = 1) -> int:
        """Say something on stderr."""
        print(words, file=sys.stderr)
        return code

    def sbatch(self) -> int:
        """accept_timeout, accept_hang: taken, and nobody is told; late: taken when squeue is asked twice."""
        name = self.option("job-name")
        match self.how:
            case "garbage":
                print("Segmentation fault; see core.42 | 17")
                return 0
            case "refuse":
                return self.fail("sbatch: error: invalid partition specified: nope")
            case "busy":
                return self.fail(f"sbatch: {_DOWN}")
            case "timeout" | "hang":
                return self.fail(_TIMEOUT)
            case "late":
                self.late += [name, ""]
                return self.fail(_TIMEOUT)
        job = self.accept(name)
        if self.how.startswith("accept"):
            return self.fail(_TIMEOUT)
        print(job)
        return 0

    def squeue(self) -> int:
        """empty, partial: rows are missing; garbage; fail."""
        if len(self.late) > 1:
            self.late.pop()
        elif self.late:
            self.accept(self.late.pop())
        if self.how == "fail":
            return self.fail(f"squeue: {_DOWN}")
        if self.how == "garbage":
            print("1|2|3|4|5\n\x00\ufffd\nslurm_load_jobs error|COMPLETED\n||||")
            return 0
        ids, name = self.option("jobs").split(","), self.option("name")
        rows = []
        for job, facts in self.jobs.items():
            if facts["listed"] and (facts["name"] == name if name else job in ids):
                columns = {"A": job, "T": facts["state"], "j": facts["name"], "r": "None"}
                wanted = self.option("format").split("|")
                rows.append("|".join(columns[c.lstrip("%")] for c in wanted))
        if self.how == "partial":
            rows = rows[: len(rows) // 2]
        if self.how != "empty":
            print("\n".join(rows))
        return 0

    def sacct(self) -> int:
        """empty, fail, disabled."""
        if self.how == "disabled":
            return self.fail("Slurm accounting storage is disabled")
        if self.how == "fail":
            return self.fail("sacct: error: slurmdbd: Sending PersistInit msg: Connection refused")
        ids, name = self.option("jobs").split(","), self.option("name")
        for job, facts in self.jobs.items():
            if facts["history"] and (facts["name"] == name if name else job in ids):
                columns = {
                    "JobIDRaw": job,
                    "JobName": facts["name"],
                    "State": facts["history"],
                    "ExitCode": "0:0",
                }
                if self.how != "empty":
                    print("|".join(columns[c] for c in self.option("format").split(",")))
        return 0

    def scancel(self) -> int:
        """Or fail."""
        if self.how == "fail":
            return self.fail(f"scancel: {_DOWN}")
        for job in self.argv:
            if self.jobs.get(job, {}).get("listed"):
                self.jobs[job].update(state="CANCELLED", history="CANCELLED by 0")
        return 0


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    play = _Play(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
    sys.stdout.flush()
    os._exit(play.code)
