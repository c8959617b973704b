"""`why`: every answer names the thing that is waited for."""

from __future__ import annotations

from typing import Any

import pytest

from chappe.core.errors import NotFound
from chappe.core.jobs import Envelope, JobSpec, Resources
from chappe.core.shapes import NodeRoom
from chappe.store import sites, upkeep
from chappe.store.why import why
from chappe.testing.store import TRUE, SiteRig, StoreRig, cores, held
from chappe.wire.jobs import Why
from chappe.wire.sites import BatchJobReport, NewSite, PublishApps


@pytest.fixture
def site(rig: StoreRig) -> SiteRig:
    return rig.add_site("paris")


def ask(rig: StoreRig, job: JobSpec) -> Why:
    return rig.ask(why, rig.user, job.id, rig.clock())


def reason(rig: StoreRig, job: JobSpec) -> str:
    """The one reason."""
    (said,) = ask(rig, job).reasons
    return said


def submitted(site: SiteRig, **fields: Any) -> JobSpec:
    job = site.rig.spec(site, **fields)
    site.rig.submit(job)
    return job


def test_a_job_that_is_not_there(rig: StoreRig) -> None:
    with pytest.raises(NotFound):
        rig.ask(why, rig.user, rig.new_id(), rig.clock())


@pytest.mark.parametrize(
    ("end", "words"),
    [
        ({"exit": 0}, "nothing: it is JOB_FINISHED (it exited with 0)"),
        ({"exit": 3}, "nothing: it is FAILED (it exited with 3)"),
        ({"reason": "signal", "signal": 9}, "nothing: it is FAILED (it died of signal 9)"),
        ({"reason": "timeout"}, "nothing: it is FAILED (its wall-clock limit passed)"),
        (
            {"reason": "start_failed", "message": "no such file"},
            "nothing: it is FAILED (no such file)",
        ),
    ],
)
def test_a_job_that_has_ended(
    rig: StoreRig, site: SiteRig, end: dict[str, Any], words: str
) -> None:
    job = submitted(site)
    pilot = site.add_pilot()
    (grant,) = pilot.sync(capacity=cores(1)).grants
    pilot.run(grant, **end)
    assert reason(rig, job) == words


def test_a_job_that_was_cancelled_or_whose_parent_failed(rig: StoreRig, site: SiteRig) -> None:
    parent = submitted(site)
    child = submitted(site, parents=(parent.id,))
    rig.cancel(parent)
    assert reason(rig, parent) == "nothing: it is CANCELLED (it was cancelled)"
    assert reason(rig, child) == "nothing: it is FAILED (1 of its parents did not finish)"


def test_parents_are_named_and_counted(rig: StoreRig, site: SiteRig) -> None:
    parents = [submitted(site, name=f"member {i}") for i in range(7)]
    child = submitted(site, parents=tuple(p.id for p in parents))
    said = ask(rig, child)
    assert said.state == "AWAITING_PARENTS"
    assert said.reasons[:2] == [
        f"its parent member 0 ({parents[0].id}) is PREPROCESSED",
        f"its parent member 1 ({parents[1].id}) is PREPROCESSED",
    ]
    assert said.reasons[5:] == ["and 2 more parents"]
    assert [p["name"] for p in said.facts["parents"]] == [f"member {i}" for i in range(5)]


def test_a_job_before_its_time(rig: StoreRig, site: SiteRig) -> None:
    job = submitted(site, not_before=rig.clock() + 90)
    assert reason(rig, job) == "it is not to start for another 90 s"
    assert ask(rig, job).facts == {"not_before": rig.clock() + 90}


def test_a_job_in_a_pilots_hands(rig: StoreRig, site: SiteRig) -> None:
    job = submitted(site)
    pilot = site.add_pilot()
    (grant,) = pilot.sync(capacity=cores(1)).grants
    rig.clock.advance(7)
    assert reason(rig, job) == (
        "the pilot at paris has it and waits for room to start it (heard 7 s ago)"
    )
    pilot.sync(held=[held(grant)], reports=[pilot.start(grant)])
    rig.clock.advance(3)
    assert reason(rig, job) == "nothing: it runs at paris (pilot heard 3 s ago)"
    rig.cancel(job)
    said = ask(rig, job)
    assert said.reasons[0] == "its cancel waits for the pilot at paris to end it (heard 3 s ago)"
    assert said.facts["session"] == pilot.id
    rig.do(upkeep.silence, [pilot.principal.session_n])
    assert "silence is not death" in ask(rig, job).reasons[1]
    assert "at paris is silent" in ask(rig, job).reasons[1]


def test_a_site_that_is_offline(rig: StoreRig, site: SiteRig) -> None:
    job = submitted(site)
    rig.clock.advance(300)
    assert reason(rig, job) == (
        "site paris is offline (its agent was last seen 300 s ago): "
        "start it with `chappe site start`"
    )


def test_a_site_whose_agent_was_never_seen(rig: StoreRig) -> None:
    made = rig.do(sites.create_site, rig.user, NewSite(rig.new_id(), "rome"))
    rome = SiteRig(rig, made.id, "rome", made.token)
    rig.do(sites.publish_apps, rome.principal, made.id, PublishApps([TRUE]))
    assert "its agent was never seen" in reason(rig, submitted(rome))


