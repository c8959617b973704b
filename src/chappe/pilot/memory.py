"""How much memory runs use, and whether the kernel's OOM killer took one.

Held where the kernel does not hold them (`cells`): the launcher looks, as often as costs a fiftieth of a
core at most, and never while no run has such a limit. One reading of /proc tells the parent and the resident
size of every process; what descends from a run's main process, or has left it and bears its mark, is the
run's. Pages that processes share count for each of them there, so before a run is ended its proportional
share (PSS) is asked, which is dear and exact. What is allocated faster than we look goes over the limit for
a moment.

A kill by the kernel shows as SIGKILL and as a count of our cgroup that has grown, if it has such a count.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from chappe.pilot.launch_wire import Key
from chappe.pilot.procs import mark_of

WEIGH: Key = ("", -2)
"""The key of the next look among the launcher's deadlines."""

LOOK_S = 0.25
SHARE = 50
"""A look is followed by at least so many times its own duration without one."""

_PAGE = os.sysconf("SC_PAGE_SIZE")
_CGROUPS = Path("/sys/fs/cgroup")


class Process(NamedTuple):
    """One line of the kernel's table."""

    parent: int
    session: int
    rss_bytes: int


def by_run(mains: Mapping[int, Key], session: str) -> dict[Key, dict[int, int]]:
    """Of each run (by its main process) the processes that it has now, with their resident size."""
    table = _table()
    owner: dict[int, Key | None] = dict(mains)
    found: dict[Key, dict[int, int]] = {key: {} for key in mains.values()}
    for pid, process in table.items():
        key = _owner(pid, table, owner, mains, session)
        if key in found:
            found[key][pid] = process.rss_bytes
    return found


def pss_bytes(pid: int) -> int:
    """The share of memory that is this process's alone, or its part of it; 0 when it is gone. Where the
    kernel does not tell (before 4.14), its resident size."""
    path = Path(f"/proc/{pid}/smaps_rollup")
    with suppress(OSError, ValueError, IndexError):
        for line in path.read_bytes().splitlines():
            if line.startswith(b"Pss:"):
                return int(line.split()[1]) * 1024
    process = None if path.exists() else _process(pid)
    return 0 if process is None else process.rss_bytes


def exact_bytes(pids: Iterable[int], limit: int) -> int:
    """What these processes use together, at least. Their shares are read one after the other: those of one
    that ends meanwhile fall to the others and are counted twice, so what is over the limit is read again."""
    pids = list(pids)
    used = sum(map(pss_bytes, pids))
    return used if used <= limit else min(used, sum(map(pss_bytes, pids)))


class OomKills:
    """The kernel's count of processes that it killed in our cgroup for want of memory."""

    def __init__(self, cgroup: str | None = None, root: Path = _CGROUPS) -> None:
        text = _read(Path("/proc/self/cgroup")) if cgroup is None else cgroup
        self._path = _events(text, root)
        self._seen = self._count()

    def another(self) -> bool:
        """Whether there was one that nobody has asked about yet."""
        if self._count() <= self._seen:
            return False
        self._seen += 1
        return True

    def known(self) -> None:
        """Those until now were of a cgroup within ours, whose limit is that of a run."""
        self._seen = self._count()

    def _count(self) -> int:
        if self._path is not None:
            for line in _read(self._path).splitlines():
                name, _, value = line.partition(" ")
                if name == "oom_kill" and value.strip().isdigit():
                    return int(value)
        return 0


def _events(cgroup: str, root: Path) -> Path | None:
    """The file with the count, of cgroup v1 or v2; None when there is none."""
    for line in cgroup.splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        below = path.lstrip("/")
        if "memory" in controllers.split(","):
            places = [root / "memory" / below / "memory.oom_control"]
        elif controllers == "":
            places = [root / below / "memory.events", root / "unified" / below / "memory.events"]
        else:
            continue
        for place in places:
            if place.is_file():
                return place
    return None


def _owner(
    pid: int,
    table: Mapping[int, Process],
    owner: dict[int, Key | None],
    mains: Mapping[int, Key],
    session: str,
) -> Key | None:
    path = []
    key: Key | None = None
    own = os.getpid()
    while pid not in owner:
        process = table.get(pid)
        path.append(pid)
        if process is None or pid <= 1 or pid == own:
            break
        if process.parent == own:
            key = mains.get(process.session) or _marked(pid, session)
            break
        owner[pid] = None  # against a circle of pids that were used again while we read
        pid = process.parent
    else:
        key = owner[pid]
    for one in path:
        owner[one] = key
    return key


def _marked(pid: int, session: str) -> Key | None:
    mark = mark_of(pid, session)
    return None if mark is None else (mark.job, mark.epoch)


def _table() -> dict[int, Process]:
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (process := _process(int(name))) is not None:
            found[int(name)] = process
    return found


def _process(pid: int) -> Process | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # pid (name) state ppid pgrp session …, where the name may hold spaces and parentheses
            fields = file.read().rpartition(b")")[2].split()
        return Process(int(fields[1]), int(fields[3]), int(fields[21]) * _PAGE)
    except (OSError, IndexError, ValueError):
        return None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
