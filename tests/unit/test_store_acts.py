"""Cancel, retry and delete: by name with a verdict each, by filter in chunks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest

from chappe.core.errors import Conflict, Invalid, NotFound
from chappe.core.jobs import Envelope, JobSpec, ParentPolicy, Retries
from chappe.store import acts, queries, sync, upkeep
from chappe.store.listing import matching
from chappe.testing.store import PilotRig, SiteRig, StoreRig, cores, held
from chappe.wire.jobs import ActOnJobs, ActReply, JobFilter
from chappe.wire.results import ResultUpload
from chappe.wire.sync import Grant, JobEpoch, Kill


@pytest.fixture
def site(rig: StoreRig) -> SiteRig:
    return rig.add_site("paris")


def submitted(site: SiteRig, n: int = 1, **fields: Any) -> list[JobSpec]:
    specs = [site.rig.spec(site, **fields) for _ in range(n)]
    site.rig.submit(*specs)
    return specs


def granted(site: SiteRig, *, start: bool = True, **fields: Any) -> tuple[JobSpec, PilotRig, Grant]:
    """A Job in a pilot's hands."""
    (job,) = submitted(site, **fields)
    pilot = site.add_pilot()
    (grant,) = pilot.sync(capacity=cores(1)).grants
    if start:
        pilot.sync(held=[held(grant)], reports=[pilot.start(grant)])
    return job, pilot, grant


def failed(site: SiteRig, n: int = 1, **fields: Any) -> list[JobSpec]:
    specs = submitted(site, n, **fields)
    pilot = site.add_pilot()
    grants = pilot.sync(capacity=cores(n)).grants
    pilot.sync(reports=[pilot.end(g, exit=1, overtakes=True) for g in grants])
    site.end(pilot)
    return specs


def put(pilot: PilotRig, grant: Grant, epoch: int) -> None:
    """Upload a result."""
    upload = ResultUpload(grant.job, epoch, "a" * 64, "image/png", b"x")
    pilot.rig.do(sync.store_result, pilot.principal, upload)


def codes(reply: ActReply) -> list[str]:
    return [v.code for v in reply.verdicts]


def ends(rig: StoreRig, job: JobSpec) -> list[str]:
    found = rig.sql(
        "SELECT e.new FROM event e JOIN job ON job.n = e.job WHERE job.id = ? ORDER BY seq", job.id
    )
    return [row[0] for row in found]


# -- cancel -----------------------------------------------------------------------------------------


def test_what_nobody_holds_is_cancelled_at_once(rig: StoreRig, site: SiteRig) -> None:
    (job,) = submitted(site)
    reply = rig.cancel(job)
    assert (codes(reply), reply.counts) == (["cancelled"], {"cancelled": 1})
    view = rig.job(job.id)
    assert view.state == "CANCELLED"
    assert view.outcome is not None
    assert view.outcome.reason == "cancelled"
    assert not site.add_pilot().sync(capacity=cores(4)).grants


def test_a_held_job_is_cancelled_when_its_pilot_has_ended_it(rig: StoreRig, site: SiteRig) -> None:
    job, pilot, grant = granted(site)
    assert codes(rig.cancel(job)) == ["cancelling"]
    view = rig.job(job.id)
    assert (view.state, view.cancel_at) == ("RUNNING", rig.clock())
    assert pilot.sync(held=[held(grant)]).kill == [Kill(grant.job, grant.epoch, "cancelled")]
    pilot.sync(reports=[pilot.end(grant, reason="cancelled", signal=15)])
    view = rig.job(job.id)
    assert (view.state, view.cancel_at, view.session) == ("CANCELLED", None, None)


def test_cancelling_again_keeps_the_first_time(rig: StoreRig, site: SiteRig) -> None:
    job, _, _ = granted(site)
    first = rig.clock()
    rig.cancel(job)
    rig.clock.advance(10)
    assert codes(rig.cancel(job)) == ["cancelling"]
    assert rig.job(job.id).cancel_at == first


def test_an_exit_0_that_came_first_wins(rig: StoreRig, site: SiteRig) -> None:
    job, pilot, grant = granted(site)
    rig.cancel(job)
    pilot.sync(reports=[pilot.end(grant)])
    assert rig.job(job.id).state == "JOB_FINISHED"


def test_a_cancelled_grant_that_was_not_started_is_given_back(rig: StoreRig, site: SiteRig) -> None:
    job, pilot, grant = granted(site, start=False)
    rig.cancel(job)
    assert pilot.sync(held=[held(grant, started=False)]).kill
    pilot.sync(returned=[JobEpoch(grant.job, grant.epoch)])
    assert rig.job(job.id).state == "CANCELLED"
    assert rig.job(job.id).attempt == 0


