"""What every batch system must offer, as pure functions: text in, text out.

An adapter runs nothing and reads no clock. It renders a script, gives the command lines, and reads what
the commands printed; so it is tested with captured output, and the agent alone decides when to call,
how long to wait and what a failure means. Submitting is the dangerous part (promise I12, submit once): the
scheduler knows our BatchJob by its *name*, and after an answer that was lost or makes no sense the agent
looks for that name before it submits again. "Not listed" is UNKNOWN, which never counts as an end. In what a
batch system deviates from the plain case, it says in its `Quirks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple, Protocol

import msgspec

from chappe.core.errors import Invalid, Unavailable


class SubmitRefused(Invalid):
    """The scheduler read the request and will not run it; the message says why."""

    default_code = "submit_refused"


class SubmitUnclear(Unavailable):
    """Nobody knows whether the scheduler took the job: look for its name before trying again."""

    default_code = "submit_unclear"


class SchedulerDown(Unavailable):
    """The scheduler's command failed without effect; try again later."""

    default_code = "scheduler_down"


class Phase(StrEnum):
    """Where a BatchJob is, as its scheduler says. Only ended, failed and cancelled prove an end."""

    PENDING = "pending"
    RUNNING = "running"
    ENDED = "ended"
    FAILED = "failed"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"


OVER = frozenset({Phase.ENDED, Phase.FAILED, Phase.CANCELLED})


class BatchState(msgspec.Struct, frozen=True):
    """The state of one BatchJob. `watch_pid` is a process of this machine whose end is a hint to ask
    again at once; 0 when there is none. `name` is the job's name where the answer has it: an id may have been
    given to another job since. `too_wide`: it waits, and will for ever, for there are not so many nodes."""

    phase: Phase
    message: str = ""
    watch_pid: int = 0
    name: str = ""
    too_wide: bool = False


class Batch(msgspec.Struct, frozen=True):
    """One allocation to ask for. `name` is how we find it again; directories are absolute.

    `cores`, `gpus` and `mem_bytes` per node (`cores` 0: all of a node; `mem_bytes` 0: what goes with the
    cores); `wall_s` None: no limit of ours; `kill_s` is how long the pilot may take to end its Jobs after
    TERM. `directives` are lines for the scheduler, `prologue` and `epilogue` lines of shell around the pilot.
    `template` is the text of the Site's own template for the script; empty for ours.
    """

    name: str
    session: str
    site_dir: str
    session_dir: str
    python: str
    nodes: int = 1
    cores: int = 0
    wall_s: float | None = None
    kill_s: float = 30.0
    env: dict[str, str] = {}
    gpus: int = 0
    mem_bytes: int = 0
    queue: str = ""
    account: str = ""
    qos: str = ""
    reservation: str = ""
    constraint: str = ""
    directives: tuple[str, ...] = ()
    prologue: tuple[str, ...] = ()
    epilogue: tuple[str, ...] = ()
    shell: str = "/bin/sh"
    template: str = ""


class Quirks(NamedTuple):
    """In what a batch system deviates from one that is ours alone and always tells the truth.

    `shared`: others use it too, so the Site's policy sets the pace. `ends_seen`: how often an end must be
    seen, in queries one after the other, before it is proof. `settle_s`: so long after a submission that got
    no clear answer, "no such job" is not believed. `verified` is the real system that the adapter was run on;
    empty: none, only outputs from documentation.
    """

    shared: bool = True
    ends_seen: int = 2
    settle_s: float = 30.0
    verified: str = ""


class Scheduler(Protocol):
    """The functions of one batch system."""

    kind: str
    quirks: Quirks

    def render_script(self, batch: Batch) -> str:
        """The batch script. Raises Invalid when the scheduler cannot give what is asked."""

    def submit_command(self, script: str, name: str) -> list[str]:
        """The command that submits the file `script` under `name`."""

    def parse_submit(self, stdout: str, stderr: str, exit_code: int) -> str:
        """The scheduler's id. Raises SubmitRefused, SchedulerDown or SubmitUnclear."""

    def find_commands(self, name: str) -> list[list[str]]:
        """The commands that together list all jobs called `name`, also those that have ended."""

    def parse_find(self, stdout: str, name: str, stderr: str = "", exit_code: int = 0) -> list[str]:
        """The ids of jobs with exactly this name, oldest first. Raises SchedulerDown: nobody knows."""

    def status_command(self, ids: Sequence[str]) -> list[str]:
        """One command for the states of all `ids`."""

    def parse_status(
        self, stdout: str, stderr: str = "", exit_code: int = 0
    ) -> dict[str, BatchState]:
        """The states by id. An id that is missing is unknown. Raises SchedulerDown."""

    def history_command(self, ids: Sequence[str]) -> list[str]:
        """One command for what became of `ids` that are not in the queue any more; empty: there is none."""

    def parse_history(
        self, stdout: str, stderr: str = "", exit_code: int = 0
    ) -> dict[str, BatchState]:
        """The ends that are on record, by id; nothing else. Raises SchedulerDown."""

    def cancel_command(self, ids: Sequence[str]) -> list[str]:
        """The command that ends jobs, waiting or running."""

    def parse_cancel(self, stdout: str, stderr: str, exit_code: int) -> None:
        """Raise SchedulerDown unless the command worked; that a job has ended already is no failure."""


class Plain:
    """What most batch systems share: the status query also tells of what has ended, and cancelling something
    that has ended is no failure."""

    def history_command(self, ids: Sequence[str]) -> list[str]:
        """None."""
        return []

    def parse_history(
        self, stdout: str, stderr: str = "", exit_code: int = 0
    ) -> dict[str, BatchState]:
        """Nothing."""
        return {}

    def parse_cancel(self, stdout: str, stderr: str, exit_code: int) -> None:
        """Any failure is one."""
        succeeded(stdout, stderr, exit_code, "the cancel command")


def succeeded(stdout: str, stderr: str, exit_code: int, what: str) -> str:
    """`stdout` of a command that must succeed. Raises SchedulerDown with what it said otherwise."""
    if exit_code != 0:
        raise SchedulerDown(f"{what} ended with {exit_code}: {said(stdout, stderr)}")
    return stdout


def said(stdout: str, stderr: str) -> str:
    """The end of what a command said, for a message."""
    return (stderr.strip() or stdout.strip() or "nothing")[-500:]
