"""Clock and ids, crash points, atomic files and paths below a base."""

from __future__ import annotations

import os
import signal
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from chappe.core import faults as core_faults
from chappe.core.errors import Invalid
from chappe.core.ids import created_ms, is_uuid7
from chappe.link import clock, faults, files
from chappe.link.retry import NO_RETRY, RetryPolicy, jitter_s


def test_ids_are_uuid7_of_now_and_rise() -> None:
    before = int(clock.now() * 1000)
    made = [clock.new_id() for _ in range(20_000)]
    after = int(clock.now() * 1000)
    assert all(is_uuid7(text) for text in made)
    assert made == sorted(set(made))
    assert before <= created_ms(made[0]) <= after
    # The counter may run ahead of the clock by a few milliseconds, not more.
    assert created_ms(made[-1]) <= after + 20


def test_ids_rise_when_the_clock_steps_back(monkeypatch: pytest.MonkeyPatch) -> None:
    first = clock.new_id()
    monkeypatch.setattr("chappe.link.clock.time.time", lambda: 1_000_000.0)
    assert first < clock.new_id() < clock.new_id()


def test_ids_of_threads_are_distinct() -> None:
    made: list[list[str]] = [[] for _ in range(4)]

    def work(mine: list[str]) -> None:
        mine.extend(clock.new_id() for _ in range(3_000))

    threads = [threading.Thread(target=work, args=(mine,)) for mine in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({text for mine in made for text in mine}) == 12_000
    assert all(mine == sorted(mine) for mine in made)


def test_a_forked_child_does_not_repeat_its_parents_random_tails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ids = clock._Ids()
    ids.new()
    prepared = list(ids._tails)
    ids.forget()
    ids.new()
    assert not set(prepared) & set(ids._tails)


def test_boottime_goes_on() -> None:
    assert 0 < clock.boottime() <= clock.boottime()


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int]]]:
    calls: list[tuple[int, int]] = []
    monkeypatch.setattr("chappe.link.faults.os.kill", lambda pid, sig: calls.append((pid, sig)))
    yield calls
    core_faults.arm(None)


def test_a_crash_point_kills_at_the_nth_time(killed: list[tuple[int, int]]) -> None:
    faults.arm_from_env({"CHAPPE_CRASH_AT": "after_claim:3"})
    for _ in range(2):
        core_faults.reach("after_claim")
        core_faults.reach("elsewhere")
    assert killed == []
    core_faults.reach("after_claim")
    assert killed == [(os.getpid(), signal.SIGKILL)]


def test_a_crash_point_without_a_number_kills_at_once(killed: list[tuple[int, int]]) -> None:
    faults.arm_from_env({"CHAPPE_CRASH_AT": "x"})
    core_faults.reach("x")
    assert len(killed) == 1


def test_nothing_is_armed_without_the_variable(killed: list[tuple[int, int]]) -> None:
    faults.arm_from_env({})
    core_faults.reach("x")
    assert killed == []


def test_a_crash_that_was_once_does_not_come_again(
    killed: list[tuple[int, int]], tmp_path: Path
) -> None:
    environ = {"CHAPPE_CRASH_AT": "x", "CHAPPE_CRASH_ONCE": str(tmp_path / "done")}
    faults.arm_from_env(environ)
    core_faults.reach("x")
    core_faults.arm(None)
    faults.arm_from_env(environ)
    core_faults.reach("x")
    assert len(killed) == 1


@pytest.mark.parametrize("text", ["x:0", "x:-1", "x:two", ":1", "x:²"])
def test_a_wrong_crash_point_is_an_error(text: str) -> None:
    with pytest.raises(Invalid) as caught:
        faults.arm_from_env({"CHAPPE_CRASH_AT": text})
    assert caught.value.field == "CHAPPE_CRASH_AT"


def test_write_atomic_replaces_and_keeps_the_mode(tmp_path: Path) -> None:
    path = tmp_path / "state"
    old = os.umask(0o077)
    try:
        files.write_atomic(path, b"one", 0o644)
        files.write_atomic(path, b"two", 0o644, durable=False)
    finally:
        os.umask(old)
    assert path.read_bytes() == b"two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert os.listdir(tmp_path) == ["state"]


def test_write_atomic_leaves_the_old_file_when_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state"
    files.write_atomic(path, b"old")

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("chappe.link.files.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["state"]


def test_below_follows_links_that_stay_and_refuses_those_that_lead_out(tmp_path: Path) -> None:
    base = tmp_path / "data"
    (base / "real").mkdir(parents=True)
    (base / "inside").symlink_to("real")
    (base / "outside").symlink_to(tmp_path)
    (base / "sibling").symlink_to("../data-of-others")
    assert files.below(base, "inside/x") == base / "real" / "x"
    assert files.below(base, "not/yet") == base / "not" / "yet"
    assert files.make_below(base, "a/b") == base / "a" / "b"
    assert (base / "a" / "b").is_dir()
    for path in ("outside", "outside/x", "sibling/x"):
        with pytest.raises(files.PathEscape) as caught:
            files.make_below(base, path)
        assert caught.value.code == "path_escape"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data"]


@pytest.mark.parametrize("path", ["/etc", "../x", "a/../../x", "~root/x", "a\nb", "a\0b"])
def test_below_refuses_what_is_no_relative_path(tmp_path: Path, path: str) -> None:
    with pytest.raises(Invalid):
        files.below(tmp_path, path)


def test_retries_end_by_number_and_by_budget() -> None:
    policy = RetryPolicy(tries=3, budget_s=10.0, first_s=1.0, most_s=4.0)
    assert NO_RETRY.pause_s(1, 0.0) is None
    assert policy.pause_s(3, 0.0) is None
    assert policy.pause_s(1, 10.1) is None
    assert policy.pause_s(1, 0.0, retry_after_s=11.0) is None
    assert policy.pause_s(1, 0.0, retry_after_s=7.0) == 7.0
    pauses = [policy.pause_s(2, 0.0) for _ in range(200)]
    assert all(pause is not None and 0 <= pause < 2.0 for pause in pauses)
    assert len(set(pauses)) > 100


def test_jitter_is_bounded_for_any_number_of_failures() -> None:
    assert all(0 <= jitter_s(n, 0.1, 10.0) < 10.0 for n in (0, 5, 60, 10_000))
