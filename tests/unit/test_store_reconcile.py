"""A pilot at its first sync after an older copy of the database was put back."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from chappe.core.jobs import JobSpec, Retries, RetryOn
from chappe.core.leases import Outcome, Reason
from chappe.store import upkeep
from chappe.testing.store import PilotRig, SiteRig, StoreRig, cores, held
from chappe.wire.sync import Grant, HeldJob, JobEpoch, Kill
from tests.property.machine_check import Checker

ERROR = Retries(5, (RetryOn.ERROR, RetryOn.LOST))


@pytest.fixture
def site(rig: StoreRig) -> SiteRig:
    return rig.add_site("paris")


@pytest.fixture
def pilot(site: SiteRig) -> PilotRig:
    return site.add_pilot()


def granted(pilot: PilotRig, **fields: Any) -> tuple[JobSpec, Grant]:
    """A new Job in a pilot's hands."""
    job = pilot.rig.spec(pilot.site, **({"retries": ERROR} | fields))
    pilot.rig.submit(job)
    (grant,) = pilot.sync(capacity=cores(1)).grants
    assert grant.job == job.id
    return job, grant


def start(pilot: PilotRig, grant: Grant) -> None:
    pilot.sync(held=[held(grant)], reports=[pilot.start(grant)])


def test_what_waited_for_its_back_off_is_adopted_and_counted_once(
    rig: StoreRig, pilot: PilotRig
) -> None:
    """In the copy it waits; in truth it was granted again, and runs."""
    job, first = granted(pilot, retries=Retries(5, (RetryOn.ERROR,), backoff_s=50))
    start(pilot, first)
    pilot.sync(reports=[pilot.end(first, exit=1)])
    backup = rig.backup()
    rig.clock.advance(60)
    rig.do(upkeep.release_due)
    (second,) = pilot.sync(capacity=cores(1)).grants
    start(pilot, second)
    rig.put_back(backup)
    assert not pilot.sync(held=[held(second)]).unknown
    rig.do(upkeep.release_due)
    Checker(rig).check()
    view = rig.job(job.id)
    assert (view.state, view.session, view.not_before) == ("RUNNING", pilot.id, None)
    pilot.sync(reports=[pilot.end(second)])
    assert rig.states(job) == ["JOB_FINISHED"]


def test_a_cancel_that_the_copy_knows_is_still_obeyed(rig: StoreRig, pilot: PilotRig) -> None:
    job, grant = granted(pilot)
    start(pilot, grant)
    rig.cancel(job)
    backup = rig.backup()
    pilot.sync(held=[held(grant)])
    rig.put_back(backup)
    assert pilot.sync(held=[held(grant)]).kill == [Kill(job.id, grant.epoch, "cancelled")]
    pilot.sync(reports=[pilot.report(grant, "end", outcome=Outcome(Reason.CANCELLED))])
    assert rig.states(job) == ["CANCELLED"]
    Checker(rig).check()


@pytest.mark.parametrize("given_back", [False, True])
def test_a_later_grant_that_has_not_begun_shows_that_the_run_in_the_copy_is_over(
    rig: StoreRig, pilot: PilotRig, given_back: bool
) -> None:
    job, first = granted(pilot)
    start(pilot, first)
    backup = rig.backup()
    (second,) = pilot.sync(reports=[pilot.end(first, exit=1)], capacity=cores(1)).grants
    assert (second.job, second.epoch) == (job.id, 2)
    rig.put_back(backup)
    back = [JobEpoch(job.id, 2)] if given_back else []
    keep = [] if given_back else [held(second, started=False)]
    reply = pilot.sync(held=keep, returned=back)
    assert [u.epoch for u in reply.unknown] == ([] if given_back else [2])
    assert rig.states(job) == ["RESTART_READY"]
    Checker(rig).check()
    pilot.site.sync()
    (third,) = pilot.sync(capacity=cores(1)).grants
    assert third.attempt == 2
    pilot.run(third)
    assert rig.states(job) == ["JOB_FINISHED"]


def test_a_pilot_adopts_only_what_its_site_may_run(rig: StoreRig, pilot: PilotRig) -> None:
    other = rig.add_site("toulouse")
    foreign = rig.spec(other)
    rig.submit(foreign)
    backup = rig.backup()
    pilot.sync()
    rig.put_back(backup)
    reply = pilot.sync(held=[HeldJob(foreign.id, 7, True)])
    assert reply.incarnation == 2
    assert reply.unknown == [JobEpoch(foreign.id, 7)]
    assert rig.states(foreign) == ["PREPROCESSED"]
    Checker(rig).check()


def test_naming_a_job_twice_adopts_it_once(rig: StoreRig, pilot: PilotRig) -> None:
    job = rig.spec(pilot.site)
    rig.submit(job)
    backup = rig.backup()
    (grant,) = pilot.sync(capacity=cores(1)).grants
    rig.put_back(backup)
    pilot.sync(held=[held(grant), held(grant)])
    assert rig.states(job) == ["RUNNING"]
    Checker(rig).check()


