"""PBS: PBS Professional and OpenPBS (`pbs`), and Torque (`torque`): qsub, qstat and qdel, as text.

Where they differ: PBS Professional takes `select` chunks, and shows jobs that have ended with `-x`; Torque
takes `nodes=…:ppn=…`, and keeps jobs that have ended for some minutes as state C. What it has forgotten by
then is given up when its whole time has passed. Both fail on the one id of many that they do not know, and
tell of the others.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import ClassVar

from chappe.core.errors import Invalid
from chappe.core.limits import MIB
from chappe.site.schedulers.base import (
    Batch,
    BatchState,
    Phase,
    Plain,
    Quirks,
    SchedulerDown,
    SubmitRefused,
    SubmitUnclear,
    said,
    succeeded,
)
from chappe.site.schedulers.script import check_plain, script

_RUNNING = "RBESU"
_PENDING = "QHWTM"
_OVER = "CFX"
_WALLTIME = ("-29", "-11")
"""Exit_status of a job that was ended at its limit: PBS Professional, Torque."""
_DOWN = re.compile(
    r"cannot connect to server|connection refused|timed? ?out waiting|"
    r"(maximum number of jobs|would exceed|too many).*(queue|user|server|limit)",
    re.IGNORECASE,
)
_REFUSED = re.compile(
    r"unknown queue|unauthori[sz]ed|illegal attribute|violates queue|invalid (account|partition)|"
    r"unknown resource|script file|cannot locate feasible nodes|not available",
    re.IGNORECASE,
)
#: Of an id that is not known, or of a job that has ended.
_GONE = re.compile(
    r"unknown job|job has finished|invalid for state|invalid job id|complet", re.IGNORECASE
)


class Pbs(Plain):
    """Text in, text out for the commands of PBS Professional and OpenPBS."""

    kind = "pbs"
    quirks = Quirks()
    _status: ClassVar[list[str]] = ["qstat", "-x", "-f"]

    def render_script(self, batch: Batch) -> str:
        """A script with `#PBS` lines. Raises Invalid for what PBS has no words for."""
        for field in ("qos", "reservation"):
            if getattr(batch, field):
                raise Invalid(
                    f"PBS knows no {field}; where the machine has a queue for it, ask for that",
                    field=f"intent.{field}",
                )
        if not batch.cores:
            raise Invalid(
                "PBS wants to know how many cores of each node: ask for cores, or set [pilot] cores",
                field="intent.cores",
            )
        check_plain(batch.session_dir, "#PBS")
        if set(batch.constraint) & set(",&|*()[]"):
            # After a comma would stand a resource of its own, as the time, past the Site's policy.
            raise Invalid(
                f"{batch.constraint!r} is no constraint for PBS: one feature, or name=value, and more after "
                "a colon",
                field="intent.constraint",
            )
        options = [f"-N {batch.name}", "-j oe", f"-o {batch.session_dir}/batch.out", "-r n"]
        options += self._resources(batch)
        if batch.wall_s is not None:
            options.append(f"-l walltime={_clock(batch.wall_s)}")
        if batch.queue:
            options.append(f"-q {batch.queue}")
        if batch.account:
            options.append(f"-A {batch.account}")
        return script(batch, [f"#PBS {line}" for line in (*options, *batch.directives)])

    def _resources(self, batch: Batch) -> list[str]:
        chunk = f"{batch.nodes}:ncpus={batch.cores}"
        if batch.gpus:
            chunk += f":ngpus={batch.gpus}"
        if batch.mem_bytes:
            chunk += f":mem={math.ceil(batch.mem_bytes / MIB)}mb"
        if batch.constraint:
            chunk += f":{batch.constraint}"
        return [f"-l select={chunk}", "-l place=scatter"]

    def submit_command(self, script: str, name: str) -> list[str]:
        """`qsub`."""
        return ["qsub", "-N", name, script]

    def parse_submit(self, stdout: str, stderr: str, exit_code: int) -> str:
        """The number in the last line like `123.server`."""
        if exit_code == 0:
            for line in reversed(stdout.splitlines()):
                if found := re.fullmatch(r"(\d+)(\.[\w.-]+)?", line.strip()):
                    return found.group(1)
            raise SubmitUnclear(f"qsub succeeded and said: {said(stdout, stderr)}")
        words = f"{stdout}\n{stderr}"
        if _DOWN.search(words):
            raise SchedulerDown(f"qsub: {said(stdout, stderr)}")
        if _REFUSED.search(words):
            raise SubmitRefused(f"qsub: {said(stdout, stderr)}")
        raise SubmitUnclear(f"qsub ended with {exit_code} and said: {said(stdout, stderr)}")

    def find_commands(self, name: str) -> list[list[str]]:
        """`qselect`, which looks by name, also among the jobs that have ended."""
        return [["qselect", "-x", "-N", name]]

    def parse_find(self, stdout: str, name: str, stderr: str = "", exit_code: int = 0) -> list[str]:
        """Lines `123.server`."""
        text = succeeded(stdout, stderr, exit_code, "qselect")
        found = (re.fullmatch(r"(\d+)(\.\S+)?", line.strip()) for line in text.splitlines())
        return sorted({m.group(1) for m in found if m}, key=int)

    def status_command(self, ids: Sequence[str]) -> list[str]:
        """`qstat -f`, the only form that neither cuts names nor differs between versions."""
        return [*self._status, *ids]

    def parse_status(
        self, stdout: str, stderr: str = "", exit_code: int = 0
    ) -> dict[str, BatchState]:
        """Blocks `Job Id: 123.server`, with lines `name = value`."""
        unknown = [line for line in stderr.splitlines() if line.strip()]
        if exit_code != 0 and not (unknown and all(_GONE.search(line) for line in unknown)):
            succeeded(stdout, stderr, exit_code, "qstat")
        return {id: _state(facts) for id, facts in _blocks(stdout)}

    def cancel_command(self, ids: Sequence[str]) -> list[str]:
        """`qdel`."""
        return ["qdel", *ids]

    def parse_cancel(self, stdout: str, stderr: str, exit_code: int) -> None:
        """Complaints about jobs that have ended are none."""
        lines = [line for line in f"{stdout}\n{stderr}".splitlines() if line.strip()]
        if exit_code != 0 and not all(_GONE.search(line) for line in lines):
            succeeded(stdout, stderr, exit_code, "qdel")


class Torque(Pbs):
    """Text in, text out for Torque's commands, and for Slurm's of the same names."""

    kind = "torque"
    quirks = Quirks(verified="the commands of slurm-wlm-torque 22.05")
    _status: ClassVar[list[str]] = ["qstat", "-f"]

    def _resources(self, batch: Batch) -> list[str]:
        chunk = f"nodes={batch.nodes}:ppn={batch.cores}"
        if batch.gpus:
            chunk += f":gpus={batch.gpus}"
        if batch.constraint:
            chunk += f":{batch.constraint}"
        # Torque counts the memory of all nodes together.
        mem = math.ceil(batch.nodes * batch.mem_bytes / MIB)
        return [f"-l {chunk}", *([f"-l mem={mem}mb"] if mem else [])]

    def submit_command(self, script: str, name: str) -> list[str]:
        """`qsub`, told again where the output goes: Slurm's passes over that directive, and would leave a
        file in the directory of whoever submits."""
        output = f"{script.rpartition('/')[0]}/batch.out"
        return ["qsub", "-N", name, "-j", "oe", "-o", output, script]

    def find_commands(self, name: str) -> list[list[str]]:
        """All jobs in full: `qselect` is not everywhere. Only needed after an answer that was lost."""
        return [["qstat", "-f"]]

    def parse_find(self, stdout: str, name: str, stderr: str = "", exit_code: int = 0) -> list[str]:
        """Those with the name."""
        text = succeeded(stdout, stderr, exit_code, "qstat")
        return sorted((id for id, facts in _blocks(text) if facts.get("Job_Name") == name), key=int)


def _blocks(text: str) -> Iterator[tuple[str, dict[str, str]]]:
    """(number, attributes) of each job; what is wrapped begins with a tab and has no ` = `."""
    id, facts, last = "", dict[str, str](), ""
    for line in text.splitlines():
        if begin := re.match(r"Job Id:\s*(\d+)", line):
            if id:
                yield id, facts
            id, facts, last = begin.group(1), {}, ""
        elif " = " in line:
            last, _, value = line.strip().partition(" = ")
            facts[last] = value.strip()
        elif line.startswith("\t") and last:
            facts[last] += line.strip()
    if id:
        yield id, facts


def _state(facts: dict[str, str]) -> BatchState:
    name, state = facts.get("Job_Name", ""), facts.get("job_state", "")
    if state and state in _PENDING:
        return BatchState(Phase.PENDING, facts.get("comment", "")[:200], name=name)
    if state and state in _RUNNING:
        return BatchState(Phase.RUNNING, name=name)
    if not state or state not in _OVER:
        return BatchState(Phase.UNKNOWN, name=name)
    status = facts.get("Exit_status", facts.get("exit_status", ""))
    if not status and {"exec_host", "server"} <= facts.keys():
        # A job that ran has a status from its node. Without one it was struck off, as when its node failed.
        # (Slurm's commands of these names tell of no status at all, nor of a server.)
        message = (
            "it was deleted without a word of its node; what ran there may go on until the limit"
        )
        return BatchState(Phase.UNKNOWN, message, name=name)
    if status in _WALLTIME:
        return BatchState(Phase.ENDED, "its wall-clock limit passed", name=name)
    if not re.fullmatch(r"-?\d+", status) or status == "0":
        return BatchState(Phase.ENDED, name=name)
    number = int(status)
    if number > 128:
        # A signal: the shell's 128 + n, or PBS's 256 + n. qdel's is TERM.
        signal = number % 128
        phase = Phase.CANCELLED if signal == 15 else Phase.FAILED
        return BatchState(phase, f"its script was killed by signal {signal}", name=name)
    return BatchState(Phase.FAILED, f"its script ended with status {number}", name=name)


def _clock(seconds: float) -> str:
    """`HH:MM:SS`, rounded up; hours may be many."""
    minutes, second = divmod(math.ceil(seconds), 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:{second:02}"
