"""The pilot's journal, outbox and recovery: what a restarted head knows."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from chappe.core.leases import Outcome, Reason, Verdict
from chappe.link import journal as records
from chappe.link.journal import End, Granted, Recovered, Settled
from chappe.link.spool import SpoolFull
from chappe.pilot import journal
from chappe.pilot.journal import NUMBERS_AHEAD, open_journal
from chappe.pilot.launch_wire import Ended, Snapshot, Started
from chappe.pilot.outbox import Outbox, Start
from chappe.pilot.recovery import plan, unclear
from chappe.wire.submission import Submission
from chappe.wire.sync import Grant, ReportVerdict


def grant(job: str, epoch: int = 1, submission: str | None = None) -> Grant:
    return Grant(job, epoch, 1, msgspec.Raw(b'{"x": 1.0}'), submission)


def end(job: str, epoch: int = 1, **fields: Any) -> End:
    return End(job, epoch, 1, "end", 5.0, Outcome(Reason.EXIT, 0), started_at=4.0, **fields)


def submission(name: str) -> Submission:
    return Submission(name, msgspec.Raw(b'{"key": "k"}'), "sig")


def reopened(path: Path) -> Recovered:
    found, damage = open_journal(path, 1e9)
    found.close()
    assert damage == ""
    return found.recover()


def test_everything_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    open_, _ = open_journal(path, 1e9)
    open_.append(records.granted(7, (1, 30), [grant("a", 2, "s"), grant("b")], [submission("s")]))
    open_.append(records.ended([end("a", 2, result="/x/out.json")]))
    open_.close()
    found = reopened(path)
    assert (found.answered, found.seen) == (7, (1, 30))
    assert {g.job: (g.epoch, bytes(g.spec)) for g in found.grants.values()} == {
        "a": (2, b'{"x": 1.0}'),
        "b": (1, b'{"x": 1.0}'),
    }
    assert found.ends["a"].result == "/x/out.json"
    assert bytes(found.submissions["s"].statement) == b'{"key": "k"}'


def test_settled_jobs_are_forgotten_and_orphans_are_not(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    open_, _ = open_journal(path, 1e9)
    open_.append(records.granted(1, (1, 1), [grant("a"), grant("b"), grant("o")], []))
    open_.append(records.ended([end("a"), end("o", orphan=True)]))
    open_.append([Settled([("a", 1), ("b", 1), ("o", 1)])])
    open_.close()
    found = reopened(path)
    assert found.grants == {}
    assert list(found.ends) == ["o"]


def test_a_later_epoch_outlives_the_settling_of_an_earlier_one() -> None:
    found = Recovered()
    found.add(Granted(1, (1, 1), [grant("a", 1)]))
    found.add(Granted(2, (1, 2), [grant("a", 2)]))
    found.add(Settled([("a", 1)]))
    assert found.grants["a"].epoch == 2


def test_numbers_are_reserved_ahead_and_go_on_above_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    open_, _ = open_journal(path, 1e9)
    open_.reserve(0, 0)
    ahead = open_.numbers
    assert min(ahead.request_no, ahead.report_no) > NUMBERS_AHEAD
    size = path.stat().st_size
    open_.reserve(10, 10)
    assert path.stat().st_size == size  # not for each number
    open_.reserve(ahead.request_no - 5, 10)
    assert open_.numbers.request_no > ahead.request_no
    last = open_.numbers
    open_.close()
    again, _ = open_journal(path, 1e9)
    assert again.numbers == last
    again.close()


def test_compaction_keeps_what_is_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "_COMPACT_BYTES", 20_000)
    path = tmp_path / "journal"
    open_, _ = open_journal(path, 1e9)
    open_.reserve(0, 0)
    open_.append(records.granted(3, (1, 9), [grant("live", 1, "s")], [submission("s")]))
    open_.append(records.ended([end("late")]))
    for k in range(1000):
        open_.append(records.granted(4 + k, (1, 10 + k), [grant(f"j{k}")], [submission(f"s{k}")]))
        open_.append([Settled([(f"j{k}", 1)])])
    numbers = open_.numbers
    open_.close()
    assert path.stat().st_size < 60_000
    found = reopened(path)
    assert list(found.grants) == ["live"]
    assert list(found.ends) == ["late"]
    assert "s" in found.submissions
    assert (found.answered, found.seen) == (1003, (1, 1009))
    assert (found.request_no, found.report_no) == (numbers.request_no, numbers.report_no)


def test_a_torn_tail_is_cut_and_damage_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    open_, _ = open_journal(path, 1e9)
    open_.append(records.granted(1, (1, 1), [grant("a")], []))
    whole = path.stat().st_size
    open_.append(records.granted(2, (1, 2), [grant("b")], []))
    open_.append(records.granted(3, (1, 3), [grant("c")], []))
    open_.close()
    data = path.read_bytes()
    path.write_bytes(data[:-3])
    assert list(reopened(path).grants) == ["a", "b"]
    path.write_bytes(data[: whole + 20] + b"?" + data[whole + 21 :])
    assert list(records.read(path)[0].grants) == ["a"]
    assert "damaged" in records.read(path)[1]
    found, damage = open_journal(path, 1e9)
    found.close()
    assert "damaged" in damage
    assert list(found.recover().grants) == ["a"]
    assert found.numbers.report_no == found.numbers.request_no == 10**15  # the clock's
    assert (tmp_path / "journal.corrupt-1").exists()
    assert list(reopened(path).grants) == ["a"]


def test_a_full_disk_is_an_error_and_leaves_the_journal_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal"
    open_, _ = open_journal(path, 1e9)
    open_.append(records.granted(1, (1, 1), [grant("a")], []))

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(SpoolFull):
            open_.append(records.granted(2, (1, 2), [grant("b")], []))
    open_.append(records.granted(3, (1, 3), [grant("c")], []))
    open_.close()
    assert list(reopened(path).grants) == ["a", "c"]


# --- the outbox


def test_numbers_rise_and_starts_go_before_ends() -> None:
    box = Outbox(10)
    box.add_end(end("a"))
    box.add_start(Start("b", 1, 1, 3.0))
    taken = box.take(10)
    assert [(r.no, r.job, r.kind) for r in taken] == [(11, "b", "start"), (12, "a", "end")]
    assert (taken[1].started_at, taken[1].at) == (4.0, 5.0)
    assert len(box) == 0
    assert not box.empty


def test_an_end_brings_its_start_along() -> None:
    box = Outbox()
    box.add_start(Start("a", 1, 1, 3.0))
    box.add_end(end("a"))
    assert [r.kind for r in box.take(10)] == ["end"]


def test_a_start_in_flight_is_not_told_again_after_its_end() -> None:
    box = Outbox()
    box.add_start(Start("a", 1, 1, 3.0))
    box.take(10)
    box.add_end(end("a"))
    box.give_back()
    assert [r.kind for r in box.take(10)] == ["end"]


def test_verdicts_settle_and_what_got_none_goes_again_under_a_new_number() -> None:
    box = Outbox()
    box.add_end(end("a"))
    box.add_end(end("b"))
    box.add_end(end("c"))
    assert [r.no for r in box.take(2)] == [1, 2]
    settled = box.settle([ReportVerdict(2, "stale_lease"), ReportVerdict(99, "applied")])
    assert [(d.job, v) for d, v in settled] == [("b", Verdict.STALE_LEASE)]
    assert [(r.no, r.job) for r in box.take(10)] == [(3, "a"), (4, "c")]
    box.settle([ReportVerdict(3, "something new"), ReportVerdict(4, "applied")])
    assert box.empty


# --- recovery


def known(
    *, running: tuple[str, ...] = (), ended: tuple[str, ...] = (), waiting: tuple[str, ...] = ()
) -> Snapshot:
    return Snapshot(
        "s",
        1,
        [Started(job, 1, 1, 100, 4.0) for job in running],
        [Ended(job, 1, 1, "exit", 0, None, 4.0, 5.0) for job in ended],
        [(job, 1) for job in waiting],
        more=False,
    )


def recovered(*jobs: str, ends: tuple[str, ...] = ()) -> Recovered:
    found = Recovered()
    found.add(Granted(1, (1, 1), [grant(job) for job in jobs]))
    found.ends = {job: end(job) for job in ends}
    return found


def test_a_living_launcher_knows_what_was_started() -> None:
    found = recovered("runs", "waits", "ended", "claimed", "fresh", "over", ends=("over",))
    snapshot = known(running=("runs",), ended=("ended", "stray"), waiting=("waits",))
    assert {g.job for g in unclear(found, snapshot)} == {"claimed", "fresh"}
    made = plan(found, snapshot, {"claimed"})
    assert [(g.job, s.pid) for g, s in made.running] == [("runs", 100)]
    assert [g.job for g in made.handed] == ["waits"]
    assert [g.job for g in made.ended] == ["ended"]
    assert {g.job for g in made.startable} == {"claimed", "fresh"}
    assert [(g is not None and g.job, e.job) for g, e in made.over] == [("over", "over")]
    assert made.strays == [("stray", 1)]
    assert made.lost == []


def test_with_a_dead_launcher_every_claimed_start_is_lost() -> None:
    found = recovered("claimed", "fresh", "over", ends=("over",))
    assert {g.job for g in unclear(found, None)} == {"claimed", "fresh"}
    made = plan(found, None, {"claimed"})
    assert [g.job for g in made.lost] == ["claimed"]
    assert [g.job for g in made.startable] == ["fresh"]
    assert [e.job for _, e in made.over] == ["over"]


def test_a_run_that_the_journal_does_not_know_is_held_all_the_same() -> None:
    made = plan(recovered(), known(running=("x",)), set())
    ((stub, _),) = made.running
    assert (stub.job, stub.epoch, stub.attempt) == ("x", 1, 1)


def test_an_end_of_an_earlier_epoch_is_not_the_end_of_this_one() -> None:
    found = recovered("a")
    found.grants["a"] = grant("a", 2)
    found.ends["a"] = end("a", 1)
    made = plan(found, None, {"a"})
    assert [g.epoch for g in made.lost] == [2]
    assert [(g, e.epoch) for g, e in made.over] == [(None, 1)]