def test_a_cancel_comes_true_by_a_death(rig: StoreRig, site: SiteRig) -> None:
    job, pilot, _ = granted(site)
    rig.cancel(job)
    site.end(pilot)
    assert rig.job(job.id).state == "CANCELLED"


def test_cancelling_what_is_final(rig: StoreRig, site: SiteRig) -> None:
    (gone,) = failed(site)
    job, pilot, grant = granted(site)
    pilot.sync(reports=[pilot.end(grant)])
    assert codes(rig.cancel(job, gone)) == ["finished", "skipped"]
    assert rig.states(job, gone) == ["JOB_FINISHED", "FAILED"]


def test_the_children_of_a_cancelled_job_do_not_wait(rig: StoreRig, site: SiteRig) -> None:
    (parent,) = submitted(site)
    (child,) = submitted(site, parents=(parent.id,))
    (anyway,) = submitted(site, parents=(parent.id,), on_parent_failure=ParentPolicy.ANYWAY)
    (grandchild,) = submitted(site, parents=(child.id,))
    rig.cancel(parent)
    assert rig.states(child, anyway, grandchild) == ["FAILED", "PREPROCESSED", "FAILED"]


# -- verdicts and filters ---------------------------------------------------------------------------


def test_each_name_has_its_verdict_in_order(rig: StoreRig, site: SiteRig) -> None:
    a, gone = submitted(site, 2)
    rig.cancel(gone)
    rig.delete(gone)
    missing = rig.spec(site)
    reply = rig.cancel(gone, missing, a, a)
    assert [(v.id, v.code) for v in reply.verdicts] == [
        (gone.id, "gone"),
        (missing.id, "not_found"),
        (a.id, "cancelled"),
    ]
    assert reply.counts == {"gone": 1, "not_found": 1, "cancelled": 1}


def test_named_jobs_that_do_not_pass_the_filter_are_skipped(rig: StoreRig, site: SiteRig) -> None:
    a, b = rig.spec(site, name="a"), rig.spec(site, name="b")
    rig.submit(a, b)
    act = ActOnJobs(JobFilter(ids=[a.id, b.id], name="a"))
    reply = rig.do(acts.cancel, rig.user, act)
    assert codes(reply) == ["cancelled", "skipped"]
    assert rig.job(b.id).state == "PREPROCESSED"


def test_of_what_matched_those_are_acted_upon_that_are_named(rig: StoreRig, site: SiteRig) -> None:
    tagged = [rig.spec(site) for _ in range(10)]
    rig.submit(*tagged, envelopes=[Envelope({"exp": "x"})] * 10)
    (other,) = submitted(site)
    act = ActOnJobs(JobFilter(tags={"exp": "x"}))
    matched = rig.ask(matching, rig.user, act.filter)
    assert len(matched) == 10
    for some in (matched[:4], matched[4:]):
        reply = rig.do(acts.cancel, rig.user, act, some)
        assert (reply.counts, reply.verdicts) == ({"cancelled": len(some)}, [])
    assert rig.states(*tagged, other) == ["CANCELLED"] * 10 + ["PREPROCESSED"]


def test_a_filter_that_finds_nothing(rig: StoreRig, site: SiteRig) -> None:
    assert rig.do(acts.cancel, rig.user, ActOnJobs(JobFilter(name="x"))) == ActReply({})


# -- retry ------------------------------------------------------------------------------------------


def test_a_failed_job_runs_again(rig: StoreRig, site: SiteRig) -> None:
    (job,) = failed(site)
    assert codes(rig.retry(job)) == ["retried"]
    view = rig.job(job.id)
    assert (view.state, view.attempt) == ("RESTART_READY", 1)
    pilot = site.add_pilot()
    (grant,) = pilot.sync(capacity=cores(1)).grants
    assert (grant.attempt, grant.epoch) == (2, 2)
    pilot.run(grant)
    assert rig.job(job.id).state == "JOB_FINISHED"


def not_final(site: SiteRig) -> JobSpec:
    return submitted(site)[0]


def running(site: SiteRig) -> JobSpec:
    return granted(site)[0]


def cancelling(site: SiteRig) -> JobSpec:
    job = granted(site)[0]
    site.rig.cancel(job)
    return job


def finished(site: SiteRig) -> JobSpec:
    job, pilot, grant = granted(site)
    pilot.sync(reports=[pilot.end(grant)])
    return job


def used_up(site: SiteRig) -> JobSpec:
    return failed(site, retries=Retries(max=0))[0]