def test_a_site_without_pilots(rig: StoreRig, site: SiteRig) -> None:
    job = submitted(site)
    assert reason(rig, job) == (
        "no pilot runs at paris, and none is asked for: create a batch job, or look in the site's "
        "directory why its agent asks for none (`chappe batch-job plan`)"
    )
    first = site.add_batch_job()
    site.add_batch_job()
    site.sync(BatchJobReport(first, "submitted"))
    assert reason(rig, job) == (
        "no pilot runs at paris: 2 allocations are waiting for the scheduler"
    )


def test_a_site_whose_pilots_are_silent(rig: StoreRig, site: SiteRig) -> None:
    pilot = site.add_pilot()
    pilot.sync(capacity=cores(1))
    rig.do(upkeep.silence, [pilot.principal.session_n])
    assert reason(rig, submitted(site)) == "all pilots at paris (1) have been silent for 60 s"


def test_a_pilot_that_has_only_begun_or_drains(rig: StoreRig, site: SiteRig) -> None:
    site.add_pilot()
    assert reason(rig, submitted(site)) == (
        "the pilots at paris offer no room: they are starting, or draining"
    )


def test_a_job_that_fits_no_pilot(rig: StoreRig, site: SiteRig) -> None:
    site.add_pilot().sync(capacity=cores(4))
    job = submitted(site, resources=Resources(cores=6))
    assert reason(rig, job) == (
        "no pilot at paris can take it: it needs 6 cores and the pilot has 4"
    )
    site.add_pilot().sync(capacity=cores(8, cores=0))
    assert reason(rig, job) == "it is next at paris: it needs 6 of 8 cores, 0 cores are free"


def test_a_job_that_is_in_the_queue(rig: StoreRig, site: SiteRig) -> None:
    site.add_pilot().sync(capacity=cores(4, cores=1))
    jobs = [submitted(site, resources=Resources(cores=2)) for _ in range(4)]
    submitted(site, resources=Resources(cores=3))  # of another Shape: not counted
    assert reason(rig, jobs[0]) == "it is next at paris: it needs 2 of 4 cores, 1 cores are free"
    assert reason(rig, jobs[3]) == "3 jobs like it are before it at paris"
    assert ask(rig, jobs[3]).facts == {"ahead": 3}


def test_cores_that_are_kept_for_urgent_jobs_are_named(rig: StoreRig, site: SiteRig) -> None:
    first, job = submitted(site), submitted(site)
    kept = NodeRoom(1, 2, 1 << 30, (), None, 2)
    site.add_pilot().sync(capacity=cores(4, cores=2, rooms=(kept,), urgent=100, urgent_cores=2))
    assert reason(rig, first).endswith("; 2 free cores are kept for jobs of priority 100 or more")
    assert "kept" not in reason(rig, job)  # there is one before it
    urgent = rig.spec(site)
    rig.submit(urgent, envelopes=[Envelope(priority=100)])
    assert "kept" not in reason(rig, urgent)


def test_each_site_of_several_is_named(rig: StoreRig, site: SiteRig) -> None:
    rome = rig.add_site("rome")
    job = rig.spec(site, rome)
    rig.submit(job)
    said = ask(rig, job).reasons
    assert len(said) == 2
    assert any("no pilot runs at paris" in r for r in said)
    assert any("no pilot runs at rome" in r for r in said)
    rig.do(sites.delete_site, rig.user, rome.id)
    assert f"its site {rome.id} was deleted: cancel the job" in ask(rig, job).reasons


def test_licences_that_others_have_are_named(rig: StoreRig, site: SiteRig) -> None:
    offer = cores(4, named={"lic": 3})
    submitted(site, resources=Resources(named={"lic": 2}))
    pilot = site.add_pilot()
    (grant,) = pilot.sync(capacity=offer).grants
    pilot.sync(capacity=offer, held=[held(grant)])
    waits = submitted(site, resources=Resources(named={"lic": 2}))
    assert reason(rig, waits) == "it waits for 2 lic at paris: 2 of 3 are in use by other jobs"


def test_nodes_and_gpus_are_named(rig: StoreRig, site: SiteRig) -> None:
    site.add_pilot().sync(capacity=cores(4, cores=0, gpus=4, nodes=2))
    job = submitted(site, resources=Resources(cores=2, nodes=2, gpus=0.5))
    assert "2 of 4 cores on each of 2 nodes of 2, 0.5 of 4 GPUs" in reason(rig, job)


def test_what_the_hub_counts_is_named_without_saying_who_has_it(
    rig: StoreRig, site: SiteRig
) -> None:
    other = rig.add_site("rome")
    shared = {"lic": 3}
    rig.store.writer.share(shared)
    submitted(other, resources=Resources(named={"lic": 2}))
    pilot = other.add_pilot()
    (grant,) = pilot.sync(capacity=cores(4)).grants
    pilot.sync(capacity=cores(4), held=[held(grant)])
    site.add_pilot().sync(capacity=cores(4))
    job = submitted(site, resources=Resources(named={"lic": 2}))
    (said,) = rig.ask(why, rig.user, job.id, rig.clock(), shared).reasons
    assert said == "it waits for 2 lic of the hub: all that are left are in use by other jobs"
