"""Cutting the past: only what is old and in the backup, from the beginning, a little at a time."""

from __future__ import annotations

import msgspec
import pytest

from chappe.core.errors import Gone, NotFound
from chappe.core.jobs import JobSpec
from chappe.store import feed, retention
from chappe.store.feed import EventFilter
from chappe.testing.store import PilotRig, SiteRig, StoreRig, cores

ALL = EventFilter()
DAY_S = 86_400.0


@pytest.fixture
def site(rig: StoreRig) -> SiteRig:
    return rig.add_site("paris")


@pytest.fixture
def pilot(site: SiteRig) -> PilotRig:
    return site.add_pilot()


def done(pilot: PilotRig, count: int = 1, **fields: object) -> list[JobSpec]:
    """Jobs that ran and ended."""
    jobs = [pilot.rig.spec(pilot.site, **fields) for _ in range(count)]
    pilot.rig.submit(*jobs)
    grants = pilot.sync(capacity=cores(count)).grants
    pilot.sync(reports=[pilot.end(g, overtakes=True) for g in grants])
    return jobs


def head(rig: StoreRig) -> int:
    return rig.store.head(rig.user.project_n)


def seqs(rig: StoreRig, after: int | None = None) -> list[int]:
    found, _ = rig.ask(feed.page, rig.user, after, head(rig), 10_000, ALL)
    return [event.seq for event in found]


def cut(rig: StoreRig, held: int, before: float) -> int:
    """As the hub does it; how many commands it took."""
    commands = 0
    while rig.do(retention.cut_events, rig.user.project_n, held, before):
        commands += 1
    at: retention.Place | None = retention.BEGINNING
    while at is not None:
        at = rig.do(retention.cut_jobs, rig.user.project_n, before, at)
        commands += 1
    return commands


def test_what_is_old_and_held_goes_and_the_rest_has_no_gap(rig: StoreRig, pilot: PilotRig) -> None:
    (old,) = done(pilot)
    held = head(rig)
    rig.clock.advance(10 * DAY_S)
    (young,) = done(pilot)
    before = rig.clock() - DAY_S
    cut(rig, held, before)
    # The Job that was cut leaves its tombstone, said by an Event.
    assert seqs(rig) == list(range(held + 1, head(rig) + 1))
    with pytest.raises(NotFound):
        rig.job(old.id)
    assert rig.job(young.id).state == "JOB_FINISHED"
    counted = rig.sql("SELECT sum(count) FROM counter WHERE state = 'JOB_FINISHED'")[0][0]
    assert counted == 1


def test_what_the_backup_does_not_hold_stays(rig: StoreRig, pilot: PilotRig) -> None:
    (job,) = done(pilot)
    held = head(rig) - 1
    rig.clock.advance(10 * DAY_S)
    cut(rig, held, rig.clock())
    assert seqs(rig)[0] == held + 1
    assert rig.job(job.id).state == "JOB_FINISHED", "one of its events is not in the backup"


def test_a_cursor_from_before_the_cut_is_told_where_the_log_begins(
    rig: StoreRig, pilot: PilotRig
) -> None:
    done(pilot)
    held = head(rig)
    rig.clock.advance(DAY_S)
    done(pilot)
    rig.do(retention.cut_events, rig.user.project_n, held, rig.clock() - 1)
    for after in (0, 1, held - 1):
        with pytest.raises(Gone) as caught:
            seqs(rig, after)
        assert caught.value.code == "cursor_too_old"
        assert caught.value.details == {"first_seq": held + 1}
    assert seqs(rig, held) == seqs(rig) == list(range(held + 1, head(rig) + 1))


def test_a_log_that_was_cut_to_its_end_goes_on_with_the_next_seq(
    rig: StoreRig, pilot: PilotRig
) -> None:
    done(pilot)
    rig.clock.advance(DAY_S)
    last = head(rig)
    rig.do(retention.cut_events, rig.user.project_n, last, rig.clock())
    assert seqs(rig) == []
    with pytest.raises(Gone):
        seqs(rig, last - 1)
    rig.restart()
    done(pilot)
    assert seqs(rig, last) == list(range(last + 1, head(rig) + 1))


