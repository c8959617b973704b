"""Hold, release and update: what changes about a Job beside its state."""

from __future__ import annotations

from typing import Any

import pytest

from chappe.core import limits
from chappe.core.errors import Conflict, Invalid, TooLarge
from chappe.core.jobs import Envelope, JobSpec
from chappe.store import edits, queries, upkeep, why
from chappe.testing.store import SiteRig, StoreRig, cores, held
from chappe.wire.jobs import ActOnJobs, ActReply, EnvelopeChange, JobFilter


@pytest.fixture
def site(rig: StoreRig) -> SiteRig:
    return rig.add_site("paris")


def submitted(site: SiteRig, n: int = 1, **fields: Any) -> list[JobSpec]:
    specs = [site.rig.spec(site, **fields) for _ in range(n)]
    site.rig.submit(*specs)
    return specs


def do(rig: StoreRig, verb: str, *jobs: JobSpec, **more: Any) -> ActReply:
    act = ActOnJobs(JobFilter(ids=[job.id for job in jobs]), **more)
    reply: ActReply = rig.do(getattr(edits, verb), rig.user, act)
    return reply


def codes(reply: ActReply) -> list[str]:
    return [v.code for v in reply.verdicts]


def reasons(rig: StoreRig, job: JobSpec) -> list[str]:
    return rig.ask(why.why, rig.user, job.id, rig.clock()).reasons


def change(rig: StoreRig, *jobs: JobSpec, **what: Any) -> list[str]:
    return codes(do(rig, "update", *jobs, change=EnvelopeChange(**what)))


# -- hold and release -------------------------------------------------------------------------------


def test_a_held_job_is_granted_to_nobody_until_it_is_released(rig: StoreRig, site: SiteRig) -> None:
    one, other = submitted(site, 2)
    assert codes(do(rig, "hold", one)) == ["held"]
    pilot = site.add_pilot()
    (grant,) = pilot.sync(capacity=cores(4)).grants
    assert grant.job == other.id
    assert codes(do(rig, "release", one)) == ["released"]
    more = pilot.sync(capacity=cores(4), held=[held(grant)])
    assert [g.job for g in more.grants] == [one.id]


def test_why_names_the_hold_and_how_to_end_it(rig: StoreRig, site: SiteRig) -> None:
    (job,) = submitted(site)
    do(rig, "hold", job)
    rig.clock.advance(90)
    (reason,) = reasons(rig, job)
    assert reason == f"it has been held for 90 s: release it with `chappe job release {job.id}`"
    assert rig.job(job.id).held_at == rig.clock() - 90


def test_holding_again_keeps_the_first_time(rig: StoreRig, site: SiteRig) -> None:
    (job,) = submitted(site)
    do(rig, "hold", job)
    first = rig.clock()
    rig.clock.advance(10)
    assert codes(do(rig, "hold", job)) == ["held"]
    assert rig.job(job.id).held_at == first


def test_what_runs_goes_on_and_is_not_started_again(rig: StoreRig, site: SiteRig) -> None:
    (job,) = submitted(site)
    pilot = site.add_pilot()
    (grant,) = pilot.sync(capacity=cores(1)).grants
    pilot.sync(held=[held(grant)], reports=[pilot.start(grant)])
    assert codes(do(rig, "hold", job)) == ["holding"]
    assert not pilot.sync(held=[held(grant)]).kill
    assert "will not be started again" in reasons(rig, job)[0]
    site.end(pilot)
    assert rig.job(job.id).state == "RESTART_READY"
    assert not site.add_pilot().sync(capacity=cores(1)).grants
    do(rig, "release", job)
    assert site.add_pilot().sync(capacity=cores(1)).grants


def test_a_hold_outlasts_the_wait_for_parents(rig: StoreRig, site: SiteRig) -> None:
    (parent,) = submitted(site)
    (child,) = submitted(site, parents=(parent.id,))
    do(rig, "hold", child)
    assert len(reasons(rig, child)) == 2  # the hold, and the parent
    pilot = site.add_pilot()
    (grant,) = pilot.sync(capacity=cores(4)).grants
    pilot.run(grant)
    assert rig.job(child.id).state == "PREPROCESSED"
    assert not pilot.sync(capacity=cores(4)).grants
    do(rig, "release", child)
    assert pilot.sync(capacity=cores(4)).grants


def test_a_hold_outlasts_a_time_that_comes(rig: StoreRig, site: SiteRig) -> None:
    (job,) = submitted(site, not_before=rig.clock() + 10)
    do(rig, "hold", job)
    rig.clock.advance(20)
    rig.do(upkeep.release_due)
    assert not site.add_pilot().sync(capacity=cores(4)).grants
    do(rig, "release", job)
    assert site.add_pilot().sync(capacity=cores(4)).grants


def test_a_time_outlasts_a_hold(rig: StoreRig, site: SiteRig) -> None:
    (job,) = submitted(site, not_before=rig.clock() + 10)
    do(rig, "hold", job)
    do(rig, "release", job)
    assert not site.add_pilot().sync(capacity=cores(4)).grants
    rig.clock.advance(20)
    rig.do(upkeep.release_due)
    assert site.add_pilot().sync(capacity=cores(4)).grants