def of_failed_parent(site: SiteRig) -> JobSpec:
    (parent,) = failed(site)
    return submitted(site, parents=(parent.id,))[0]


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (not_final, "not_final"),
        (running, "not_final"),
        (cancelling, "not_final"),
        (finished, "finished"),
        (used_up, "attempts"),
        (of_failed_parent, "parents_failed"),
    ],
)
def test_retries_that_are_refused(
    rig: StoreRig, site: SiteRig, make: Callable[[SiteRig], JobSpec], code: str
) -> None:
    job = make(site)
    before = rig.job(job.id)
    assert codes(rig.retry(job)) == [code]
    assert rig.job(job.id) == before


def test_a_cancelled_job_runs_again(rig: StoreRig, site: SiteRig) -> None:
    (job,) = submitted(site)
    rig.cancel(job)
    assert codes(rig.retry(job)) == ["retried"]
    (grant,) = site.add_pilot().sync(capacity=cores(1)).grants
    assert (grant.job, grant.attempt) == (job.id, 1)


def test_children_are_retried_together_with_their_parent(rig: StoreRig, site: SiteRig) -> None:
    (parent,) = failed(site)
    (child,) = submitted(site, parents=(parent.id,))
    (grandchild,) = submitted(site, parents=(child.id,))
    assert rig.states(child, grandchild) == ["FAILED", "FAILED"]
    assert codes(rig.retry(grandchild, child, parent)) == ["retried"] * 3
    assert rig.states(parent, child, grandchild) == [
        "RESTART_READY",
        "AWAITING_PARENTS",
        "AWAITING_PARENTS",
    ]
    pilot = site.add_pilot()
    for job in (parent, child, grandchild):
        (grant,) = pilot.sync(capacity=cores(1)).grants
        assert grant.job == job.id
        pilot.run(grant)
    assert rig.states(parent, child, grandchild) == ["JOB_FINISHED"] * 3


def test_a_parent_that_runs_again_is_waited_for_again(rig: StoreRig, site: SiteRig) -> None:
    """A child waits for two parents; one failed, is retried, and must count as open again."""
    policy = ParentPolicy.SUCCEEDED
    a, b = failed(site)[0], submitted(site)[0]
    (child,) = submitted(site, parents=(a.id, b.id), on_parent_failure=policy)
    assert rig.job(child.id).waiting_parents == 1
    rig.retry(a)
    assert rig.job(child.id).waiting_parents == 2
    rig.cancel(b)
    assert (rig.job(child.id).state, rig.job(child.id).waiting_parents) == ("AWAITING_PARENTS", 1)
    pilot = site.add_pilot()
    (grant,) = pilot.sync(capacity=cores(1)).grants
    pilot.run(grant)
    assert rig.job(child.id).state == "PREPROCESSED"


def sign(rig: StoreRig, *jobs: JobSpec, until_s: float = 100, most: int | None = 9) -> ActOnJobs:
    """A retry of these Jobs under a new signature."""
    specs = [msgspec.json.encode(job) for job in jobs]
    made = rig.signer.submission(
        rig.new_id(), rig.user.project_id, specs, rig.clock() + until_s, most
    )
    signed = {job.id: (0, i) for i, job in enumerate(jobs)}
    return ActOnJobs(JobFilter(ids=[job.id for job in jobs]), [made], signed)


def test_a_retry_beyond_the_signed_attempts_is_signed_anew(rig: StoreRig, site: SiteRig) -> None:
    a, b = failed(site, 2, retries=Retries(max=0))
    act = sign(rig, a, b)
    reply = rig.do(acts.retry, rig.user, act)
    assert codes(reply) == ["retried", "retried"]
    assert rig.job(a.id).max_attempts == 9
    new = act.submissions[0].id
    said = site.add_pilot().sync(capacity=cores(2))
    assert [(g.job, g.submission, g.idx) for g in said.grants] == [(a.id, new, 0), (b.id, new, 1)]
    assert [s.id for s in said.submissions] == [new]


def test_a_retry_after_the_signature_has_expired(rig: StoreRig, site: SiteRig) -> None:
    job = rig.spec(site)
    rig.submit(job, signed=True, not_after=rig.clock() + 100)
    rig.cancel(job)
    rig.clock.advance(101)
    assert codes(rig.retry(job)) == ["expired"]
    reply = rig.do(acts.retry, rig.user, sign(rig, job, most=None))
    assert codes(reply) == ["retried"]
    assert rig.job(job.id).max_attempts == 3


@pytest.mark.parametrize(
    ("signed", "code"), [((1, 0), "invalid"), ((-1, 0), "invalid"), ((0, 1), "altered")]
)
def test_a_retry_signed_for_something_else(
    rig: StoreRig, site: SiteRig, signed: tuple[int, int], code: str
) -> None:
    a, b = failed(site, 2)
    act = msgspec.structs.replace(sign(rig, a, b), signed={a.id: signed})
    with pytest.raises(Invalid) as caught:
        rig.do(acts.retry, rig.user, act)
    assert caught.value.code == code
    assert rig.states(a, b) == ["FAILED", "FAILED"]


