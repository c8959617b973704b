"""The ledger of starts."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from chappe.core.errors import Invalid
from chappe.link.clock import new_id
from chappe.link.ledger import Claim, Claimant, Ledger, LedgerUnavailable


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger")


def test_a_start_is_claimed_once(ledger: Ledger) -> None:
    job, ours, theirs = new_id(), new_id(), new_id()
    assert ledger.claimed(job, 1) is None
    assert ledger.claim(job, 1, ours, 4, not_after=5e9) is Claim.CLAIMED
    assert ledger.claim(job, 1, theirs, 5) is Claim.TAKEN
    assert ledger.claim(job, 1, ours, 4) is Claim.OURS
    assert ledger.claim(job, 1, ours, 6) is Claim.OURS
    assert ledger.claimed(job, 1) == Claimant(ours, 4, 5e9)
    assert ledger.claim(job, 2, theirs, 5) is Claim.CLAIMED


def test_another_process_sees_the_claim(ledger: Ledger, tmp_path: Path) -> None:
    job, session = new_id(), new_id()
    ledger.claim(job, 1, session, 1)
    again = Ledger(tmp_path / "ledger")
    assert again.claim(job, 1, session, 1) is Claim.OURS
    assert again.claim(job, 1, new_id(), 2) is Claim.TAKEN


def test_claims_that_say_the_same_share_an_inode_and_stay_apart(
    ledger: Ledger, tmp_path: Path
) -> None:
    session, jobs = new_id(), [new_id() for _ in range(600)]
    for job in jobs:
        assert ledger.claim(job, 1, session, 4, 5e9, request=7) is Claim.CLAIMED
    paths = [tmp_path / "ledger" / job[-2:] / f"{job}.1" for job in jobs]
    assert len({path.lstat().st_ino for path in paths}) == 2  # the first, and the ticket
    assert ledger.claim(jobs[5], 1, session, 4, 5e9, request=7) is Claim.OURS
    paths[0].unlink()
    assert ledger.claimed(jobs[0], 1) is None
    assert ledger.claimed(jobs[1], 1) == Claimant(session, 4, 5e9, 7)
    assert ledger.claim(jobs[0], 1, new_id(), 1) is Claim.CLAIMED
    for other in (new_id() for _ in range(40)):
        assert ledger.claim(other, 1, session, 4, 5e9, request=7) is Claim.CLAIMED
        assert ledger.claimed(other, 1) == Claimant(session, 4, 5e9, 7)


@pytest.mark.parametrize("code", [errno.EPERM, errno.EXDEV, errno.EMLINK, errno.EOPNOTSUPP])
def test_without_hard_links_each_claim_is_made_anew(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("chappe.link.ledger.os.link", fail)
    session = new_id()
    for job in (new_id() for _ in range(20)):
        assert ledger.claim(job, 1, session, 1, 5e9) is Claim.CLAIMED
        assert ledger.claim(job, 1, new_id(), 1, 5e9) is Claim.TAKEN


def test_the_entry_is_where_the_design_says(ledger: Ledger, tmp_path: Path) -> None:
    job = new_id()
    ledger.claim(job, 3, new_id(), 1)
    assert os.listdir(tmp_path / "ledger" / job[-2:]) == [f"{job}.3"]


def test_of_many_claims_at_once_one_wins(ledger: Ledger) -> None:
    jobs = [new_id() for _ in range(50)]
    gate = threading.Barrier(6)
    won: list[str] = []

    def work() -> None:
        session = new_id()
        gate.wait()
        won.extend(job for job in jobs if ledger.claim(job, 1, session, 1) is Claim.CLAIMED)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == sorted(jobs)


def test_what_is_no_entry_of_ours_is_taken(ledger: Ledger, tmp_path: Path) -> None:
    job = new_id()
    place = tmp_path / "ledger" / job[-2:]
    place.mkdir(parents=True)
    (place / f"{job}.1").write_text("by hand")
    (place / f"{job}.2").symlink_to("nonsense")
    for attempt in (1, 2):
        assert ledger.claim(job, attempt, new_id(), 1) is Claim.TAKEN
        assert ledger.claimed(job, attempt) is not None
    assert ledger.prune(now=1e12) == 0


def test_only_expired_entries_are_pruned(ledger: Ledger) -> None:
    old, fresh, session = new_id(), new_id(), new_id()
    ledger.claim(old, 1, session, 1, not_after=1_000_000.0)
    ledger.claim(fresh, 1, session, 1, not_after=2_000_000.0)
    assert ledger.prune(now=1_000_001.0) == 0  # clocks differ: a day of margin
    assert ledger.prune(now=1_100_000.0) == 1
    assert ledger.claimed(old, 1) is None
    assert ledger.claim(fresh, 1, new_id(), 2) is Claim.TAKEN


def test_tickets_are_pruned_and_made_anew(ledger: Ledger, tmp_path: Path) -> None:
    session = new_id()
    for _ in range(3):
        ledger.claim(new_id(), 1, session, 1, not_after=1_000_000.0)
    assert len(os.listdir(tmp_path / "ledger" / "tickets")) == 1
    assert ledger.prune(now=1e9) == 3
    assert os.listdir(tmp_path / "ledger" / "tickets") == []
    for job in (new_id() for _ in range(3)):
        assert ledger.claim(job, 1, session, 1, not_after=1_000_000.0) is Claim.CLAIMED
        assert ledger.claimed(job, 1) == Claimant(session, 1, 1_000_000.0)


def test_pruning_is_done_in_portions(ledger: Ledger) -> None:
    for _ in range(5):
        ledger.claim(new_id(), 1, new_id(), 1, not_after=1.0)
    assert [ledger.prune(1e9, most=3) for _ in range(3)] == [3, 2, 0]


def test_a_ledger_that_never_was_has_nothing_to_prune(ledger: Ledger) -> None:
    assert ledger.prune(now=1e12) == 0


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE])
def test_a_full_or_broken_disk_is_a_transient_error(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(target: str, path: str) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("chappe.link.ledger.os.symlink", fail)
    with pytest.raises(LedgerUnavailable, match=os.strerror(code)) as caught:
        ledger.claim(new_id(), 1, new_id(), 1)
    assert caught.value.transient


@pytest.mark.parametrize("bad", ["", "../../x", "a" * 36, "/etc/passwd"])
def test_an_id_that_is_none_reaches_no_file(ledger: Ledger, bad: str) -> None:
    with pytest.raises(Invalid):
        ledger.claim(bad, 1, new_id(), 1)
    with pytest.raises(Invalid):
        ledger.claim(new_id(), 1, bad, 1)
    with pytest.raises(Invalid):
        ledger.claimed(bad, 1)