def test_final_and_deleted_jobs_are_not_adopted(rig: StoreRig, pilot: PilotRig) -> None:
    kept, gone = rig.spec(pilot.site), rig.spec(pilot.site)
    rig.submit(kept, gone)
    rig.cancel(kept, gone)
    rig.delete(gone)
    backup = rig.backup()
    rig.retry(kept)
    (grant,) = pilot.sync(capacity=cores(1)).grants
    start(pilot, grant)
    rig.put_back(backup)
    holds = [held(grant), HeldJob(gone.id, 3, True)]
    assert [u.job for u in pilot.sync(held=holds).unknown] == [kept.id, gone.id]
    assert rig.states(kept) == ["CANCELLED"]
    Checker(rig).check()


def test_a_request_of_before_is_repeated_and_not_believed(rig: StoreRig, pilot: PilotRig) -> None:
    """It arrives late, after the restore; what it holds is what was true long ago."""
    other = pilot.site.add_pilot()
    old = pilot.request(capacity=cores(1))
    job = rig.spec(pilot.site, retries=ERROR)
    rig.submit(job)
    (grant,) = pilot.send(old).grants
    start(pilot, grant)
    backup = rig.backup()
    other.sync()
    rig.put_back(backup)
    assert other.sync().incarnation == 2
    pilot.send(old)
    assert rig.states(job) == ["RUNNING"]
    assert not other.sync(capacity=cores(4)).grants
    assert not pilot.sync(held=[held(grant)]).unknown
    Checker(rig).check()


def test_an_end_of_an_older_run_does_not_speak_for_the_one_in_the_copy(
    rig: StoreRig, pilot: PilotRig
) -> None:
    """A report under epoch 1 that nobody answered; the copy shows epoch 2 running, and nobody holds it."""
    job, first = granted(pilot)
    report = pilot.end(first, exit=1, overtakes=True)
    pilot.sync(reports=[report])
    (second,) = pilot.sync(capacity=cores(1)).grants
    start(pilot, second)
    backup = rig.backup()
    pilot.sync(reports=[pilot.end(second, exit=1)])
    rig.put_back(backup)
    stale = pilot.report(first, "end", outcome=report.outcome)
    reply = pilot.sync(reports=[stale])
    assert [v.verdict for v in reply.verdicts] == ["stale_lease"]
    assert rig.states(job) == ["RESTART_READY"]
    Checker(rig).check()


def test_an_end_that_the_pilot_reports_first_of_all_is_believed(
    rig: StoreRig, pilot: PilotRig
) -> None:
    """It is held no more; in the copy it was never granted."""
    job = rig.spec(pilot.site, retries=ERROR)
    rig.submit(job)
    backup = rig.backup()
    (grant,) = pilot.sync(capacity=cores(1)).grants
    start(pilot, grant)
    rig.put_back(backup)
    report = msgspec.structs.replace(pilot.end(grant), started_at=rig.clock())
    assert [v.verdict for v in pilot.sync(reports=[report]).verdicts] == ["applied"]
    assert rig.states(job) == ["JOB_FINISHED"]
    assert rig.job(job.id).attempt == 1
    Checker(rig).check()


def test_an_end_that_the_copy_knows_is_not_applied_twice(rig: StoreRig, pilot: PilotRig) -> None:
    """Its answer was lost, so it is told again, under another number."""
    job, grant = granted(pilot)
    start(pilot, grant)
    pilot.sync(reports=[pilot.end(grant, exit=1)])
    backup = rig.backup()
    pilot.sync(held=[])
    other = pilot.site.add_pilot()
    other.sync()
    rig.put_back(backup)
    other.seen = pilot.seen
    again = msgspec.structs.replace(pilot.end(grant, exit=1), started_at=rig.clock())
    assert [v.verdict for v in pilot.sync(reports=[again]).verdicts] == ["stale_lease"]
    view = rig.job(job.id)
    assert (view.state, view.attempt) == ("RESTART_READY", 1)
    Checker(rig).check()


def test_a_session_that_is_made_known_anew_brings_what_it_holds(
    rig: StoreRig, site: SiteRig
) -> None:
    """The copy is older than its allocation, and than the agent that serves the Site."""
    runs, ended = rig.spec(site, retries=ERROR), rig.spec(site, retries=ERROR)
    rig.submit(runs, ended)
    backup = rig.backup()
    before, site.agent = site.agent, rig.new_id()
    site.hello(previous=before)
    pilot = site.add_pilot()
    first, second = sorted(pilot.sync(capacity=cores(2)).grants, key=lambda g: g.job != runs.id)
    start(pilot, first)
    rig.put_back(backup, elsewhere=False)
    asked = site.sync(known=[pilot.batch_job], sessions=[pilot.id])
    assert (asked.incarnation, asked.unknown) == (2, [pilot.id])
    site.register(pilot)
    assert not site.sync(known=[pilot.batch_job], sessions=[pilot.id]).unknown
    report = pilot.end(second, overtakes=True)
    reply = pilot.sync(held=[held(first)], reports=[report])
    assert not reply.unknown
    assert [v.verdict for v in reply.verdicts] == ["applied"]
    assert rig.states(runs, ended) == ["RUNNING", "JOB_FINISHED"]
    Checker(rig).check()