def test_each_command_is_small(
    rig: StoreRig, pilot: PilotRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "EVENTS", 10)
    monkeypatch.setattr(retention, "JOBS", 3)
    done(pilot, 20)
    held = head(rig)
    rig.clock.advance(DAY_S)
    before = rig.clock()
    assert rig.do(retention.cut_events, rig.user.project_n, held, before) == 10
    assert cut(rig, held, before) >= held // 10 - 1 + 20 // 3
    assert rig.sql("SELECT count(*) FROM job WHERE phase <> 'deleted'")[0][0] == 0


def test_a_clock_that_was_set_back_makes_no_gap(rig: StoreRig, site: SiteRig) -> None:
    rig.submit(rig.spec(site))
    rig.clock.advance(DAY_S)
    rig.submit(rig.spec(site))
    rig.clock.now -= DAY_S
    rig.submit(rig.spec(site))
    before = rig.clock() + DAY_S / 2
    all_of_them = seqs(rig)
    cut(rig, head(rig), before)
    left = seqs(rig)
    assert left == list(range(left[0], head(rig) + 1))
    assert 0 < len(left) < len(all_of_them)


def test_parents_stay_while_a_child_is_not_final(rig: StoreRig, pilot: PilotRig) -> None:
    (parent,) = done(pilot)
    blocker = rig.spec(pilot.site)
    child = rig.spec(pilot.site, parents=(parent.id, blocker.id))
    rig.submit(blocker, child)
    rig.clock.advance(10 * DAY_S)
    cut(rig, head(rig), rig.clock())
    assert rig.job(parent.id).state == "JOB_FINISHED"
    assert rig.states(child) == ["AWAITING_PARENTS"]
    grants = pilot.sync(capacity=cores(4)).grants
    pilot.sync(reports=[pilot.end(g, overtakes=True) for g in grants])
    assert rig.states(child) == ["PREPROCESSED"], (
        "it was not taken for the child of a failed parent"
    )


def test_what_is_not_final_outlives_its_events(rig: StoreRig, pilot: PilotRig) -> None:
    waits = rig.spec(pilot.site)
    rig.submit(waits)
    rig.clock.advance(10 * DAY_S)
    cut(rig, head(rig), rig.clock())
    assert seqs(rig) == []
    assert rig.states(waits) == ["PREPROCESSED"]
    rig.restart()
    (grant,) = pilot.sync(capacity=cores(1)).grants
    pilot.sync(reports=[pilot.end(grant, overtakes=True)])
    assert rig.states(waits) == ["JOB_FINISHED"]


def test_a_late_repetition_of_a_creation_does_not_run_it_again(
    rig: StoreRig, pilot: PilotRig
) -> None:
    job = pilot.rig.spec(pilot.site)
    body = rig.request(job)
    rig.create(body)
    (grant,) = pilot.sync(capacity=cores(1)).grants
    pilot.sync(reports=[pilot.end(grant, overtakes=True)])
    rig.clock.advance(2 * DAY_S)
    cut(rig, head(rig), rig.clock())
    with pytest.raises(Gone):
        rig.create(body)
    assert not pilot.sync(capacity=cores(1)).grants


def test_a_backup_of_another_hub_covers_nothing(rig: StoreRig, pilot: PilotRig) -> None:
    done(pilot)
    assert rig.ask(retention.covered, {rig.new_id(): 100}) == []
    mine = {rig.user.project_id: 10_000_000}
    assert rig.ask(retention.covered, mine) == [(rig.user.project_n, head(rig))]


def test_results_and_tags_go_with_their_job(rig: StoreRig, pilot: PilotRig) -> None:
    done(pilot)
    rig.clock.advance(DAY_S)
    cut(rig, head(rig), rig.clock())
    (row,) = rig.sql("SELECT phase, spec, outcome FROM job")
    assert tuple(row) == ("deleted", "", None)
    assert msgspec.json.encode(rig.sql("SELECT count(*) FROM result")[0][0]) == b"0"
