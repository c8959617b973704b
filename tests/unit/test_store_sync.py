"""The pilot protocol's transaction: reports, what is taken back, grants, repeats, and a restored past."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from chappe.core import limits
from chappe.core.errors import ChappeError, Invalid, SessionDead, TooLarge
from chappe.core.jobs import Envelope, JobSpec, Resources, Retries, RetryOn
from chappe.core.leases import Outcome, Reason
from chappe.store import sites, sync
from chappe.testing.store import PilotRig, SiteRig, StoreRig, cores, held
from chappe.wire.sync import Grant, HeldJob, JobEpoch, Report, SyncReply


@pytest.fixture
def site(rig: StoreRig) -> SiteRig:
    return rig.add_site("paris")


@pytest.fixture
def pilot(site: SiteRig) -> PilotRig:
    return site.add_pilot()


def submitted(site: SiteRig, n: int = 1, **fields: Any) -> list[JobSpec]:
    specs = [site.rig.spec(site, **fields) for _ in range(n)]
    site.rig.submit(*specs)
    return specs


def grant_of(pilot: PilotRig, **fields: Any) -> Grant:
    """A new Job, granted."""
    submitted(pilot.site, **fields)
    (grant,) = pilot.sync(capacity=cores(1)).grants
    return grant


def verdicts(reply: SyncReply) -> list[str]:
    return [v.verdict for v in reply.verdicts]


def rows(rig: StoreRig) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in rig.sql("SELECT * FROM job ORDER BY n")]


# -- grants -----------------------------------------------------------------------------------------


def test_a_grant_raises_the_epoch_and_is_no_event(rig: StoreRig, pilot: PilotRig) -> None:
    (job,) = submitted(pilot.site)
    before = rig.store.head(rig.user.project_n)
    (grant,) = pilot.sync(capacity=cores(1)).grants
    assert (grant.job, grant.epoch, grant.attempt) == (job.id, 1, 1)
    view = rig.job(job.id)
    assert (view.state, view.epoch, view.attempt, view.session) == ("PREPROCESSED", 1, 0, pilot.id)
    assert rig.store.head(rig.user.project_n) == before


def test_grants_come_by_priority_and_then_by_age_whatever_their_shapes(
    rig: StoreRig, pilot: PilotRig
) -> None:
    wanted = [(0, 1), (5, 2), (0, 2), (9, 1), (5, 1), (-1, 3), (9, 3)]
    specs = [rig.spec(pilot.site, resources=Resources(cores=c)) for _, c in wanted]
    rig.submit(*specs, envelopes=[Envelope(priority=p) for p, _ in wanted])
    grants = pilot.sync(capacity=cores(99)).grants
    order = sorted(range(len(wanted)), key=lambda i: (-wanted[i][0], i))
    assert [g.job for g in grants] == [specs[i].id for i in order]
    assert [g.priority for g in grants] == [9, 9, 5, 5, 0, 0, -1]


def test_no_capacity_asks_for_no_work(rig: StoreRig, pilot: PilotRig) -> None:
    submitted(pilot.site)
    assert not pilot.sync().grants


def test_nothing_is_granted_twice(site: SiteRig, pilot: PilotRig) -> None:
    submitted(site, 3)
    first = pilot.sync(capacity=cores(2)).grants
    second = site.add_pilot().sync(capacity=cores(4)).grants
    assert len(first) == 2
    assert len(second) == 1
    assert not {g.job for g in first} & {g.job for g in second}


def test_submissions_are_sent_to_those_who_do_not_have_them(rig: StoreRig, pilot: PilotRig) -> None:
    a, b = rig.spec(pilot.site), rig.spec(pilot.site)
    body = rig.request(a, b, signed=True)
    rig.create(body)
    first = pilot.sync(capacity=cores(1))
    assert first.submissions == body.submissions
    assert [(g.submission, g.idx) for g in first.grants] == [(body.submissions[0].id, 0)]
    later = pilot.sync(
        held=[held(first.grants[0])],
        capacity=cores(1),
        have_submissions=[body.submissions[0].id],
    )
    assert not later.submissions
    assert [(g.submission, g.idx) for g in later.grants] == [(body.submissions[0].id, 1)]


def test_an_allocation_that_is_given_back_drains(rig: StoreRig, pilot: PilotRig) -> None:
    submitted(pilot.site)
    rig.do(sites.cancel_batch_job, rig.user, pilot.batch_job)
    reply = pilot.sync(capacity=cores(4))
    assert reply.drain
    assert not reply.grants


# -- the same request again -------------------------------------------------------------------------


def test_a_repeated_request_gives_the_same_grants_and_changes_nothing(
    rig: StoreRig, pilot: PilotRig
) -> None:
    submitted(pilot.site, 5)
    request = pilot.request(capacity=cores(3))
    first = pilot.send(request)
    before = rows(rig), rig.store.head(rig.user.project_n), rig.store.writer.catalog.commit_no
    for _ in range(3):
        again = pilot.send(request)
        assert again.grants == first.grants
        assert again.commit_no == first.commit_no
    assert before == (
        rows(rig),
        rig.store.head(rig.user.project_n),
        rig.store.writer.catalog.commit_no,
    )


def test_a_repeated_request_after_a_restart_of_the_hub(rig: StoreRig, pilot: PilotRig) -> None:
    submitted(pilot.site, 2)
    request = pilot.request(capacity=cores(1))
    first = pilot.send(request)
    rig.restart()
    assert pilot.send(request).grants == first.grants


def test_repeated_reports_are_duplicates(rig: StoreRig, pilot: PilotRig) -> None:
    grant = grant_of(pilot)
    request = pilot.request(held=[held(grant)], reports=[pilot.start(grant)])
    assert verdicts(pilot.send(request)) == ["applied"]
    head = rig.store.head(rig.user.project_n)
    assert verdicts(pilot.send(request)) == ["duplicate"]
    assert rig.store.head(rig.user.project_n) == head


def test_a_request_that_was_overtaken_says_nothing_of_reports_nobody_applied(
    rig: StoreRig, pilot: PilotRig
) -> None:
    grant = grant_of(pilot)
    slow = pilot.request(held=[held(grant)], reports=[pilot.start(grant)])
    pilot.sync(held=[held(grant, started=False)])
    assert pilot.send(slow).verdicts == []
    assert rig.job(grant.job).state == "PREPROCESSED"
    # The report comes again with a later request, and now it counts.
    assert verdicts(pilot.sync(held=[held(grant)], reports=slow.reports)) == ["applied"]


def test_an_old_request_gives_no_grants(site: SiteRig, pilot: PilotRig) -> None:
    submitted(site, 2)
    old = pilot.request(capacity=cores(1))
    (grant,) = pilot.send(old).grants
    pilot.sync(held=[held(grant)])
    assert not pilot.send(old).grants


# -- reports ----------------------------------------------------------------------------------------


def test_a_run_from_start_to_end(rig: StoreRig, pilot: PilotRig) -> None:
    grant = grant_of(pilot)
    rig.clock.advance(5)
    start = pilot.start(grant)
    pilot.sync(held=[held(grant)], reports=[start])
    assert (rig.job(grant.job).state, rig.job(grant.job).attempt) == ("RUNNING", 1)
    rig.clock.advance(60)
    reply = pilot.sync(reports=[pilot.end(grant)])
    assert verdicts(reply) == ["applied"]
    view = rig.job(grant.job)
    assert (view.state, view.session, view.outcome) == (
        "JOB_FINISHED",
        None,
        Outcome(Reason.EXIT, exit=0),
    )
    events = rig.sql("SELECT old, new, occurred_at, attempt, epoch FROM event WHERE kind = 'job'")
    at = start.at
    assert [tuple(e) for e in events] == [
        (None, "PREPROCESSED", at - 5, 0, 0),
        ("PREPROCESSED", "RUNNING", at, 1, 1),
        ("RUNNING", "RUN_DONE", at + 60, 1, 1),
        ("RUN_DONE", "JOB_FINISHED", at + 60, 1, 1),
    ]


def test_start_and_end_in_one_sync(rig: StoreRig, pilot: PilotRig) -> None:
    grant = grant_of(pilot)
    reports = [pilot.start(grant), pilot.end(grant)]
    # Their numbers say the order, not their places.
    assert verdicts(pilot.sync(reports=reports[::-1])) == ["applied", "applied"]
    assert rig.job(grant.job).state == "JOB_FINISHED"
    new = [r[0] for r in rig.sql("SELECT new FROM event WHERE kind = 'job' ORDER BY seq")]
    assert new == ["PREPROCESSED", "RUNNING", "RUN_DONE", "JOB_FINISHED"]


def test_after_an_end_nothing_more_of_the_same_lease_counts(rig: StoreRig, pilot: PilotRig) -> None:
    grant = grant_of(pilot)
    reports = [pilot.start(grant), pilot.end(grant, exit=1), pilot.end(grant), pilot.start(grant)]
    said = pilot.sync(reports=reports)
    assert verdicts(said) == ["applied", "applied", "stale_lease", "stale_lease"]
    assert rig.job(grant.job).state == "FAILED"


def test_an_end_that_overtook_its_start(rig: StoreRig, pilot: PilotRig) -> None:
    grant = grant_of(pilot)
    start, end = pilot.start(grant), pilot.end(grant, overtakes=True)
    assert verdicts(pilot.sync(reports=[end])) == ["applied"]
    assert verdicts(pilot.sync(reports=[start])) == ["duplicate"]
    assert (rig.job(grant.job).state, rig.job(grant.job).attempt) == ("JOB_FINISHED", 1)


def test_an_end_without_its_start_is_illegal(rig: StoreRig, pilot: PilotRig) -> None:
    grant = grant_of(pilot)
    assert verdicts(pilot.sync(held=[held(grant)], reports=[pilot.end(grant)])) == ["illegal"]
    assert rig.job(grant.job).state == "PREPROCESSED"


@pytest.mark.parametrize("kind", ["node_lost", "", "END"])
def test_reports_of_other_kinds_are_illegal(pilot: PilotRig, kind: str) -> None:
    grant = grant_of(pilot)
    report = pilot.report(grant, kind, outcome=Outcome(Reason.EXIT, 0), started_at=1.0)
    assert verdicts(pilot.sync(held=[held(grant)], reports=[report])) == ["illegal"]


def test_an_end_without_an_outcome_is_illegal(pilot: PilotRig) -> None:
    grant = grant_of(pilot)
    pilot.sync(held=[held(grant)], reports=[pilot.start(grant)])
    report = pilot.report(grant, "end")
    assert verdicts(pilot.sync(held=[held(grant)], reports=[report])) == ["illegal"]


@pytest.mark.parametrize("epoch", [0, 2])
def test_a_report_under_another_epoch_changes_nothing(
    rig: StoreRig, pilot: PilotRig, epoch: int
) -> None:
    grant = grant_of(pilot)
    stale = msgspec.structs.replace(grant, epoch=epoch)
    before = rows(rig)
    reply = pilot.sync(held=[held(grant)], reports=[pilot.end(stale, overtakes=True)])
    assert verdicts(reply) == ["stale_lease"]
    assert rows(rig) == before


def test_reports_of_jobs_that_are_not_leased_here(site: SiteRig, pilot: PilotRig) -> None:
    grant = grant_of(pilot)
    other = site.add_pilot()
    unknown = msgspec.structs.replace(grant, job=site.rig.new_id())
    said = other.sync(reports=[other.start(grant), other.start(unknown)])
    assert verdicts(said) == ["stale_lease", "stale_lease"]
    assert site.rig.job(grant.job).state == "PREPROCESSED"


def test_every_verdict_ends_a_reports_life(rig: StoreRig, pilot: PilotRig) -> None:
    """A number is used once: a bad report must not block those that follow."""
    grant = grant_of(pilot)
    bad = pilot.end(grant)
    good = pilot.start(grant)
    assert verdicts(pilot.sync(held=[held(grant)], reports=[bad, good])) == ["illegal", "applied"]
    assert verdicts(pilot.sync(held=[held(grant)], reports=[bad, good])) == ["duplicate"] * 2
    assert rig.sql("SELECT last_report FROM session")[0][0] == 2


def test_one_number_twice_in_a_sync(rig: StoreRig, pilot: PilotRig) -> None:
    grant = grant_of(pilot)
    start = pilot.start(grant)
    end = msgspec.structs.replace(pilot.end(grant), no=start.no)
    assert verdicts(pilot.sync(held=[held(grant)], reports=[start, end])) == [
        "applied",
        "duplicate",
    ]
    assert rig.job(grant.job).state == "RUNNING"


def test_many_jobs_end_in_one_sync(rig: StoreRig, pilot: PilotRig) -> None:
    submitted(pilot.site, 50)
    grants = pilot.sync(capacity=cores(50)).grants
    pilot.sync(held=[held(g) for g in grants], reports=[pilot.start(g) for g in grants])
    reply = pilot.sync(reports=[pilot.end(g, exit=i % 2) for i, g in enumerate(grants)])
    assert set(verdicts(reply)) == {"applied"}
    states = dict(rig.sql("SELECT state, count(*) FROM job GROUP BY state"))
    assert states == {"JOB_FINISHED": 25, "FAILED": 25}


def test_a_refusal(rig: StoreRig, pilot: PilotRig) -> None:
    grant = grant_of(pilot)
    outcome = Outcome(Reason.REFUSED, message="the key is not in trusted_keys")
    report = pilot.report(grant, "refused", reason="untrusted_key", outcome=outcome)
    assert verdicts(pilot.sync(reports=[report])) == ["applied"]
    view = rig.job(grant.job)
    assert (view.state, view.attempt) == ("FAILED", 0)
    assert view.outcome is not None
    assert view.outcome.message == "untrusted_key: the key is not in trusted_keys"


def test_a_failure_that_is_tried_again_after_a_while(rig: StoreRig, pilot: PilotRig) -> None:
    grant = grant_of(pilot, retries=Retries(1, (RetryOn.ERROR,), backoff_s=30))
    reply = pilot.run(grant, exit=1)
    assert not reply.grants
    view = rig.job(grant.job)
    assert (view.state, view.not_before) == ("RESTART_READY", rig.clock() + 30)
    assert not pilot.sync(capacity=cores(1)).grants


def test_a_job_that_is_free_again_may_be_granted_in_the_same_sync(
    rig: StoreRig, pilot: PilotRig
) -> None:
    grant = grant_of(pilot, retries=Retries(1, (RetryOn.ERROR,)))
    pilot.sync(held=[held(grant)], reports=[pilot.start(grant)])
    (again,) = pilot.sync(reports=[pilot.end(grant, exit=1)], capacity=cores(1)).grants
    assert (again.job, again.epoch, again.attempt) == (grant.job, 2, 2)
    # A late report under the first lease is not taken for one under the second.
    late = pilot.end(grant)
    assert verdicts(pilot.sync(held=[held(again)], reports=[late])) == ["stale_lease"]


# -- held, returned, unknown, kill ------------------------------------------------------------------


def test_a_grant_whose_reply_was_lost_is_not_disowned_before_it_was_answered(
    rig: StoreRig, pilot: PilotRig
) -> None:
    (job,) = submitted(pilot.site)
    pilot.sync(capacity=cores(1))
    unanswered = pilot.sync(answered=0, capacity=cores(1))
    assert not unanswered.grants
    assert rig.job(job.id).session == pilot.id
    # Now it says that it read the reply that carried the grant, and does not hold it.
    (again,) = pilot.sync(capacity=cores(1)).grants
    assert (again.job, again.epoch) == (job.id, 2)
    assert rig.job(job.id).attempt == 0


def test_what_has_started_is_never_disowned(rig: StoreRig, pilot: PilotRig) -> None:
    grant = grant_of(pilot)
    pilot.sync(held=[held(grant)], reports=[pilot.start(grant)])
    pilot.sync(held=[])
    view = rig.job(grant.job)
    assert (view.state, view.session) == ("RUNNING", pilot.id)


def test_a_returned_grant_is_free_at_once(site: SiteRig, pilot: PilotRig) -> None:
    grant = grant_of(pilot)
    pilot.sync(returned=[JobEpoch(grant.job, grant.epoch)], answered=0)
    view = site.rig.job(grant.job)
    assert (view.session, view.attempt, view.state) == (None, 0, "PREPROCESSED")
    (again,) = site.add_pilot().sync(capacity=cores(1)).grants
    assert (again.job, again.epoch, again.attempt) == (grant.job, 2, 1)


@pytest.mark.parametrize("what", ["epoch", "started", "other"])
def test_what_cannot_be_returned(site: SiteRig, pilot: PilotRig, what: str) -> None:
    grant = grant_of(pilot)
    holds, who = [held(grant)], pilot
    if what == "started":
        pilot.sync(held=holds, reports=[pilot.start(grant)])
    if what == "other":
        who, holds = site.add_pilot(), []
    epoch = grant.epoch + (what == "epoch")
    who.sync(held=holds, returned=[JobEpoch(grant.job, epoch)])
    assert site.rig.job(grant.job).session == pilot.id


def test_what_the_hub_does_not_know_is_named(site: SiteRig, pilot: PilotRig) -> None:
    grant = grant_of(pilot)
    lost = HeldJob(site.rig.new_id(), 3, True)
    older = HeldJob(grant.job, 0, True)
    reply = pilot.sync(held=[held(grant), lost, older])
    assert reply.unknown == [JobEpoch(lost.job, 3), JobEpoch(grant.job, 0)]
    assert not reply.kill


def test_a_cancelled_job_is_to_be_killed_until_its_end_is_reported(
    rig: StoreRig, pilot: PilotRig
) -> None:
    (job,) = submitted(pilot.site)
    (grant,) = pilot.sync(capacity=cores(1)).grants
    pilot.sync(held=[held(grant)], reports=[pilot.start(grant)])
    rig.cancel(job)
    for _ in range(2):
        assert [k.reason for k in pilot.sync(held=[held(grant)]).kill] == ["cancelled"]
    reply = pilot.sync(reports=[pilot.end(grant, reason="cancelled")])
    assert not reply.kill
    assert rig.job(job.id).state == "CANCELLED"


# -- the dead, the silent, and wrong requests -------------------------------------------------------


def test_a_dead_session_is_told_so(site: SiteRig, pilot: PilotRig) -> None:
    grant = grant_of(pilot)
    principal = pilot.principal
    site.end(pilot)
    before = rows(site.rig)
    with pytest.raises(SessionDead) as caught:
        site.rig.do(sync.sync, principal, pilot.request(reports=[pilot.start(grant)]))
    assert (caught.value.status, caught.value.code) == (409, "session_dead")
    assert rows(site.rig) == before
    with pytest.raises(SessionDead):
        site.rig.whoami(pilot.token)


def test_a_token_is_for_one_session(site: SiteRig, pilot: PilotRig) -> None:
    other = site.add_pilot()
    with pytest.raises(Invalid) as caught:
        site.rig.do(sync.sync, other.principal, pilot.request())
    assert caught.value.field == "session"


@pytest.mark.parametrize(
    ("field", "most"),
    [
        ("reports", limits.REPORTS_PER_SYNC),
        ("held", limits.HELD_PER_SESSION),
        ("returned", limits.HELD_PER_SESSION),
        ("have_submissions", limits.HELD_PER_SESSION),
    ],
)
def test_the_size_of_a_sync(pilot: PilotRig, field: str, most: int) -> None:
    item: dict[str, Any] = {
        "reports": Report(1, "x", 1, 1, "start", 0.0),
        "held": HeldJob("x", 1),
        "returned": JobEpoch("x", 1),
        "have_submissions": "x",
    }
    with pytest.raises(TooLarge) as caught:
        pilot.sync(**{field: [item[field]] * (most + 1)})
    assert caught.value.field == field


def test_the_capacity_and_the_hard_end_are_kept(rig: StoreRig, pilot: PilotRig) -> None:
    pilot.sync(capacity=cores(3), hard_end_in_s=100.0)
    (row,) = rig.sql("SELECT hard_end_at, capacity, heard_at, last_request FROM session")
    assert row["hard_end_at"] == rig.clock() + 100
    assert '"cores":3' in row["capacity"]
    assert (row["heard_at"], row["last_request"]) == (rig.clock(), 1)
    pilot.sync()
    assert rig.sql("SELECT hard_end_at FROM session")[0][0] is None


# -- the rest of a long poll ------------------------------------------------------------------------


def test_a_poll_that_waited_takes_work_under_its_own_request(
    rig: StoreRig, pilot: PilotRig
) -> None:
    request = pilot.request(capacity=cores(1))
    assert not pilot.send(request).grants
    submitted(pilot.site, 2)
    reply = rig.do(sync.acquire, pilot.principal, request)
    assert len(reply.grants) == 1
    assert reply.commit_no == rig.store.writer.catalog.commit_no
    # Its answer is lost: the same request again brings the same grant.
    assert pilot.send(request).grants == reply.grants


def test_a_poll_that_was_overtaken_takes_nothing(rig: StoreRig, pilot: PilotRig) -> None:
    request = pilot.request(capacity=cores(1))
    pilot.send(request)
    pilot.sync()
    submitted(pilot.site)
    assert not rig.do(sync.acquire, pilot.principal, request).grants


def test_a_poll_that_waited_hears_of_a_cancel_and_takes_no_work(
    rig: StoreRig, pilot: PilotRig
) -> None:
    (job,) = submitted(pilot.site)
    (grant,) = pilot.sync(capacity=cores(1)).grants
    request = pilot.request(held=[held(grant)], capacity=cores(1))
    pilot.send(request)
    submitted(pilot.site)
    rig.cancel(job)
    reply = rig.do(sync.acquire, pilot.principal, request)
    assert [k.job for k in reply.kill] == [job.id]
    assert not reply.grants


def test_a_poll_that_finds_nothing_claims_no_commit(rig: StoreRig, pilot: PilotRig) -> None:
    request = pilot.request(capacity=cores(1))
    pilot.send(request)
    before = rig.store.writer.catalog.commit_no
    assert rig.do(sync.acquire, pilot.principal, request).commit_no == before
    assert rig.sql("SELECT commit_no FROM hub")[0][0] == before


# -- a restored past --------------------------------------------------------------------------------


def test_an_older_database_put_back_by_hand_begins_a_new_incarnation(
    rig: StoreRig, pilot: PilotRig
) -> None:
    pilot.sync()
    backup = rig.backup()
    (job,) = submitted(pilot.site)
    pilot.sync(capacity=cores(1))
    rig.put_back(backup)
    assert rig.store.incarnation == 1
    reply = pilot.sync(seen=pilot.seen)
    assert (reply.incarnation, rig.store.incarnation) == (2, 2)
    assert [u.job for u in reply.unknown] == []
    # Who was shown the new one does not begin another.
    assert pilot.sync().incarnation == 2
    with pytest.raises(ChappeError):
        rig.job(job.id)


def test_a_jump_of_incarnations_beyond_belief_is_refused(pilot: PilotRig) -> None:
    with pytest.raises(Invalid) as caught:
        pilot.sync(seen=(2**40, 1))
    assert caught.value.field == "seen"
    assert pilot.rig.store.incarnation == 1


def test_a_held_job_that_the_older_rows_think_free_is_adopted(
    rig: StoreRig, pilot: PilotRig
) -> None:
    (job,) = submitted(pilot.site, retries=Retries(9))
    backup = rig.backup()
    (grant,) = pilot.sync(capacity=cores(1)).grants
    pilot.sync(held=[held(grant)], reports=[pilot.start(grant)])
    rig.put_back(backup)
    reply = pilot.sync(held=[held(grant)])
    assert not reply.unknown
    view = rig.job(job.id)
    assert (view.state, view.epoch, view.session) == ("RUNNING", grant.epoch, pilot.id)
    assert not pilot.site.add_pilot().sync(capacity=cores(4)).grants
    assert verdicts(pilot.sync(reports=[pilot.end(grant)])) == ["applied"]
    assert rig.job(job.id).state == "JOB_FINISHED"


def test_what_the_older_rows_think_running_and_nobody_holds_was_lost(
    rig: StoreRig, pilot: PilotRig
) -> None:
    grant = grant_of(pilot)
    pilot.sync(held=[held(grant)], reports=[pilot.start(grant)])
    backup = rig.backup()
    pilot.sync(reports=[pilot.end(grant)])
    rig.put_back(backup)
    reply = pilot.sync()
    assert reply.incarnation == 2
    view = rig.job(grant.job)
    assert view.state == "RESTART_READY"
    assert view.outcome is not None
    assert "restore" in view.outcome.message


def test_a_held_job_that_another_session_holds_is_not_adopted(
    rig: StoreRig, site: SiteRig, pilot: PilotRig
) -> None:
    other = site.add_pilot()
    grant = grant_of(other)
    backup = rig.backup()
    other.sync(returned=[JobEpoch(grant.job, grant.epoch)])
    (mine,) = pilot.sync(capacity=cores(1)).grants
    assert mine.job == grant.job
    rig.put_back(backup)
    reply = pilot.sync(held=[held(mine)])
    assert reply.unknown == [JobEpoch(mine.job, mine.epoch)]
    assert rig.job(grant.job).session == other.id
