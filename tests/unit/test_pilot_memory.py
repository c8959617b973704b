"""Whose memory is whose, and what the kernel counts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from chappe.pilot import memory
from chappe.pilot.memory import OomKills, by_run, exact_bytes, pss_bytes

MIB = 1 << 20

#: A parent and a child of its own; both wait until their standard input ends.
FAMILY = """\
import os, sys
if os.fork() == 0:
    held = bytearray(os.urandom(1)) * (64 << 20)
    os.write(1, b"%d\\n" % os.getpid())
sys.stdin.read()
"""


@pytest.fixture
def family() -> Iterator[tuple[int, int]]:
    process = subprocess.Popen(
        [sys.executable, "-c", FAMILY], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    yield process.pid, int(process.stdout.readline())
    process.communicate(timeout=60)


def test_a_run_is_its_main_process_and_all_that_descends_from_it(family: tuple[int, int]) -> None:
    parent, child = family
    key, other = ("job", 1), ("other", 1)
    found = by_run({parent: key, 0: other}, "no-session")
    assert set(found[key]) == {parent, child}
    assert found[key][child] > 64 * MIB > found[key][parent]
    assert os.getpid() not in found[other]
    assert 64 * MIB < pss_bytes(child) < 128 * MIB


def test_shares_that_were_counted_twice_are_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    # The first ends between the two readings, and what it shared falls to the second.
    shares = iter([50, 100, 0, 100])
    monkeypatch.setattr(memory, "pss_bytes", lambda _: next(shares))
    assert exact_bytes([1, 2], 120) == 100
    monkeypatch.setattr(memory, "pss_bytes", lambda _: 70)
    assert exact_bytes([1, 2], 120) == 140


def test_a_process_that_is_gone_uses_nothing() -> None:
    ended = subprocess.Popen(["/bin/true"])
    ended.wait()
    assert pss_bytes(ended.pid) == 0


@pytest.mark.parametrize(
    ("cgroup", "file"),
    [
        ("0::/user/job\n", "user/job/memory.events"),
        ("0::/user/job\n", "unified/user/job/memory.events"),
        ("5:cpu:/x\n4:memory:/job\n0::/\n", "memory/job/memory.oom_control"),
    ],
)
def test_each_kill_by_the_kernel_is_told_once(cgroup: str, file: str, tmp_path: Path) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text("low 0\noom 5\noom_kill 3\n")
    kills = OomKills(cgroup, tmp_path)
    assert not kills.another()
    path.write_text("low 0\noom 7\noom_kill 5\n")
    assert [kills.another() for _ in range(3)] == [True, True, False]


@pytest.mark.parametrize("cgroup", ["", "0::/nowhere\n", "nonsense\n", "1:cpu:/\n"])
def test_without_a_count_nothing_was_killed_by_the_kernel(cgroup: str, tmp_path: Path) -> None:
    assert not OomKills(cgroup, tmp_path).another()
