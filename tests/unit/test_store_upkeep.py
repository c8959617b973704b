"""The Hub's own timers: silence, hard ends, takeovers, start times, tombstones."""

from __future__ import annotations

import pytest

from chappe.core import limits
from chappe.core.errors import NotFound
from chappe.core.jobs import JobSpec, Retries, RetryOn
from chappe.store import queries, upkeep
from chappe.testing.place import PostgresPlace
from chappe.testing.store import PilotRig, SiteRig, StoreRig, cores, held
from chappe.wire.sync import Grant


@pytest.fixture
def site(rig: StoreRig) -> SiteRig:
    return rig.add_site("paris")


def number(pilot: PilotRig) -> int:
    n = pilot.principal.session_n
    assert n is not None
    return n


def running(pilot: PilotRig, **fields: float) -> Grant:
    rig = pilot.rig
    rig.submit(rig.spec(pilot.site, **fields))
    (grant,) = pilot.sync(capacity=cores(1)).grants
    pilot.sync(held=[held(grant)], reports=[pilot.start(grant)])
    return grant


# -- silence ----------------------------------------------------------------------------------------


def test_silence_is_shown_and_is_not_death(rig: StoreRig, site: SiteRig) -> None:
    pilot = site.add_pilot()
    grant = running(pilot)
    told: set[int] = set()
    rig.store.writer.on_commit = lambda effects: told.update(effects.agents)
    assert rig.ask(upkeep.open_sessions) == {number(pilot): None}
    rig.do(upkeep.silence, [number(pilot)])
    view = rig.job(grant.job)
    assert (view.state, view.unreachable, view.session) == ("RUNNING", True, pilot.id)
    assert site.sync().silent == [pilot.id]
    assert told == {site.principal.site_n}
    # It is said once; and once it is heard again it is live.
    head = rig.store.head(rig.user.project_n)
    rig.do(upkeep.silence, [number(pilot)])
    assert rig.store.head(rig.user.project_n) == head
    pilot.sync(held=[held(grant)])
    assert not rig.job(grant.job).unreachable
    assert site.sync().silent == []


def test_the_dead_are_not_silenced(rig: StoreRig, site: SiteRig) -> None:
    pilot = site.add_pilot()
    n = number(pilot)
    site.end(pilot)
    rig.do(upkeep.silence, [n])
    assert rig.sql("SELECT state FROM session")[0][0] == "dead"
    assert rig.ask(upkeep.open_sessions) == {}
    rig.do(upkeep.silence, [])


# -- hard ends --------------------------------------------------------------------------------------


def test_the_jobs_of_an_allocation_that_is_over_are_free(rig: StoreRig, site: SiteRig) -> None:
    pilot, other = site.add_pilot(), site.add_pilot()
    grant, kept = running(pilot), running(other)
    pilot.sync(held=[held(grant)], hard_end_in_s=100.0)
    ends = rig.ask(upkeep.open_sessions)
    assert ends == {number(pilot): rig.clock() + 100.0, number(other): None}
    rig.do(upkeep.allocations_over, [number(pilot)])
    rig.do(upkeep.allocations_over, [number(pilot)])
    assert rig.job(kept.job).state == "RUNNING"
    view = rig.job(grant.job)
    assert view.state == "RESTART_READY"
    assert view.outcome is not None
    assert view.outcome.reason == "allocation_end"


# -- takeovers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("takeover_s", "ago", "taken"),
    [
        (300.0, 300.0 + limits.TAKEOVER_MARGIN_S, False),
        (300.0, 300.1 + limits.TAKEOVER_MARGIN_S, True),
        (60.0, 60.0, False),
        (60.0, 71.0, True),
        (None, 1e6, False),
    ],
)
def test_only_jobs_that_opted_in_are_taken_over_and_not_too_early(
    rig: StoreRig, site: SiteRig, takeover_s: float | None, ago: float, taken: bool
) -> None:
    pilot = site.add_pilot()
    grant = running(pilot) if takeover_s is None else running(pilot, takeover_s=takeover_s)
    rig.do(upkeep.takeovers, {number(pilot): ago})
    view = rig.job(grant.job)
    if not taken:
        assert (view.state, view.session) == ("RUNNING", pilot.id)
        return
    assert (view.state, view.session) == ("RESTART_READY", None)
    assert view.outcome is not None
    assert view.outcome.reason == "takeover"
    (again,) = site.add_pilot().sync(capacity=cores(1)).grants
    assert (again.job, again.epoch, again.attempt) == (grant.job, 2, 2)
    # Its first holder comes back: it is told, and its end counts for nothing.
    reply = pilot.sync(held=[held(grant)], reports=[pilot.end(grant)])
    assert [v.verdict for v in reply.verdicts] == ["stale_lease"]
    assert [u.job for u in reply.unknown] == [grant.job]


def test_a_grant_in_a_silent_session_counts_as_started(rig: StoreRig, site: SiteRig) -> None:
    pilot = site.add_pilot()
    job = rig.spec(site, takeover_s=60.0)
    rig.submit(job)
    pilot.sync(capacity=cores(1))
    rig.do(upkeep.takeovers, {number(pilot): 100.0})
    assert (rig.job(job.id).state, rig.job(job.id).attempt) == ("RESTART_READY", 1)
    events = rig.sql("SELECT new, data FROM event WHERE kind = 'job' ORDER BY seq")
    assert ("RUNNING", '{"assumed":true}') in [tuple(e) for e in events]


# -- start times and back-off -----------------------------------------------------------------------


