"""After a restore nothing is granted before those were heard who may run it already."""

from __future__ import annotations

import pytest

from chappe.core import limits
from chappe.core.jobs import Retries
from chappe.store.unheard import AGENT, Unheard
from chappe.store.why import why
from chappe.testing.store import PilotRig, SiteRig, StoreRig, cores, held
from tests.property.machine_check import Checker


@pytest.fixture
def site(rig: StoreRig) -> SiteRig:
    return rig.add_site("paris")


def agent_speaks(site: SiteRig, *pilots: PilotRig) -> list[str]:
    known = [p.batch_job for p in pilots]
    return site.sync(known=known, sessions=[p.id for p in pilots]).unknown


def test_a_job_is_not_granted_before_its_pilot_could_say_that_it_runs_it(
    rig: StoreRig, site: SiteRig
) -> None:
    asks, runs = site.add_pilot(), site.add_pilot()
    job = rig.spec(site)
    rig.submit(job)
    backup = rig.backup()
    (grant,) = runs.sync(capacity=cores(1)).grants
    runs.sync(held=[held(grant)], reports=[runs.start(grant)])
    rig.put_back(backup, elsewhere=False)
    assert not asks.sync(capacity=cores(1)).grants
    assert not agent_speaks(site, asks, runs)
    assert not asks.sync(capacity=cores(1)).grants, "its own pilot has not been heard yet"
    rig.restart()
    assert not asks.sync(capacity=cores(1)).grants, "also by a hub that was started again"
    runs.sync(held=[held(grant)])
    assert rig.states(job) == ["RUNNING"]
    assert not asks.sync(capacity=cores(1)).grants
    other = rig.spec(site)
    rig.submit(other)
    assert [g.job for g in asks.sync(capacity=cores(1)).grants] == [other.id]
    Checker(rig).check()


def test_a_pilot_that_the_copy_does_not_know_is_waited_for(rig: StoreRig, site: SiteRig) -> None:
    asks = site.add_pilot()
    job = rig.spec(site)
    rig.submit(job)
    backup = rig.backup()
    runs = site.add_pilot()
    (grant,) = runs.sync(capacity=cores(1)).grants
    rig.put_back(backup, elsewhere=False)
    assert not asks.sync(capacity=cores(1)).grants
    assert agent_speaks(site, asks, runs) == [runs.id]
    assert not asks.sync(capacity=cores(1)).grants
    site.register(runs)
    assert not agent_speaks(site, asks, runs)
    assert not asks.sync(capacity=cores(1)).grants
    runs.sync(held=[held(grant)])
    assert not asks.sync(capacity=cores(1)).grants
    assert rig.states(job) == ["RUNNING"]
    Checker(rig).check()


def test_the_proof_that_a_pilot_is_over_will_do(rig: StoreRig, site: SiteRig) -> None:
    asks, over = site.add_pilot(), site.add_pilot()
    job = rig.spec(site)
    rig.submit(job)
    rig.put_back(rig.backup())
    rig.do(lambda tx: tx.renumber(2))
    agent_speaks(site, asks)
    assert not asks.sync(capacity=cores(1)).grants
    site.end(over)
    assert asks.sync(capacity=cores(1)).grants


def test_a_job_of_two_sites_waits_for_both(rig: StoreRig, site: SiteRig) -> None:
    other = rig.add_site("toulouse")
    pilot, runs = site.add_pilot(), other.add_pilot()
    both, here = rig.spec(site, other), rig.spec(site)
    rig.submit(both, here)
    backup = rig.backup()
    (grant,) = runs.sync(capacity=cores(1)).grants
    assert grant.job == both.id
    rig.put_back(backup, elsewhere=False)
    agent_speaks(site, pilot)
    (mine,) = pilot.sync(capacity=cores(4)).grants
    assert mine.job == here.id
    waits = "hear from site toulouse"
    assert any(waits in reason for reason in rig.ask(why, rig.user, both.id, rig.clock()).reasons)
    agent_speaks(other, runs)
    runs.sync(held=[held(grant)])
    assert not pilot.sync(capacity=cores(4), held=[held(mine)]).grants
    assert rig.states(both) == ["RUNNING"]


def test_silence_does_not_stop_the_others_for_ever(
    rig: StoreRig, site: SiteRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    asks = site.add_pilot()
    site.add_pilot()
    rig.submit(rig.spec(site))
    backup = rig.backup()
    asks.sync()
    rig.put_back(backup, elsewhere=False)
    assert not asks.sync(capacity=cores(1)).grants
    rig.restart()
    monkeypatch.setattr(limits, "SETTLE_S", 0.0)
    assert asks.sync(capacity=cores(1)).grants


def test_an_agent_that_greets_first_must_name_its_sessions_all_the_same(
    rig: StoreRig, site: SiteRig
) -> None:
    asks = site.add_pilot()
    rig.submit(rig.spec(site))
    backup = rig.backup()
    asks.sync()
    rig.put_back(backup, elsewhere=False)
    site.agent = rig.new_id()
    site.hello()
    assert not asks.sync(capacity=cores(1)).grants
    agent_speaks(site, asks)
    assert asks.sync(capacity=cores(1)).grants


def test_an_attempt_that_the_sites_ledger_knows_is_used_up(rig: StoreRig, site: SiteRig) -> None:
    """It ended in the lost past, and its allocation with it."""
    pilot = site.add_pilot()
    job = rig.spec(site, retries=Retries(1))
    rig.submit(job)
    (first,) = pilot.sync(capacity=cores(1)).grants
    refusal = pilot.report(first, "refused", reason="started_before")
    (again,) = pilot.sync(reports=[refusal], capacity=cores(1)).grants
    assert (again.job, again.attempt) == (job.id, 2)
    pilot.run(again)
    assert rig.states(job) == ["JOB_FINISHED"]
    Checker(rig).check()


def test_the_clock_begins_when_somebody_asks() -> None:
    unheard = Unheard([(1, AGENT), (1, 5), (2, 6)])
    assert set(unheard.sites(1_000.0, 300.0)) == {1, 2}
    assert not unheard.heard(1, 5)
    assert not unheard.heard(3, 5)
    assert unheard.heard(1, AGENT)
    assert set(unheard.sites(1_299.0, 300.0)) == {2}
    assert not set(unheard.sites(1_300.0, 300.0))
    assert not unheard.heard(2, 6)
