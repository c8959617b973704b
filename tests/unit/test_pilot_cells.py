"""Cgroups of runs, on a tree of plain files that a stand-in for the kernel fills as cgroups are made."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from chappe.pilot.cells import HOME, Cells
from chappe.pilot.launch_wire import Key

GIB = 1 << 30
ONE: Key = ("a", 1)
UID = os.geteuid() or 12_345
V1 = "9:pids:/\n4:memory:/batch/7\n0::/\n"
V2 = "0::/user/7\n"
FILES = {
    1: {"memory.limit_in_bytes": "", "memory.oom_control": "under_oom 0\noom_kill 0\n"},
    2: {"memory.max": "", "memory.swap.max": "", "memory.events": "max 3\noom_kill 0\n"},
}


class Kernel:
    """What it does when a directory is made, and what it was told: (file, words)."""

    def __init__(self, root: Path, version: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.ours = root / ("memory/batch/7" if version == 1 else "user/7")
        self.own = V1 if version == 1 else V2
        self.files = FILES[version] | {"cgroup.procs": ""}
        self.told: list[tuple[str, str]] = []
        self.deaf: set[str] = set()
        self.ours.mkdir(parents=True)
        self._fill(self.ours)
        if version == 2:
            for name, text in (
                ("cgroup.controllers", "cpu memory\n"),
                ("cgroup.subtree_control", ""),
            ):
                (self.ours / name).write_text(text)
        if os.geteuid() == 0:
            os.chown(self.ours, UID, -1)
        mkdir, rmdir, write = Path.mkdir, Path.rmdir, os.write

        def make(path: Path, *args: int, **kwargs: bool) -> None:
            mkdir(path, *args, **kwargs)  # type: ignore[arg-type]
            if path.is_relative_to(root):
                self._fill(path)

        def remove(path: Path) -> None:
            if path.is_relative_to(root) and not (path / "busy").exists():
                for file in path.iterdir():
                    file.unlink()
            rmdir(path)

        def tell(fd: int, words: bytes) -> int:
            path = Path(f"/proc/self/fd/{fd}").resolve()
            if not path.is_relative_to(root):
                return write(fd, words)
            name = str(path.relative_to(self.ours))
            if any(name.endswith(end) for end in self.deaf):
                raise OSError(22, "it does not want to")
            self.told.append((name, words.decode()))
            return write(fd, words)

        monkeypatch.setattr(Path, "mkdir", make)
        monkeypatch.setattr(Path, "rmdir", remove)
        monkeypatch.setattr("chappe.pilot.cells.os.write", tell)

    def _fill(self, path: Path) -> None:
        for name, text in self.files.items():
            (path / name).write_text(text)

    def found(self, uid: int = UID) -> Cells | None:
        return Cells.found("me", self.root, self.own, uid)

    def cells(self) -> list[str]:
        """Those that are there now, but for the home."""
        return sorted(p.name for p in self.ours.iterdir() if p.is_dir() and p.name != HOME)


@pytest.fixture(params=[1, 2])
def version(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def kernel(tmp_path: Path, version: int, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(tmp_path / "cgroup", version, monkeypatch)


def test_a_run_is_born_in_a_cgroup_with_its_limit_and_the_launcher_comes_back(
    kernel: Kernel, version: int
) -> None:
    cells = kernel.found()
    assert cells is not None
    assert kernel.cells() == [], "what was tried is gone"
    kernel.told.clear()
    with cells.around(ONE, GIB):
        kernel.told.append(("", "spawned"))
    home = "cgroup.procs" if version == 1 else f"{HOME}/cgroup.procs"
    me = str(os.getpid())
    (cell,) = kernel.cells()
    limit = "memory.limit_in_bytes" if version == 1 else "memory.max"
    told = [entry for entry in kernel.told if "swap" not in entry[0]]
    assert told == [
        (f"{cell}/{limit}", str(GIB)),
        (f"{cell}/cgroup.procs", me),
        ("", "spawned"),
        (home, me),
    ]
    assert cells.holds(ONE)
    with cells.around(ONE, GIB):  # its next stage
        assert kernel.cells() == [cell]
    cells.leave(ONE)
    assert kernel.cells() == []
    assert not cells.holds(ONE)


def test_what_was_in_a_cgroup_of_version_2_goes_into_a_child_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = Kernel(tmp_path / "cgroup", 2, monkeypatch)
    lines = iter(["41\n42\n", ""])
    read = Path.read_text
    monkeypatch.setattr(
        Path,
        "read_text",
        lambda path: next(lines) if path == kernel.ours / "cgroup.procs" else read(path),
    )
    assert kernel.found() is not None
    home = f"{HOME}/cgroup.procs"
    assert kernel.told[:3] == [(home, "41"), (home, "42"), ("cgroup.subtree_control", "+memory")]
    kernel.own = f"0::/user/7/{HOME}\n"  # another launcher, started by what went there
    lines = iter([""])
    assert kernel.found() is not None


@pytest.mark.parametrize("deaf", ["cgroup.procs", "memory.limit_in_bytes", "memory.max"])
def test_what_cannot_be_tried_is_not_ours(kernel: Kernel, deaf: str) -> None:
    if deaf in kernel.files:
        kernel.deaf.add(deaf)
        assert kernel.found() is None
        assert kernel.cells() == []


def test_a_cgroup_of_another_user_and_root_s_own_are_left_alone(kernel: Kernel) -> None:
    before = sorted(kernel.ours.iterdir())
    for uid in (0, UID + 1):
        assert kernel.found(uid) is None
    assert kernel.told == []
    assert sorted(kernel.ours.iterdir()) == before


def test_a_service_is_left_as_systemd_made_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = Kernel(tmp_path / "cgroup", 2, monkeypatch)
    service = kernel.ours.rename(kernel.ours.with_name("chappe-agent.service"))
    before = sorted(service.iterdir())
    assert Cells.found("me", kernel.root, f"0::/user/{service.name}\n", UID) is None
    assert sorted(service.iterdir()) == before


@pytest.mark.parametrize("own", ["", "0::/\n", "4:memory:/nowhere\n", "nonsense"])
def test_without_a_cgroup_there_are_none(tmp_path: Path, own: str) -> None:
    assert Cells.found("me", tmp_path, own, UID) is None


def test_a_run_for_which_no_cgroup_can_be_made_is_started_all_the_same(kernel: Kernel) -> None:
    cells = kernel.found()
    assert cells is not None
    kernel.deaf.add("cgroup.procs")
    started = []
    with cells.around(ONE, GIB):
        started.append(subprocess.run(["true"], check=True).returncode)
    assert started == [0]
    assert not cells.holds(ONE), "so it is watched"
    assert not cells.killed(ONE)


def test_a_kill_by_the_kernel_is_told_of_the_run_that_it_befell(kernel: Kernel) -> None:
    cells = kernel.found()
    assert cells is not None
    other: Key = ("b", 1)
    for key in (ONE, other):
        with cells.around(key, GIB):
            pass
    first, _ = kernel.cells()
    name = "memory.oom_control" if "memory.oom_control" in kernel.files else "memory.events"
    (kernel.ours / first / name).write_text("oom 1\noom_kill 1\n")
    assert cells.killed(ONE)
    assert not cells.killed(other)


def test_a_cgroup_with_something_left_in_it_is_removed_later(kernel: Kernel) -> None:
    cells = kernel.found()
    assert cells is not None
    with cells.around(ONE, GIB):
        pass
    (cell,) = kernel.cells()
    busy = kernel.ours / cell / "busy"
    busy.touch()
    cells.leave(ONE)
    assert kernel.cells() == [cell]
    busy.unlink()
    cells.leave(("b", 1))
    assert kernel.cells() == []