def test_what_has_ended_is_not_held(rig: StoreRig, site: SiteRig) -> None:
    (job,) = submitted(site)
    rig.cancel(job)
    assert codes(do(rig, "hold", job)) == ["skipped"]
    assert codes(do(rig, "release", job)) == ["skipped"]


def test_holds_are_known_after_a_restart(rig: StoreRig, site: SiteRig) -> None:
    (job,) = submitted(site)
    do(rig, "hold", job)
    rig.restart()
    assert not site.add_pilot().sync(capacity=cores(4)).grants
    do(rig, "release", job)
    assert site.add_pilot().sync(capacity=cores(4)).grants


def test_each_hold_and_release_is_one_event(rig: StoreRig, site: SiteRig) -> None:
    (job,) = submitted(site)
    for verb in ("hold", "hold", "release", "release"):
        do(rig, verb, job)
    kinds = [row[0] for row in rig.sql("SELECT kind FROM event WHERE kind LIKE 'job.%'")]
    assert kinds == ["job.held", "job.released"]


# -- update -----------------------------------------------------------------------------------------


def test_tags_data_and_priority(rig: StoreRig, site: SiteRig) -> None:
    job = rig.spec(site)
    before = Envelope({"a": "1", "b": "2"}, {"x": 1, "y": None, "z": 3}, 5)
    rig.submit(job, envelopes=[before])
    assert change(rig, job, tags={"a": "9", "c": "3"}, untag=["b"]) == ["updated"]
    assert change(rig, job, data={"z": None, "w": [1]}, priority=-2) == ["updated"]
    view = rig.job(job.id)
    assert view.tags == {"a": "9", "c": "3"}
    assert view.data == {"x": 1, "y": None, "w": [1]}
    assert view.priority == -2
    for tags, n in (({"a": "9"}, 1), ({"c": "3"}, 1), ({"a": "1"}, 0), ({"b": "2"}, 0)):
        page = rig.ask(queries.list_jobs, rig.user, JobFilter(tags=tags), 10, None)
        assert len(page.jobs) == n, tags


def test_a_new_priority_changes_the_order(rig: StoreRig, site: SiteRig) -> None:
    first, second = submitted(site, 2)
    change(rig, second, priority=1)
    pilot = site.add_pilot()
    assert [g.job for g in pilot.sync(capacity=cores(1)).grants] == [second.id]
    assert rig.job(first.id).session is None


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        ({}, "change"),
        ({"priority": limits.PRIORITY_ABS + 1}, "priority"),
        ({"tags": {"ß": "x"}}, "tags"),
        ({"tags": {"a": "x" * 300}}, "tags.a"),
        ({"tags": {"a": "x"}, "untag": ["a"]}, "change.untag"),
    ],
)
def test_changes_that_no_job_could_take(
    rig: StoreRig, site: SiteRig, bad: dict[str, Any], field: str
) -> None:
    (job,) = submitted(site)
    with pytest.raises(Invalid) as caught:
        change(rig, job, **bad)
    assert caught.value.field == field


def test_data_that_no_job_could_take(rig: StoreRig, site: SiteRig) -> None:
    with pytest.raises(TooLarge):
        change(rig, *submitted(site), data={"x": "y" * limits.DATA_BYTES})


def test_a_job_that_would_hold_too_much_is_left_as_it_is(rig: StoreRig, site: SiteRig) -> None:
    full = rig.spec(site)
    tags = {f"t{i}": "" for i in range(limits.TAGS_PER_JOB)}
    rig.submit(full, envelopes=[Envelope(tags)])
    (other,) = submitted(site)
    assert change(rig, full, other, tags={"one_more": ""}) == ["too_large", "updated"]
    assert rig.job(full.id).tags == tags


def test_an_updated_job_may_be_submitted_again(rig: StoreRig, site: SiteRig) -> None:
    job = rig.spec(site)
    body = rig.request(job, envelopes=[Envelope({"a": "1"})])
    rig.create(body)
    change(rig, job, untag=["a"])
    assert codes_of_create(rig, body) == ["exists"]
    assert rig.job(job.id).tags == {}
    with pytest.raises(Conflict):  # the signed part is still what names the Job
        rig.submit(rig.spec(site, id=job.id, name="another"))


def codes_of_create(rig: StoreRig, body: Any) -> list[str]:
    return [v.code for v in rig.create(body).verdicts]


def test_the_event_names_members_of_data_and_not_their_values(rig: StoreRig, site: SiteRig) -> None:
    change(rig, *submitted(site), priority=3, data={"secret": "hush"})
    (row,) = rig.sql("SELECT data FROM event WHERE kind = 'job.updated'")
    assert row[0] == '{"priority":3,"data":["secret"]}'


def test_what_ended_may_be_updated_and_what_was_deleted_not(rig: StoreRig, site: SiteRig) -> None:
    (job,) = submitted(site)
    rig.cancel(job)
    assert change(rig, job, tags={"kept": "yes"}) == ["updated"]
    rig.delete(job)
    assert change(rig, job, tags={"kept": "no"}) == ["gone"]