# -- delete -----------------------------------------------------------------------------------------


def test_only_final_jobs_are_deleted(rig: StoreRig, site: SiteRig) -> None:
    (lost,) = failed(site)
    (waiting,) = submitted(site)
    assert codes(rig.delete(waiting, lost)) == ["not_final", "deleted"]
    assert rig.job(waiting.id).state == "PREPROCESSED"
    with pytest.raises(NotFound):
        rig.job(lost.id)


def test_a_tombstone_keeps_the_id_and_nothing_else(rig: StoreRig, site: SiteRig) -> None:
    job = rig.spec(site)
    rig.submit(job, envelopes=[Envelope({"k": "v"})])
    pilot = site.add_pilot()
    (grant,) = pilot.sync(capacity=cores(1)).grants
    put(pilot, grant, grant.epoch)
    pilot.run(grant, result_sha256="a" * 64)
    rig.delete(job)
    (row,) = rig.sql("SELECT phase, spec, envelope, outcome, retries FROM job")
    assert tuple(row) == ("deleted", "", None, None, None)
    assert not rig.sql("SELECT 1 FROM tag")
    assert not rig.sql("SELECT 1 FROM result")
    assert not rig.sql("SELECT 1 FROM counter WHERE count <> 0")
    assert rig.sql("SELECT kind FROM event ORDER BY seq DESC LIMIT 1")[0][0] == "job.deleted"
    assert codes(rig.delete(job)) == ["gone"]


def test_a_deleted_parent_counts_as_failed(rig: StoreRig, site: SiteRig) -> None:
    a, b = failed(site)[0], submitted(site)[0]
    anyway = ParentPolicy.ANYWAY
    (child,) = submitted(site, parents=(a.id, b.id), on_parent_failure=anyway)
    assert rig.job(child.id).state == "AWAITING_PARENTS"
    rig.delete(a)
    assert rig.job(child.id).state == "AWAITING_PARENTS"
    rig.cancel(b)
    assert rig.job(child.id).state == "PREPROCESSED"


def test_the_deletion_of_a_finished_parent_fails_children_that_wait(
    rig: StoreRig, site: SiteRig
) -> None:
    done = finished(site)
    (other,) = submitted(site)
    (child,) = submitted(site, parents=(done.id, other.id))
    assert rig.job(child.id).state == "AWAITING_PARENTS"
    rig.delete(done)
    view = rig.job(child.id)
    assert view.state == "FAILED"
    assert view.outcome is not None
    assert view.outcome.reason == "parent"


def test_deletion_by_filter_skips_and_counts(rig: StoreRig, site: SiteRig) -> None:
    (lost,) = failed(site)
    (waiting,) = submitted(site)
    reply = rig.do(acts.delete, rig.user, ActOnJobs(JobFilter(app="true")))
    assert reply.counts == {"deleted": 1, "not_final": 1}
    assert rig.states(waiting) == ["PREPROCESSED"]
    assert codes(rig.cancel(lost)) == ["gone"]


def test_a_result_is_kept_only_for_the_holder_of_the_lease(rig: StoreRig, site: SiteRig) -> None:
    job, pilot, grant = granted(site)
    other = site.add_pilot()

    for who, epoch in ((other, grant.epoch), (pilot, grant.epoch + 1), (pilot, grant.epoch - 1)):
        with pytest.raises(Conflict) as caught:
            put(who, grant, epoch)
        assert caught.value.code == "stale_lease"
    put(pilot, grant, grant.epoch)
    put(pilot, grant, grant.epoch)
    pilot.sync(reports=[pilot.end(grant, result_sha256="a" * 64)])
    # Its answer was lost, and the end was reported meanwhile: the same again is harmless.
    put(pilot, grant, grant.epoch)
    assert rig.ask(queries.result, rig.user, job.id) == ("image/png", "a" * 64, b"x")


def counted(rig: StoreRig) -> dict[Sequence[Any], int]:
    rows = rig.sql("SELECT state, count FROM counter WHERE count <> 0")
    return {row[0]: row[1] for row in rows}


def test_the_counters_follow(rig: StoreRig, site: SiteRig) -> None:
    a, b = failed(site, 2)
    (c,) = submitted(site)
    assert counted(rig) == {"FAILED": 2, "PREPROCESSED": 1}
    rig.retry(a)
    rig.delete(b)
    rig.cancel(c)
    assert counted(rig) == {"RESTART_READY": 1, "CANCELLED": 1}
    assert ends(rig, a)[-1] == "RESTART_READY"
    rig.do(upkeep.release_due)
    assert counted(rig) == {"RESTART_READY": 1, "CANCELLED": 1}
