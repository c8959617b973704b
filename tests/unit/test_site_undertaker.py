"""What a dead pilot left, and the requests that say it in its name."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from chappe.core import limits
from chappe.core.leases import Outcome, Reason
from chappe.link import journal, spool
from chappe.link.clock import new_id
from chappe.link.ledger import Ledger
from chappe.site.undertaker import last_syncs, take_stock
from chappe.wire.sync import Grant, HeldJob, JobEpoch

SESSION = new_id()


def grant(job: str, epoch: int = 3, attempt: int = 1) -> Grant:
    return Grant(job, epoch, attempt, msgspec.Raw(b"{}"))


def end(job: str, epoch: int = 3) -> journal.End:
    return journal.End(job, epoch, 1, "end", 20.0, Outcome(Reason.EXIT, exit=0), started_at=10.0)


def write(directory: Path, records: list[journal.Record]) -> None:
    with spool.SpoolWriter(directory / journal.FILE) as writer:
        writer.append(journal.encode(records))


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger")


def test_what_was_claimed_was_started_and_the_rest_was_not(tmp_path: Path, ledger: Ledger) -> None:
    running, waiting, done, others = (new_id() for _ in range(4))
    write(
        tmp_path,
        [
            journal.Numbers(100, 200),
            journal.Granted(7, (1, 50), [grant(j) for j in (running, waiting, done, others)]),
            journal.Ended([end(done)]),
        ],
    )
    ledger.claim(running, 1, SESSION, 3)
    ledger.claim(done, 1, SESSION, 3)
    ledger.claim(others, 1, new_id(), 2)
    estate = take_stock(tmp_path, SESSION, ledger)
    assert estate.started == [HeldJob(running, 3, started=True)]
    assert {r.job for r in estate.never_started} == {waiting, others}
    assert [e.job for e in estate.ends] == [done]
    assert (estate.answered, estate.seen) == (7, (1, 50))


def test_what_the_hub_gave_its_verdict_on_is_not_said_again(tmp_path: Path, ledger: Ledger) -> None:
    job = new_id()
    write(
        tmp_path,
        [
            journal.Granted(1, (1, 1), [grant(job)]),
            journal.Ended([end(job)]),
            journal.Settled([(job, 3)]),
        ],
    )
    estate = take_stock(tmp_path, SESSION, ledger)
    assert (estate.ends, estate.started, estate.never_started) == ([], [], [])


def test_an_end_of_an_earlier_epoch_says_nothing_about_the_grant(
    tmp_path: Path, ledger: Ledger
) -> None:
    job = new_id()
    write(
        tmp_path,
        [
            journal.Granted(1, (1, 1), [grant(job, epoch=3)]),
            journal.Ended([end(job, epoch=3)]),
            journal.Granted(2, (1, 2), [grant(job, epoch=5, attempt=2)]),
        ],
    )
    estate = take_stock(tmp_path, SESSION, ledger)
    assert estate.never_started == [JobEpoch(job, 5)]
    assert [e.epoch for e in estate.ends] == [3]


def test_without_a_journal_only_lost_replies_are_disowned(tmp_path: Path, ledger: Ledger) -> None:
    requests = last_syncs(take_stock(tmp_path, SESSION, ledger), SESSION)
    assert [r.request_no for r in requests] == [1, 2]
    assert requests[-1].answered == 1


def test_numbers_go_on_above_the_pilot_s_and_the_last_request_disowns_lost_replies(
    tmp_path: Path, ledger: Ledger
) -> None:
    a, b, unstarted = new_id(), new_id(), new_id()
    write(
        tmp_path,
        [
            journal.Numbers(100, 200),
            journal.Granted(7, (2, 9), [grant(a), grant(b), grant(unstarted)]),
            journal.Ended([end(a), end(b)]),
        ],
    )
    first, last = last_syncs(take_stock(tmp_path, SESSION, ledger), SESSION)
    assert (first.request_no, first.answered, first.seen) == (101, 7, (2, 9))
    assert [r.no for r in first.reports] == [201, 202]
    assert first.returned == [JobEpoch(unstarted, 3)]
    assert first.capacity is None, "a dead pilot takes no work"
    assert (last.request_no, last.answered, last.reports) == (102, 101, [])


def test_many_ends_go_in_parts_and_those_to_come_stay_held(tmp_path: Path, ledger: Ledger) -> None:
    jobs = [new_id() for _ in range(limits.REPORTS_PER_SYNC + 3)]
    write(
        tmp_path,
        [
            *journal.granted(1, (1, 1), [grant(j) for j in jobs], []),
            *journal.ended([end(j) for j in jobs]),
        ],
    )
    first, second, last = last_syncs(take_stock(tmp_path, SESSION, ledger), SESSION)
    assert len(first.reports) == limits.REPORTS_PER_SYNC
    assert [h.job for h in first.held] == jobs[limits.REPORTS_PER_SYNC :]
    assert [r.no for r in second.reports] == [len(first.reports) + n for n in (1, 2, 3)]
    assert (second.held, last.held) == ([], [])


def test_a_damaged_journal_disowns_nothing_silently(tmp_path: Path, ledger: Ledger) -> None:
    known, lost = new_id(), new_id()
    write(tmp_path, [journal.Granted(1, (1, 1), [grant(known)])])
    path = tmp_path / journal.FILE
    size = path.stat().st_size
    with spool.SpoolWriter(path) as writer:
        writer.append(journal.encode([journal.Granted(2, (1, 2), [grant(lost)])]))
        writer.append(journal.encode([journal.Numbers(9, 9)]))
    data = bytearray(path.read_bytes())
    data[size + 20] ^= 0xFF
    path.write_bytes(data)
    requests = last_syncs(take_stock(tmp_path, SESSION, ledger), SESSION)
    assert requests[0].returned == [JobEpoch(known, 3)]
    assert {r.answered for r in requests} == {0}
