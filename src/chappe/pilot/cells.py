"""Memory limits that the kernel holds: a cgroup for each run, where cgroups were given to us.

Given is what belongs to us, as the kernel's documentation of delegation has it: the directory of our own
cgroup. To root all belongs, which says nothing, so root's runs are watched instead (`memory`).
Version 1 and 2 differ in names, and in one rule: where a cgroup of version 2 has children with limits, it
must have no processes itself, so what is in ours goes into a child of it first.

A process is born in its cgroup: the launcher, which has one thread, enters it, spawns and comes back, so that
nothing the process starts can be outside. What cannot be done is no failure of a run: it is watched then.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from chappe.pilot.launch_wire import Key

ROOT = Path("/sys/fs/cgroup")
PREFIX = "chappe-"
HOME = f"{PREFIX}home"
"""The child that holds what was in our cgroup; a launcher that finds itself there has a sibling."""
_TRIES = 20


class _Names(NamedTuple):
    """What a version calls its files: the limit, those that bound swap with it, and the count of kills."""

    limit: str
    swap: tuple[tuple[str, str], ...]
    events: str


#: `{}` is the limit itself. The kernel kills all of a cgroup of version 2, if it is told to.
_V1 = _Names(
    "memory.limit_in_bytes", (("memory.memsw.limit_in_bytes", "{}"),), "memory.oom_control"
)
_V2 = _Names("memory.max", (("memory.swap.max", "0"), ("memory.oom.group", "1")), "memory.events")


class Cells:
    """The cgroups of one launcher. Used from its one thread."""

    def __init__(self, ours: Path, home: Path, names: _Names, mark: str) -> None:
        self._ours = ours
        self._home = home
        self._names = names
        self._mark = mark
        self._made = 0
        self._cells: dict[Key, Path] = {}
        self._left: list[Path] = []

    @classmethod
    def found(
        cls, mark: str, root: Path = ROOT, own: str | None = None, uid: int | None = None
    ) -> Cells | None:
        """Ours, if we were given a cgroup in which memory can be limited, and that was tried; else None.

        `mark` tells them from those of other launchers. `own` is the text of /proc/self/cgroup.
        """
        uid = os.geteuid() if uid is None else uid
        try:
            text = Path("/proc/self/cgroup").read_text() if own is None else own
            for ours, names in _places(text, root):
                if uid == 0 or ours.stat().st_uid != uid:
                    continue
                made = cls(ours, ours if names is _V1 else _share(ours), names, mark)
                made._try()
                return made
        except OSError:
            return None
        return None

    def _try(self) -> None:
        """Make one, enter it, and remove it. Raises OSError."""
        cell = self._make(1 << 40)
        try:
            _write(cell / "cgroup.procs", os.getpid())
            self._come_back()
        finally:
            cell.rmdir()

    def _make(self, limit: int) -> Path:
        self._made += 1
        cell = self._ours / f"{PREFIX}{self._mark}-{self._made}"
        cell.mkdir()
        try:
            _write(cell / self._names.limit, limit)
            for name, value in self._names.swap:
                # Not every kernel counts swap.
                with suppress(FileNotFoundError):
                    _write(cell / name, value.format(limit))
        except OSError:
            cell.rmdir()
            raise
        return cell

    @contextmanager
    def around(self, key: Key, limit: int) -> Generator[None]:
        """What is started inside is born in the run's cgroup, if there can be one."""
        with suppress(OSError):
            if key not in self._cells:
                self._cells[key] = self._make(limit)
            try:
                _write(self._cells[key] / "cgroup.procs", os.getpid())
            except OSError:
                self.leave(key)
                raise
        try:
            yield
        finally:
            if key in self._cells:
                # What was started has been started, whatever becomes of us.
                with suppress(OSError):
                    self._come_back()

    def _come_back(self) -> None:
        _write(self._home / "cgroup.procs", os.getpid())

    def holds(self, key: Key) -> bool:
        """Whether the kernel holds this run to its limit."""
        return key in self._cells

    def killed(self, key: Key) -> bool:
        """Whether the kernel killed something of this run for want of memory."""
        cell = self._cells.get(key)
        if cell is None:
            return False
        with suppress(OSError):
            for line in (cell / self._names.events).read_text().splitlines():
                name, _, count = line.partition(" ")
                if name == "oom_kill":
                    return count.strip() not in ("", "0")
        return False

    def leave(self, key: Key) -> None:
        """The run is over: remove its cgroup, or later, when something of it is still there."""
        cell = self._cells.pop(key, None)
        if cell is not None:
            self._left.append(cell)
        still = []
        for each in self._left:
            try:
                each.rmdir()
            except FileNotFoundError:
                continue
            except OSError:
                still.append(each)
        self._left = still


def _places(text: str, root: Path) -> Generator[tuple[Path, _Names]]:
    """Where our own cgroup is, by each version that may limit memory; the one that is in charge first."""
    lines = [line.split(":", 2) for line in text.splitlines() if line.count(":") >= 2]
    for _, controllers, path in lines:
        if "memory" in controllers.split(","):
            yield root / "memory" / path.lstrip("/"), _V1
    for _, controllers, path in lines:
        if controllers:
            continue
        place = root / path.lstrip("/")
        place = place.parent if place.name == HOME else place
        if place.name.endswith(".service"):
            # systemd could not start it again, as it does with an agent: no process may be there then.
            continue
        with suppress(OSError):
            if "memory" in (place / "cgroup.controllers").read_text().split():
                yield place, _V2


def _share(ours: Path) -> Path:
    """Let children of a cgroup of version 2 have limits; where its own processes went. Raises OSError."""
    home = ours / HOME
    home.mkdir(exist_ok=True)
    for _ in range(_TRIES):
        inside = (ours / "cgroup.procs").read_text().split()
        if not inside:
            break
        for pid in inside:
            with suppress(ProcessLookupError):
                _write(home / "cgroup.procs", pid)
    if "memory" not in (ours / "cgroup.subtree_control").read_text().split():
        _write(ours / "cgroup.subtree_control", "+memory")
    return home


def _write(path: Path, value: object) -> None:
    """One write, as these files want it, to a file that is there. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, str(value).encode())
    finally:
        os.close(fd)
