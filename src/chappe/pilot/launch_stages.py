"""The stages of a run: its hooks around its command, and the removal of its scratch directory.

    preprocess → command → postprocess | on_error | on_timeout → scratch

Most runs have the one stage, their command. Each stage is a process of its own, started when nothing of the
one before is left; all are one run, with one beginning and one end, on the same cores. What hooks want they
write into a file for the head, which decides; here only their success counts. A preprocess hook that wants
something ends the run here: the head looks at it, and has the command started if it is to be.
"""

from __future__ import annotations

import os
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from chappe.pilot.launch_wire import Care, HookEnd, IoCount, Task

if TYPE_CHECKING:
    from resource import struct_rusage

    from chappe.pilot.launch_table import Run
    from chappe.pilot.reap import Usage

COMMAND = "command"
PREPROCESS = "preprocess"
SCRATCH = "scratch"

_NO_CARE = Care()
_CLEAR_S = 60.0
_CLEAR = ("/usr/bin/rm", "/bin/rm")


class Stage(NamedTuple):
    """A process to start next, and the seconds that it may take (infinity: no limit)."""

    name: str
    task: Task
    limit_s: float


class CommandEnd(NamedTuple):
    """How the command of a run ended. `code` is negative for a signal."""

    code: int
    usage: struct_rusage | Usage
    wall_s: float
    io: IoCount | None
    tail: str


def first(task: Task) -> Stage:
    """The stage that a task begins with. Raises OSError when its scratch directory cannot be made."""
    care = task.care
    if care is None:
        return _command(task)
    if care.scratch:
        _make_scratch(care.scratch, care.scratch_base)
    return _hook(task, PREPROCESS, {}) or _command(task)


def following(run: Run) -> Stage | None:
    """The stage after the one that is over (`run.stage`), None when the run is."""
    care = run.task.care
    if care is None:
        return None
    if run.stage == PREPROCESS and _well(run):
        if not os.path.lexists(care.verdict):
            return _command(run.task)
        # The head will have the command started, with what is in the scratch directory, or clear it.
        return None
    if run.stage == COMMAND and run.command is not None and run.reason in (None, "timeout"):
        name, facts = _facts(run, run.command)
        stage = _hook(run.task, name, facts)
        if stage is not None:
            return stage
    if run.stage != SCRATCH and care.scratch:
        return _clearing(run.task, care.scratch)
    return None


def hook_end(run: Run, status: int) -> HookEnd:
    """How the hook that was `run.stage` ended."""
    code = os.waitstatus_to_exitcode(status)
    problem = ""
    if run.stage_reason == "timeout":
        problem = f"took longer than its limit of {run.limit_s:g} s"
    elif run.stage_reason is not None:
        problem = f"was ended ({run.stage_reason})"
    elif code < 0:
        problem = f"died of signal {-code}"
    elif code > 0:
        problem = f"exited with {code}"
    return HookEnd(run.stage, problem)


def _make_scratch(path: str, base: str) -> None:
    """Make an attempt's directory, and what there must be of its path below `base`: private, each of them.
    It may be there from a start that was cut short. Raises OSError, also where another user was first."""
    directory = base
    for part in os.path.relpath(path, base).split("/"):
        directory = os.path.join(directory, part)
        with suppress(FileExistsError):
            os.mkdir(directory, 0o700)
        status = os.lstat(directory)
        if status.st_uid != os.getuid() or status.st_mode & 0o077:
            raise PermissionError(f"{directory} is not ours alone: remove it")


def _well(run: Run) -> bool:
    return run.reason is None and run.hook is not None and not run.hook.problem


def _command(task: Task) -> Stage:
    return Stage(COMMAND, task, inf if task.wall_limit_s is None else task.wall_limit_s)


def _facts(run: Run, command: CommandEnd) -> tuple[str, dict[str, str]]:
    """Which hook is next, and what it is told of the command."""
    code = command.code
    reason = run.end_reason(code)
    facts: dict[str, str] = {"CHAPPE_REASON": reason}
    facts["CHAPPE_EXIT" if code >= 0 else "CHAPPE_SIGNAL"] = str(abs(code))
    if reason == "timeout":
        return "on_timeout", facts
    return ("postprocess" if code == 0 else "on_error"), facts


def _hook(task: Task, name: str, facts: dict[str, str]) -> Stage | None:
    care = task.care or _NO_CARE
    hook = care.hook(name)
    if hook is None:
        return None
    # Whatever the command, or an attempt cut short, left there is no verdict of this hook.
    with suppress(OSError):
        os.unlink(care.verdict)
    env = {**task.env, **facts, "CHAPPE_HOOK": name, "CHAPPE_VERDICT": care.verdict}
    return Stage(name, msgspec.structs.replace(task, argv=hook.argv, env=env), hook.limit_s)


def _clearing(task: Task, scratch: str) -> Stage | None:
    """`rm`, so that a large directory holds nobody up; usually there is nothing in it."""
    with suppress(OSError):
        os.rmdir(scratch)
    program = next(filter(os.path.exists, _CLEAR), "")
    if not program or not os.path.lexists(scratch):
        return None
    argv = [program, "-rf", "--one-file-system", "--", scratch]
    quiet = msgspec.structs.replace(task, argv=argv, env={}, cwd="/", log="none", stderr="")
    return Stage(SCRATCH, quiet, _CLEAR_S)
