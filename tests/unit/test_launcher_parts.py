"""The launcher's smaller parts: deadlines, marks, programs and tails."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import uuid
from math import inf
from pathlib import Path

import pytest

from chappe.pilot.launch_timer import Deadlines, boot_now
from chappe.pilot.launch_wire import BaseEnv, Task
from chappe.pilot.procs import (
    ChildList,
    children_by_parent,
    find_marked,
    mark_of,
    of_a_job,
)
from chappe.pilot.spawn import Spawner, StartError, read_tail


def readable(fd: int, timeout_s: float) -> bool:
    return bool(select.select([fd], [], [], timeout_s)[0])


def test_deadlines_fire_in_order_and_at_once_when_past() -> None:
    deadlines = Deadlines()
    deadlines.add(inf, ("never", 1))
    deadlines.add(boot_now() + 3600, ("late", 1))
    assert not readable(deadlines.fd, 0)
    deadlines.add(boot_now() - 5, ("past", 1))
    deadlines.add(0.0, ("zero", 1))
    assert readable(deadlines.fd, 10)
    assert deadlines.due(boot_now()) == [("zero", 1), ("past", 1)]
    assert not readable(deadlines.fd, 0), "armed for the one that is left"
    deadlines.add(boot_now() + 0.01, ("soon", 1))
    assert readable(deadlines.fd, 10)
    assert deadlines.due(boot_now()) == [("soon", 1)]
    deadlines.clear()
    assert deadlines.due(inf) == []
    os.close(deadlines.fd)


def test_deadlines_of_the_dead_are_noticed() -> None:
    deadlines = Deadlines()
    for i in range(100):
        deadlines.add(boot_now() + 3600, ("job", i))
    assert not deadlines.bloated(live=100)
    assert deadlines.bloated(live=10)
    os.close(deadlines.fd)


def test_children_are_listed_both_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = tmp_path / "a) R 1 (b"  # what could break the parsing of /proc/PID/stat
    name.symlink_to("/bin/sleep")
    by_list, by_parent = ChildList(), ChildList()
    monkeypatch.setattr(by_parent, "_fd", -1)  # as if the kernel had no list
    known = children_by_parent(os.getpid())
    with subprocess.Popen([name, "600"]) as child:
        try:
            for children in (by_list, by_parent):
                assert children.besides(known) == [child.pid]
                assert children.besides([*known, child.pid]) == []
                # Others of this process belong to other threads, which the kernel's list leaves out.
                assert child.pid in children.besides([])
        finally:
            child.kill()


def test_a_mark_is_read_from_the_environment() -> None:
    session = str(uuid.uuid4())
    env = {"CHAPPE_SESSION": session, "CHAPPE_JOB_ID": "job", "CHAPPE_EPOCH": "7"}
    with subprocess.Popen(["/bin/sleep", "600"], env=env) as child:
        try:
            assert mark_of(child.pid, session) == (child.pid, "job", 7)
            assert find_marked(session) == [(child.pid, "job", 7)]
            assert of_a_job(find_marked(session)[0])
            assert mark_of(child.pid, session[:-1]) is None
        finally:
            child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert mark_of(child.pid, session) is None, "a zombie is gone"
    with subprocess.Popen(["/bin/sleep", "600"], env={"CHAPPE_SESSION": session}) as child:
        try:
            assert not of_a_job(find_marked(session)[0])
        finally:
            child.kill()
    assert find_marked(session) == []


def make_task(directory: Path, **fields: object) -> Task:
    defaults: dict[str, object] = {
        "job": "job",
        "epoch": 1,
        "attempt": 1,
        "argv": ["/bin/true"],
        "env": {},
        "cwd": str(directory),
        "start_by": inf,
    }
    return Task(**{**defaults, **fields})  # type: ignore[arg-type]


@pytest.fixture
def spawner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Spawner:
    monkeypatch.chdir(tmp_path)  # put back at the end, since a spawner moves the process
    return Spawner("session")


def code_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("libc_has_setsid", [True, False])
def test_both_ways_to_start_give_the_same_process(
    spawner: Spawner, tmp_path: Path, libc_has_setsid: bool
) -> None:
    spawner._has_setsid = libc_has_setsid
    spawner.set_base(BaseEnv({"PATH": os.defpath, "A": "base"}, str(tmp_path / "shared")))
    ask = (
        "import os; print(os.getcwd(), os.getsid(0) == os.getpgid(0) == os.getpid(),"
        " os.environ['A'], os.environ['CHAPPE_SESSION'], os.readlink('/proc/self/fd/0'))"
    )
    argv = [sys.executable, "-S", "-c", ask]
    pid = spawner.start(make_task(tmp_path, argv=argv, env={"A": "own"}, log="shared"))
    assert code_of(pid) == 0
    assert (tmp_path / "shared").read_text() == f"{tmp_path} True own session /dev/null\n"
    with pytest.raises(StartError, match="cannot execute '/no/such'"):
        spawner.start(make_task(tmp_path, argv=["/no/such"]))
    spawner.settle()
    assert Path.cwd() == Path("/")


def test_a_program_is_found_in_the_path_of_its_task(spawner: Spawner, tmp_path: Path) -> None:
    (tmp_path / "bin" / "prog").mkdir(parents=True)  # a directory of that name is no program
    (tmp_path / "bin2").mkdir()
    (tmp_path / "bin2" / "prog").write_text("#!/bin/sh\nexit 5\n")
    env = {"PATH": f"{tmp_path}/bin:{tmp_path}/bin2"}
    with pytest.raises(StartError, match="'prog' is not found in PATH"):
        spawner.start(make_task(tmp_path, argv=["prog"], env=env))
    (tmp_path / "bin2" / "prog").chmod(0o755)
    assert code_of(spawner.start(make_task(tmp_path, argv=["prog"], env=env))) == 5
    # With a slash: as seen from the task's directory, whatever PATH says.
    assert code_of(spawner.start(make_task(tmp_path / "bin2", argv=["./prog"], env=env))) == 5


def test_another_shared_log_takes_the_place_of_the_first(spawner: Spawner, tmp_path: Path) -> None:
    for name in ("one", "two"):
        spawner.set_base(BaseEnv({}, str(tmp_path / name)))
        argv = ["/bin/echo", name]
        for _ in range(2):
            assert code_of(spawner.start(make_task(tmp_path, argv=argv, log="shared"))) == 0
    assert (tmp_path / "one").read_text() == "one\none\n"
    assert (tmp_path / "two").read_text() == "two\ntwo\n"


def test_a_tail_is_read_only_from_a_plain_file(tmp_path: Path) -> None:
    err = tmp_path / "err"
    task = make_task(tmp_path, stderr=str(err), tail_bytes=1 << 20)
    assert read_tail(task) == "", "no file"
    err.write_bytes(b"x" * 10_000 + b"\xff end")
    assert read_tail(task) == "x" * 4091 + "\ufffd end", "at most 4 KiB"
    assert read_tail(make_task(tmp_path, log="shared", tail_bytes=9)) == "", "no file of its own"
    err.unlink()
    os.mkfifo(err)
    assert read_tail(task) == ""
    err.unlink()
    err.symlink_to("/etc/passwd")
    assert read_tail(task) == ""