def test_a_job_waits_for_its_time(rig: StoreRig, site: SiteRig) -> None:
    job = rig.spec(site, not_before=rig.clock() + 100)
    told: list[bool] = []
    rig.store.writer.on_commit = lambda effects: told.append(effects.due)
    rig.submit(job)
    assert told == [True]
    pilot = site.add_pilot()
    assert rig.ask(upkeep.next_due) == rig.clock() + 100
    rig.clock.advance(99.5)
    rig.do(upkeep.release_due)
    assert not pilot.sync(capacity=cores(1)).grants
    rig.clock.advance(0.5)
    rig.do(upkeep.release_due)
    assert rig.ask(upkeep.next_due) is None
    assert len(pilot.sync(capacity=cores(1)).grants) == 1


def test_a_time_in_the_past_is_none(rig: StoreRig, site: SiteRig) -> None:
    job = rig.spec(site, not_before=rig.clock() - 1)
    rig.submit(job)
    assert rig.job(job.id).not_before is None
    assert len(site.add_pilot().sync(capacity=cores(1)).grants) == 1


def test_a_back_off_ends(rig: StoreRig, site: SiteRig) -> None:
    job = rig.spec(site, retries=Retries(2, (RetryOn.ERROR,), 30.0))
    rig.submit(job)
    pilot = site.add_pilot()
    for wait in (30.0, 60.0):
        (grant,) = pilot.sync(capacity=cores(1)).grants
        pilot.run(grant, exit=1)
        assert rig.ask(upkeep.next_due) == rig.clock() + wait
        rig.clock.advance(wait)
        rig.do(upkeep.release_due)
    assert len(pilot.sync(capacity=cores(1)).grants) == 1


def test_a_waiting_childs_time_is_not_due(rig: StoreRig, site: SiteRig) -> None:
    parent = rig.spec(site)
    child = rig.spec(site, parents=(parent.id,), not_before=rig.clock() + 5)
    rig.submit(parent, child)
    rig.clock.advance(10)
    rig.do(upkeep.release_due)
    assert rig.job(child.id).state == "AWAITING_PARENTS"
    assert rig.sql("SELECT waiting FROM shape")[0][0] == 1
    pilot = site.add_pilot()
    (grant,) = pilot.sync(capacity=cores(1)).grants
    pilot.run(grant)
    rig.do(upkeep.release_due)
    assert len(pilot.sync(capacity=cores(1)).grants) == 1


def test_the_next_time_is_the_earliest_of_all(rig: StoreRig, site: SiteRig) -> None:
    now = rig.clock()
    assert rig.ask(upkeep.next_due) is None
    rig.submit(rig.spec(site, not_before=now + 500))
    assert rig.ask(upkeep.next_due) == now + 500
    rig.submit(rig.spec(site, not_before=now + 100))
    assert rig.ask(upkeep.next_due) == now + 100


# -- tombstones -------------------------------------------------------------------------------------


def buried(rig: StoreRig, *jobs: JobSpec) -> None:
    rig.submit(*jobs)
    rig.cancel(*jobs)
    rig.delete(*jobs)


def test_a_tombstone_stands_for_its_term(rig: StoreRig, site: SiteRig) -> None:
    buried(rig, rig.spec(site), rig.spec(site))
    rig.clock.advance(limits.TOMBSTONE_S)
    assert rig.do(upkeep.purge) == 0
    rig.clock.advance(1)
    assert rig.do(upkeep.purge) == 2
    assert rig.do(upkeep.purge) == 0
    assert not rig.sql("SELECT 1 FROM job")


def test_a_tombstone_stands_while_a_child_lives(rig: StoreRig, site: SiteRig) -> None:
    parent = rig.spec(site)
    child = rig.spec(site, parents=(parent.id,))
    rig.submit(parent, child)
    rig.cancel(parent)
    rig.delete(parent)
    rig.clock.advance(limits.TOMBSTONE_S + 1)
    assert rig.do(upkeep.purge) == 0
    page = rig.ask(queries.parents, rig.user, child.id, None)
    assert [(p.id, p.state) for p in page.parents] == [(parent.id, "FAILED")]
    rig.delete(child)
    rig.clock.advance(limits.TOMBSTONE_S + 1)
    assert rig.do(upkeep.purge) + rig.do(upkeep.purge) == 2
    assert not rig.sql("SELECT 1 FROM edge")
    with pytest.raises(NotFound):
        rig.job(child.id)


def test_a_thousand_at_a_time(rig: StoreRig, site: SiteRig) -> None:
    buried(rig, *[rig.spec(site) for _ in range(1_500)])
    rig.clock.advance(limits.TOMBSTONE_S + 1)
    assert [rig.do(upkeep.purge) for _ in range(3)] == [1_000, 500, 0]


def test_what_is_purged_is_sought_once_whatever_the_statistics_say(
    rig: StoreRig, site: SiteRig
) -> None:
    """PostgreSQL takes a table that was emptied, and counted then, for one of a row; it chose to seek the
    thousand again for each row, which took minutes."""
    buried(rig, *[rig.spec(site) for _ in range(50)])
    rig.clock.advance(limits.TOMBSTONE_S + 1)
    rig.do(upkeep.purge)
    if isinstance(rig.place, PostgresPlace):
        rig.place.administer("VACUUM (ANALYZE, TRUNCATE OFF) job")
    buried(rig, *[rig.spec(site) for _ in range(1_000)])
    rig.clock.advance(limits.TOMBSTONE_S + 1)
    assert rig.do(upkeep.purge) == 1_000
