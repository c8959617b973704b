"""Which process is the agent: the pid file, and what it proves.

A number alone proves nothing: pids are reused, and a Site's directory may be mounted on many machines. The
file also names the host, the boot and the start of the process. The last agent is known to be over when it
wrote down its orderly end, or when host and boot are ours and that very process is gone; then its id goes
to the Hub, which else refuses a second agent for as long as the first is heard.

Which agent the Hub heard last is not always the last one: an agent may be killed before it could greet the
Hub, or between its greeting and its pid file. So each also names those before it that the Hub may still
believe in, and says so in a file of its own before it greets.
"""

from __future__ import annotations

import os
from contextlib import suppress
from enum import StrEnum
from pathlib import Path

import msgspec

from chappe.core.errors import Conflict
from chappe.link.clock import now
from chappe.link.files import write_atomic
from chappe.site.calls import CallRecord

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
BEFORE_MOST = 8


class AgentRunning(Conflict):
    """An agent serves this directory already; the message says where."""

    default_code = "agent_running"


class Presence(StrEnum):
    """What is known of the agent of a directory. Crashed: it is gone, or the machine was restarted since."""

    RUNNING = "running"
    STOPPED = "stopped"
    CRASHED = "crashed"
    ELSEWHERE = "elsewhere"


class PidFile(msgspec.Struct, frozen=True, omit_defaults=True):
    """The process that is the agent, or was until `stopped_at`.

    `start` is in clock ticks since boot, `since` and `stopped_at` in seconds since 1970. `before` are agents
    that are over, and that the Hub may have heard last, newest first.
    """

    agent: str
    pid: int
    start: int
    host: str
    boot: str
    since: float
    stopped_at: float | None = None
    before: tuple[str, ...] = ()

    @property
    def presence(self) -> Presence:
        """What this proves, seen from here."""
        if self.stopped_at is not None:
            return Presence.STOPPED
        if self.host != hostname():
            return Presence.ELSEWHERE
        alive = self.boot == boot_id() and started(self.pid) == self.start
        return Presence.RUNNING if alive else Presence.CRASHED

    @property
    def proven_over(self) -> bool:
        """Whether that agent certainly does nothing any more."""
        seen = self.presence
        return seen is Presence.STOPPED or (seen is Presence.CRASHED and self.boot == boot_id())


class AgentStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """What `chappe site status` shows."""

    presence: Presence
    directory: str
    pid: int = 0
    host: str = ""
    since: float | None = None
    agent: str = ""
    message: str = ""
    calls: CallRecord | None = None
    """How often the scheduler was called."""


def read(path: Path) -> PidFile | None:
    """The pid file; None when there is none, or when it is damaged (then it proves nothing)."""
    with suppress(FileNotFoundError, msgspec.DecodeError):
        return msgspec.json.decode(path.read_bytes(), type=PidFile)
    return None


def over(*found: PidFile | None) -> tuple[str, ...]:
    """The agents of these files that are certainly over, with those before them."""
    ids = [
        id
        for one in found
        if one is not None and one.proven_over
        for id in (one.agent, *one.before)
    ]
    return tuple(dict.fromkeys(ids))[:BEFORE_MOST]


def write(path: Path, agent: str, before: tuple[str, ...] = (), pid: int | None = None) -> PidFile:
    """Say that this process (or a child of it, `pid`) is the agent, or is about to be."""
    pid = os.getpid() if pid is None else pid
    start = started(pid)
    assert start is not None, "a process sees itself, and its children, in /proc"  # noqa: S101
    mine = PidFile(agent, pid, start, hostname(), boot_id(), now(), before=before)
    write_atomic(path, msgspec.json.encode(mine), 0o600)
    return mine


def mark_stopped(path: Path, mine: PidFile) -> None:
    """Write down this process's orderly end, unless another agent has taken over."""
    if read(path) == mine:
        over = msgspec.structs.replace(mine, stopped_at=now())
        write_atomic(path, msgspec.json.encode(over), 0o600)


def refuse_second(path: Path, found: PidFile | None) -> None:
    """Raise AgentRunning when the agent of the pid file `path` lives on this machine."""
    if found is not None and found.presence is Presence.RUNNING:
        raise AgentRunning(
            f"an agent runs already for {path.parent.parent}: process {found.pid} on {found.host}; "
            "`chappe site stop` ends it"
        )


def describe(directory: Path, found: PidFile | None) -> AgentStatus:
    """The status for people."""
    if found is None:
        return AgentStatus(
            Presence.STOPPED, str(directory), message="no agent was ever started for this directory"
        )
    told = {
        Presence.RUNNING: f"the agent runs here, process {found.pid}",
        Presence.CRASHED: f"the agent (process {found.pid}) is gone and did not say goodbye; "
        "`chappe site start` goes on where it left off",
        Presence.ELSEWHERE: f"the agent was started on {found.host}, process {found.pid}; "
        "from here nobody can see whether it still runs",
        Presence.STOPPED: "the agent is stopped",
    }[found.presence]
    return AgentStatus(
        found.presence, str(directory), found.pid, found.host, found.since, found.agent, told
    )


def started(pid: int) -> int | None:
    """When a process started (clock ticks since boot); None when it is gone or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # pid (name) state ppid … starttime is field 22; the name may hold anything
    fields = stat.rpartition(b")")[2].split()
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def hostname() -> str:
    """This machine's name."""
    return os.uname().nodename


def boot_id() -> str:
    """What this boot of the machine is called; it also tells machines of one name apart."""
    return BOOT_ID.read_text().strip()
