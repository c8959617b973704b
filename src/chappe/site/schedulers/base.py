"""What every batch system must offer, as pure functions: text in, text out.

An adapter runs nothing and reads no clock. It renders a script, gives the command lines, and reads what
the commands printed; so it is tested with captured output, and the agent alone decides when to call,
how long to wait and what a failure means. Submitting is the dangerous part (promise I12, submit once): the
scheduler knows our BatchJob by its *name*, and after an answer that was lost or makes no sense the agent
looks for that name before it submits again. "Not listed" is UNKNOWN, which never counts as an end.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from enum import StrEnum
from typing import Protocol

import msgspec

from chappe.core.errors import Invalid, Unavailable

PILOT_RESTARTS = 3
SESSION_ENDED_EXIT = 3
"""Exit status of a pilot whose Session is over: it must not be started again."""


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
    again at once; 0 when there is none."""

    phase: Phase
    message: str = ""
    watch_pid: int = 0


class Batch(msgspec.Struct, frozen=True):
    """One allocation to ask for. `name` is how we find it again; directories are absolute.

    `cores` per node (0: all of a node); `wall_s` None: no limit of ours; `kill_s` is how long the pilot
    may take to end its Jobs after TERM.
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


class Scheduler(Protocol):
    """The functions of one batch system."""

    kind: str

    def render_script(self, batch: Batch) -> str:
        """The batch script. Raises Invalid when the scheduler cannot give what is asked."""

    def submit_command(self, script: str, name: str) -> list[str]:
        """The command that submits the file `script` under `name`."""

    def parse_submit(self, stdout: str, stderr: str, exit_code: int) -> str:
        """The scheduler's id. Raises SubmitRefused, SchedulerDown or SubmitUnclear."""

    def find_command(self, name: str) -> list[str]:
        """The command that lists jobs called `name`, also those that have ended."""

    def parse_find(self, stdout: str, name: str) -> list[str]:
        """The ids of jobs with exactly this name, oldest first."""

    def status_command(self, ids: Sequence[str]) -> list[str]:
        """One command for the states of all `ids`."""

    def parse_status(self, stdout: str) -> dict[str, BatchState]:
        """The states by id. An id that is missing is unknown."""

    def cancel_command(self, scheduler_id: str) -> list[str]:
        """The command that ends a job, waiting or running."""


#: The pilot reads a thousand grants at a time. As glibc comes, it keeps what such a reply took, in one arena
#: a thread: 2.3 KB a grant, and 1.3 so. Jobs do not inherit these (their environment is made by the pilot).
_MALLOC = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
}


def pilot_body(batch: Batch) -> str:
    """What every batch script does after its head: run the pilot, and again if it dies (≤ 3 times).

    Exit 0 means done, `SESSION_ENDED_EXIT` that the Session is over. TERM is passed on, and then the
    pilot is not started again. The shell stays: it is what a local scheduler sends TERM to.
    """
    lines = [f"export CHAPPE_SESSION={shlex.quote(batch.session)}"]
    lines += [f"export {name}={value}" for name, value in _MALLOC.items()]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in sorted(batch.env.items())]
    lines += [
        f"cd {shlex.quote(batch.site_dir)} || exit 1",
        _LOOP.format(
            python=shlex.quote(batch.python),
            session_dir=shlex.quote(batch.session_dir),
            over=SESSION_ENDED_EXIT,
            restarts=PILOT_RESTARTS,
        ),
    ]
    return "\n".join(lines)


_LOOP = """\
session_dir={session_dir}
umask 077
ending=
pilot=
restarts=0
trap 'ending=1; [ -z "$pilot" ] || kill -TERM "$pilot" 2>/dev/null' TERM INT
while [ -z "$ending" ]; do
    {python} -P -m chappe.pilot --dir "$session_dir" >>"$session_dir/pilot.out" 2>&1 </dev/null &
    pilot=$!
    # A trapped signal ends `wait` early: go on until the pilot itself has ended.
    while :; do
        wait "$pilot"
        status=$?
        kill -0 "$pilot" 2>/dev/null || break
    done
    case $status in
        0) exit 0 ;;
        {over}) exit {over} ;;
    esac
    restarts=$((restarts + 1))
    [ "$restarts" -le {restarts} ] || break
    echo "the pilot ended with status $status: restart $restarts" >>"$session_dir/pilot.out"
done
exit "$status"
"""
