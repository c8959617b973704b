"""Proof of death, and what follows from it: for the pilot, for its Jobs, for those who wait for them."""

from __future__ import annotations

import pytest

from chappe.core.errors import NotFound, SessionDead
from chappe.core.jobs import ParentPolicy, Retries, RetryOn
from chappe.store import principal, queries, sites, sync
from chappe.testing.store import PilotRig, SiteRig, StoreRig, cores, held
from chappe.wire.results import ResultUpload
from chappe.wire.sites import EndSession, NewSession
from tests.property.machine_check import Checker


@pytest.fixture
def site(rig: StoreRig) -> SiteRig:
    return rig.add_site("paris")


@pytest.fixture
def pilot(site: SiteRig) -> PilotRig:
    return site.add_pilot()


def test_whichever_way_a_dead_pilot_asks_it_is_told_that_it_is_dead(
    rig: StoreRig, site: SiteRig, pilot: PilotRig
) -> None:
    """Its token is revoked, but 401 would not say that what it holds must be killed."""
    earlier = pilot.token
    made = rig.do(sites.create_session, site.principal, NewSession(pilot.id, pilot.batch_job))
    assert rig.ask(principal.find, earlier) is None
    rig.do(sites.end_session, rig.user, pilot.id, EndSession(may_run_twice=True))
    for token in (earlier, made.token):
        with pytest.raises(SessionDead):
            rig.ask(principal.find, token)
    # Who only guesses is told nothing.
    assert (
        rig.ask(principal.find, made.token[:-1] + ("a" if made.token[-1] != "a" else "b")) is None
    )


def test_an_operators_order_frees_what_runs_and_the_old_pilots_reports_count_no_more(
    rig: StoreRig, site: SiteRig, pilot: PilotRig
) -> None:
    job = rig.spec(site)
    rig.submit(job)
    (grant,) = pilot.sync(capacity=cores(1)).grants
    pilot.sync(held=[held(grant)], reports=[pilot.start(grant)])
    rig.do(sites.end_session, rig.user, pilot.id, EndSession(may_run_twice=True))
    other = site.add_pilot()
    (again,) = other.sync(capacity=cores(1)).grants
    assert (again.epoch, again.attempt) == (2, 2)
    who = pilot.principal
    with pytest.raises(SessionDead):
        rig.do(sync.sync, who, pilot.request(reports=[pilot.end(grant)]))
    other.run(again)
    assert rig.states(job) == ["JOB_FINISHED"]
    Checker(rig).check()


@pytest.mark.sqlite  # one generation at a time, some seconds on PostgreSQL
def test_all_of_a_long_chain_fails(rig: StoreRig, site: SiteRig) -> None:
    jobs = [rig.spec(site)]
    for _ in range(1_999):
        jobs.append(rig.spec(site, parents=(jobs[-1].id,)))
    rig.submit(*jobs)
    rig.cancel(jobs[0])
    rig.settle()
    counted = rig.ask(queries.counts, rig.user).counts
    assert {state: n for _, _, state, n in counted} == {"CANCELLED": 1, "FAILED": 1_999}
    Checker(rig).check()


def test_the_deaths_of_parents_reach_every_policy(
    rig: StoreRig, site: SiteRig, pilot: PilotRig
) -> None:
    lost, fine = rig.spec(site, retries=Retries(0)), rig.spec(site)
    both = (lost.id, fine.id)
    fails = rig.spec(site, parents=both)
    anyway = rig.spec(site, parents=both, on_parent_failure=ParentPolicy.ANYWAY)
    some = rig.spec(site, parents=both, on_parent_failure=ParentPolicy.SUCCEEDED)
    none = rig.spec(site, parents=(lost.id,), on_parent_failure=ParentPolicy.SUCCEEDED)
    rig.submit(lost, fine, fails, anyway, some, none)
    grants = {g.job: g for g in pilot.sync(capacity=cores(2)).grants}
    pilot.sync(reports=[pilot.end(grants[fine.id], overtakes=True)], held=[held(grants[lost.id])])
    site.end(pilot)
    assert rig.states(lost, fine, fails, anyway, some, none) == [
        "FAILED",
        "JOB_FINISHED",
        "FAILED",
        "PREPROCESSED",
        "PREPROCESSED",
        "FAILED",
    ]
    Checker(rig).check()


def test_a_job_that_runs_with_those_that_succeeded_is_not_retried_when_none_did(
    rig: StoreRig, site: SiteRig
) -> None:
    parent = rig.spec(site)
    child = rig.spec(site, parents=(parent.id,), on_parent_failure=ParentPolicy.SUCCEEDED)
    anyway = rig.spec(site, parents=(parent.id,), on_parent_failure=ParentPolicy.ANYWAY)
    rig.submit(parent, child, anyway)
    rig.cancel(parent)
    rig.cancel(anyway)
    assert rig.retry(child).counts == {"parents_failed": 1}
    assert rig.retry(anyway).counts == {"retried": 1}
    assert rig.retry(child, parent).counts == {"retried": 2}
    assert rig.states(parent, child) == ["RESTART_READY", "AWAITING_PARENTS"]
    Checker(rig).check()


def test_the_result_of_an_attempt_that_was_lost_is_not_that_of_the_next(
    rig: StoreRig, site: SiteRig, pilot: PilotRig
) -> None:
    job = rig.spec(site, retries=Retries(2, (RetryOn.LOST,)))
    rig.submit(job)
    (grant,) = pilot.sync(capacity=cores(1)).grants
    upload = ResultUpload(job.id, grant.epoch, "a" * 64, "application/json", b"{}")
    rig.do(sync.store_result, pilot.principal, upload)
    site.end(pilot)
    other = site.add_pilot()
    (again,) = other.sync(capacity=cores(1)).grants
    other.run(again)  # this time it writes no result
    assert rig.states(job) == ["JOB_FINISHED"]
    with pytest.raises(NotFound):
        rig.ask(queries.result, rig.user, job.id)
    child = rig.spec(site, parents=(job.id,))
    rig.submit(child)
    (parent,) = rig.ask(queries.parents, rig.user, child.id, None).parents
    assert parent.result_sha256 is None
