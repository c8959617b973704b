"""Reading the EventLog: filters, the committed head, and how far a page has looked."""

from __future__ import annotations

import pytest

from chappe.core import limits
from chappe.core.jobs import Envelope, JobSpec
from chappe.store import feed
from chappe.store.feed import EventFilter, page
from chappe.testing.store import SiteRig, StoreRig, cores
from chappe.wire.events import Event

ALL = EventFilter()


@pytest.fixture
def site(rig: StoreRig) -> SiteRig:
    return rig.add_site("paris")


def head(rig: StoreRig) -> int:
    return rig.store.head(rig.user.project_n)


def read(
    rig: StoreRig, f: EventFilter = ALL, after: int = 0, most: int = 1_000, to: int | None = None
) -> tuple[list[Event], int]:
    return rig.ask(page, rig.user, after, head(rig) if to is None else to, most, f)


def run(rig: StoreRig, site: SiteRig, n: int) -> list[JobSpec]:
    """Jobs of tag `n`, of which every other fails."""
    jobs = [rig.spec(site) for _ in range(n)]
    rig.submit(*jobs, envelopes=[Envelope({"exp": "x", "i": str(i)}) for i in range(n)])
    pilot = site.add_pilot()
    grants = pilot.sync(capacity=cores(n)).grants
    ends = [pilot.end(g, exit=i % 2, overtakes=True) for i, g in enumerate(grants)]
    pilot.sync(reports=ends)
    return jobs


def test_seqs_have_no_gaps_and_the_head_is_the_last(rig: StoreRig, site: SiteRig) -> None:
    run(rig, site, 10)
    events, scanned = read(rig)
    assert [e.seq for e in events] == list(range(1, head(rig) + 1))
    assert scanned == head(rig)
    assert {e.kind for e in events} == {"site", "batch_job", "session", "job"}


def test_what_an_event_says(rig: StoreRig, site: SiteRig) -> None:
    (job,) = run(rig, site, 1)
    events, _ = read(rig, EventFilter(jobs=(job.id,)))
    assert [(e.subject, e.old, e.new, e.phase, e.attempt, e.epoch) for e in events] == [
        (job.id, None, "PREPROCESSED", "runnable", 0, 0),
        (job.id, "PREPROCESSED", "RUNNING", "running", 1, 1),
        (job.id, "RUNNING", "RUN_DONE", "running", 1, 1),
        (job.id, "RUN_DONE", "JOB_FINISHED", "finished", 1, 1),
    ]
    assert events[-1].data == {"outcome": {"reason": "exit", "exit": 0}}
    about = [e for e in read(rig)[0] if e.kind == "site"]
    assert {e.subject for e in about} == {site.id}
    assert about[0].data["state"] == "created"


def test_pages_follow_one_another(rig: StoreRig, site: SiteRig) -> None:
    run(rig, site, 10)
    got: list[int] = []
    after = 0
    while True:
        events, then = read(rig, after=after, most=7)
        got += [e.seq for e in events]
        if then == after:
            break
        assert len(events) <= 7
        after = then
    assert got == list(range(1, head(rig) + 1))


def test_a_page_has_a_bound(rig: StoreRig, site: SiteRig, monkeypatch: pytest.MonkeyPatch) -> None:
    run(rig, site, 10)
    monkeypatch.setattr(limits, "EVENTS_PER_PAGE", 5)
    events, scanned = read(rig, most=1_000)
    assert (len(events), scanned) == (5, 5)


def test_nothing_beyond_the_head_is_shown(rig: StoreRig, site: SiteRig) -> None:
    run(rig, site, 10)
    for f in (ALL, EventFilter(final=True), EventFilter(jobs=(rig.new_id(),))):
        events, scanned = read(rig, f, to=6)
        assert all(e.seq <= 6 for e in events)
        assert scanned == 6
    assert read(rig, after=head(rig)) == ([], head(rig))
    # A cursor from the future (of a past that was replaced) does not lead back.
    assert read(rig, after=10_000) == ([], 10_000)


def test_kinds(rig: StoreRig, site: SiteRig) -> None:
    run(rig, site, 3)
    events, scanned = read(rig, EventFilter(kinds=frozenset({"session", "batch_job"})))
    assert {e.kind for e in events} == {"session", "batch_job"}
    assert scanned == head(rig)


def test_ends(rig: StoreRig, site: SiteRig) -> None:
    jobs = run(rig, site, 6)
    events, scanned = read(rig, EventFilter(final=True))
    assert [e.subject for e in events] == [job.id for job in jobs]
    assert [e.new for e in events] == ["JOB_FINISHED", "FAILED"] * 3
    assert scanned == head(rig)


def test_ends_are_looked_for_in_bounded_steps(
    rig: StoreRig, site: SiteRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(rig, site, 6)
    monkeypatch.setattr(feed, "SCAN", 4)
    after, got, steps = 0, 0, 0
    while after < head(rig):
        events, then = read(rig, EventFilter(final=True), after=after)
        assert after < then <= after + 4
        after, got, steps = then, got + len(events), steps + 1
    assert got == 6
    assert steps == -(-head(rig) // 4)


def test_jobs(rig: StoreRig, site: SiteRig) -> None:
    jobs = run(rig, site, 4)
    wanted = EventFilter(jobs=(jobs[0].id, jobs[3].id, rig.new_id()))
    events, scanned = read(rig, wanted)
    assert {e.subject for e in events} == {jobs[0].id, jobs[3].id}
    assert scanned == head(rig)
    ends, _ = read(rig, EventFilter(jobs=wanted.jobs, final=True))
    assert [e.new for e in ends] == ["JOB_FINISHED", "FAILED"]


def test_tags(rig: StoreRig, site: SiteRig) -> None:
    jobs = run(rig, site, 4)
    events, scanned = read(rig, EventFilter(tags=(("exp", "x"), ("i", "2"))))
    assert {e.subject for e in events} == {jobs[2].id}
    assert len(events) == 4
    assert scanned == head(rig)
    assert read(rig, EventFilter(tags=(("exp", "y"),))) == ([], head(rig))


def test_a_filter_that_passes_nothing_still_moves_on(rig: StoreRig, site: SiteRig) -> None:
    """Or a reader with a narrow filter would look at the same page for ever."""
    run(rig, site, 10)
    f = EventFilter(tags=(("exp", "y"),))
    after = 0
    for _ in range(100):
        events, then = read(rig, f, after=after, most=5)
        assert events == []
        if then == after:
            break
        after = then
    assert after == head(rig)


def test_the_end_of_a_deleted_job_is_still_told(rig: StoreRig, site: SiteRig) -> None:
    (job,) = run(rig, site, 1)
    rig.delete(job)
    events, _ = read(rig, EventFilter(jobs=(job.id,)))
    assert [e.kind for e in events][-2:] == ["job", "job.deleted"]
