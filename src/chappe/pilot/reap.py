"""Reaping: how a run ended, and that nothing of it is left.

SIGCHLD and wait4, not a pidfd for each child: measured, the signal with its wake-up byte costs 4 µs and
serves all children that ended meanwhile, while opening, registering and closing a pidfd costs 6.5 µs for
each; and pidfds tell nothing of the orphans that a subreaper inherits, which wait4(-1) does.

What a main process leaves behind, in its group or out of it (setsid, a double fork), becomes our child,
because the launcher is a subreaper: a child that is no main process is a *stranger*. Strangers of a run
whose main process lives are its daemons and stay; those of an ended run are killed, each with its whole
group in one stroke that no fork can run away from, and the end is told only when they are reaped and no
others came. Nothing slips through between: a process is handed to us before its parent becomes a zombie
that we could reap. Nothing else is hit: a stranger is our unreaped child, so neither its number nor its
group's nor its session's can be in a second use. (A chain of forks of which each makes a session of its own
could outrun this for as long as it lives; the end is then told after 10 s, with a line in the log.)
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from chappe.pilot.launch_wire import IoCount, Key
from chappe.pilot.procs import ChildList, mark_of

if TYPE_CHECKING:
    from resource import struct_rusage

WARM = "warm"
"""In the place of a Job's id: the mark, and the key, of zygotes and of workers without a call."""


class Usage(NamedTuple):
    """What one call took, in the terms of getrusage(2)."""

    ru_utime: float
    ru_stime: float
    ru_maxrss: int
    ru_oublock: int


class Exit(NamedTuple):
    """How a main process ended: its wait status and its usage."""

    status: int
    usage: struct_rusage | Usage


class Reaper:
    """Reaps every child of this process. Nobody else in it may wait for any."""

    def __init__(self, session: str) -> None:
        self._session = session
        self._children = ChildList()
        self._mains: dict[int, Key] = {}
        # Kept until the run is settled: its strangers may be in its session.
        self._sessions: dict[int, Key] = {}
        self._owners: dict[int, frozenset[Key]] = {}
        self._counted: dict[Key, IoCount] = {}

    def watch(self, pid: int, key: Key, *, count_io: bool = False) -> None:
        """`pid`, leader of a session of its own, is the main process of `key` from now on."""
        self._mains[pid] = key
        self._sessions[pid] = key
        if count_io:
            self._counted[key] = IoCount()

    def keep(self, pid: int) -> None:
        """`pid` is a zygote, or a worker without a call; its end is told under (WARM, pid)."""
        self._mains[pid] = (WARM, pid)

    def forget(self, pid: int, key: Key) -> None:
        """The run is settled; its session's number may be another's from now on."""
        if self._sessions.get(pid) == key:
            del self._sessions[pid]

    def counted(self, key: Key, usage: struct_rusage | Usage) -> IoCount | None:
        """What was read and written since `watch`, if that was to be counted; given once.

        The kernel adds what a process did to its parent's account when the parent waits for it: so the
        account of the main process, read before we reap it, holds all descendants that were waited for;
        and those that became ours are added when we reap them. Without /proc (another user's process,
        hidepid) what `usage` knows must do: blocks of the main process and of whom it waited for.
        """
        found = self._counted.pop(key, None)
        if found is None or found.source == "proc" or isinstance(usage, Usage):
            return found
        return IoCount(
            storage_read_bytes=usage.ru_inblock * 512,
            storage_written_bytes=usage.ru_oublock * 512,
            source="rusage",
        )

    def collect(self) -> list[tuple[Key, Exit]]:
        """Reap all that ended; the main processes among them."""
        exits: list[tuple[Key, Exit]] = []
        while True:
            try:
                pid, status, usage = os.wait4(self._next_to_reap(), os.WNOHANG)
            except ChildProcessError:
                return exits
            if pid == 0:
                return exits
            if (key := self._mains.pop(pid, None)) is not None:
                exits.append((key, Exit(status, usage)))
            else:
                self._owners.pop(pid, None)

    def _next_to_reap(self) -> int:
        """Which child to wait for: any, unless somebody's account is to be read before it is closed."""
        if not self._counted:
            return -1
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None:
            return -1
        pid = ended.si_pid
        key = self._mains.get(pid)
        if key is None:
            with suppress(ProcessLookupError):
                key = self._sessions.get(os.getsid(pid))
        if key is None and len(owners := self._owners.get(pid, frozenset())) == 1:
            (key,) = owners
        if key is not None and key in self._counted:
            self._counted[key] = _add(self._counted[key], _account(pid))
        return pid

    def settle(self, known: Collection[Key], alive: Callable[[Key], bool]) -> set[Key]:
        """Kill the strangers of runs that are not `alive`; the runs that still have some.

        `known` are all runs not yet told as ended. A stranger without a mark, in a session of its own, can
        be of any run that was known when it was first seen: it is killed when none of them is alive.
        """
        held: set[Key] = set()
        for pid in self._children.besides(self._mains):
            owners = self._owners.get(pid)
            if owners is None:
                owners = self._owners[pid] = self._find_owners(pid, known)
            if any(alive(key) for key in owners):
                continue
            if kill_group(os.getpgid(pid), signal.SIGKILL):
                held |= owners
        return held

    def _find_owners(self, pid: int, known: Collection[Key]) -> frozenset[Key]:
        with suppress(ProcessLookupError):
            if (key := self._sessions.get(os.getsid(pid))) is not None:
                return frozenset((key,))
        mark = mark_of(pid, self._session)
        if mark is not None and mark.job:
            return frozenset(((mark.job, mark.epoch),))
        return frozenset(known)


def kill_group(pgid: int, signum: int) -> bool:
    """Signal a process group of which an unreaped child is a member; whether it could be signalled."""
    try:
        os.killpg(pgid, signum)
    except (ProcessLookupError, PermissionError):  # nobody, or only some who changed their user
        return False
    return True


_ACCOUNT = (b"rchar", b"wchar", b"syscr", b"syscw", b"read_bytes", b"write_bytes")


def _account(pid: int) -> IoCount:
    """What the kernel says that a process read and wrote, with those that it waited for."""
    try:
        with open(f"/proc/{pid}/io", "rb") as file:
            lines = dict(line.split(b": ") for line in file.read().splitlines())
        read, written, reads, writes, from_storage, to_storage = (int(lines[n]) for n in _ACCOUNT)
        return IoCount(read, written, reads, writes, from_storage, to_storage)
    except (OSError, KeyError, ValueError):
        return IoCount(source="rusage")


def _add(a: IoCount, b: IoCount) -> IoCount:
    if "rusage" in (a.source, b.source):
        return IoCount(source="rusage")
    return IoCount(
        a.read_bytes + b.read_bytes,
        a.written_bytes + b.written_bytes,
        a.read_calls + b.read_calls,
        a.write_calls + b.write_calls,
        a.storage_read_bytes + b.storage_read_bytes,
        a.storage_written_bytes + b.storage_written_bytes,
    )
