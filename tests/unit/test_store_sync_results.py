"""Results of attempts: stored before the end that names them, and only by who holds the lease."""

from __future__ import annotations

import pytest

from chappe.core.jobs import Retries, RetryOn
from chappe.core.leases import Reason
from chappe.store import queries, sync
from chappe.testing.store import PilotRig, SiteRig, StoreRig, cores, held
from chappe.wire.results import ResultUpload
from chappe.wire.sync import Grant
from tests.unit.test_store_sync import grant_of, submitted, verdicts


@pytest.fixture
def site(rig: StoreRig) -> SiteRig:
    return rig.add_site("paris")


@pytest.fixture
def pilot(site: SiteRig) -> PilotRig:
    return site.add_pilot()


SHA = "a" * 64


def put(pilot: PilotRig, grant: Grant, sha: str = SHA) -> None:
    upload = ResultUpload(grant.job, grant.epoch, sha, "application/json", b"{}")
    pilot.rig.do(sync.store_result, pilot.principal, upload)


def test_an_end_with_a_result_is_illegal_until_the_result_is_there(
    rig: StoreRig, pilot: PilotRig
) -> None:
    grant = grant_of(pilot)
    pilot.sync(held=[held(grant)], reports=[pilot.start(grant)])
    end = pilot.end(grant, result_sha256=SHA)
    assert verdicts(pilot.sync(held=[held(grant)], reports=[end])) == ["illegal"]
    put(pilot, grant, "b" * 64)
    end = pilot.end(grant, result_sha256=SHA)
    assert verdicts(pilot.sync(held=[held(grant)], reports=[end])) == ["illegal"]
    put(pilot, grant)
    end = pilot.end(grant, result_sha256=SHA)
    assert verdicts(pilot.sync(held=[held(grant)], reports=[end])) == ["applied"]
    outcome = rig.job(grant.job).outcome
    assert outcome is not None
    assert outcome.result_sha256 == SHA


def test_a_result_is_found_beside_the_end_of_a_log_that_is_no_text(
    rig: StoreRig, pilot: PilotRig
) -> None:
    grant = grant_of(pilot)
    put(pilot, grant)
    pilot.sync(held=[held(grant)], reports=[pilot.start(grant)])
    tail = 'core\0dumped, "result_sha256":"bbb", \\u0000'
    pilot.sync(reports=[pilot.end(grant, result_sha256=SHA, tail=tail)])
    outcome = rig.job(grant.job).outcome
    assert outcome is not None
    assert outcome.tail == tail
    assert rig.ask(queries.result, rig.user, grant.job) == ("application/json", SHA, b"{}")


def test_a_job_whose_end_cannot_be_applied_does_not_wait_for_its_session(
    rig: StoreRig, pilot: PilotRig
) -> None:
    """As after a restore that has forgotten the result: the pilot holds the Job no more."""
    grant = grant_of(pilot, retries=Retries(1))
    pilot.sync(held=[held(grant)], reports=[pilot.start(grant)])
    end = pilot.end(grant, result_sha256=SHA)
    assert verdicts(pilot.sync(reports=[end])) == ["illegal"]
    view = rig.job(grant.job)
    assert (view.state, view.session, view.attempt) == ("RESTART_READY", None, 1)
    assert view.outcome is not None
    assert view.outcome.reason is Reason.OUTCOME_LOST
    (again,) = pilot.sync(capacity=cores(1)).grants
    assert again.attempt == 2
    pilot.sync(held=[held(again)], reports=[pilot.start(again)])
    assert verdicts(pilot.sync(reports=[pilot.end(again, result_sha256=SHA)])) == ["illegal"]
    assert rig.job(grant.job).state == "FAILED"


def test_a_result_of_an_earlier_epoch_does_not_do(rig: StoreRig, pilot: PilotRig) -> None:
    first = grant_of(pilot, retries=Retries(1, (RetryOn.ERROR,)))
    put(pilot, first)
    pilot.run(first, exit=1)
    (second,) = pilot.sync(capacity=cores(1)).grants
    end = pilot.end(second, overtakes=True, result_sha256=SHA)
    assert verdicts(pilot.sync(held=[held(second)], reports=[end])) == ["illegal"]
    assert rig.job(second.job).state == "RESTART_READY"


@pytest.mark.parametrize("many", [3, 250])
def test_results_are_kept_together_and_the_last_one_of_a_job_counts(
    rig: StoreRig, pilot: PilotRig, many: int
) -> None:
    submitted(pilot.site, many)
    grants = pilot.sync(capacity=cores(many)).grants
    assert len(grants) == many
    media = "application/json"
    first = [ResultUpload(g.job, g.epoch, SHA, media, b"1") for g in grants]
    again = [ResultUpload(g.job, g.epoch, "b" * 64, media, b"2") for g in grants]
    stale = ResultUpload(grants[0].job, grants[0].epoch + 1, SHA, media, b"3")
    args = (pilot.principal, [*first, stale, *again])
    assert rig.do(sync.store_results, *args) == [*[True] * many, False, *[True] * many]
    kept = rig.sql("SELECT sha256, body, count(*) FROM result GROUP BY sha256, body")
    assert [tuple(row) for row in kept] == [("b" * 64, b"2", many)]
