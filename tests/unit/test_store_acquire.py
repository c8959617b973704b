"""Choosing Jobs: many Shapes of which few fit, chunks, prefetch, and Jobs of several Sites."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from chappe.core import limits
from chappe.core.jobs import AppRef, Envelope, JobSpec, Resources, Retries, RetryOn
from chappe.core.shapes import NodeRoom
from chappe.store import acquire
from chappe.testing.store import GIB, PilotRig, SiteRig, StoreRig, cores, held
from chappe.wire.sync import Grant, JobEpoch


@pytest.fixture
def site(rig: StoreRig) -> SiteRig:
    return rig.add_site("paris")


def shaped(rig: StoreRig, site: SiteRig, wanted: Sequence[tuple[int, int]]) -> list[JobSpec]:
    """Jobs of these (priority, cores), in this order."""
    specs = [rig.spec(site, resources=Resources(cores=c)) for _, c in wanted]
    rig.submit(*specs, envelopes=[Envelope(priority=p) for p, _ in wanted])
    return specs


def ids(grants: Sequence[Grant]) -> list[str]:
    return [g.job for g in grants]


def waiting(rig: StoreRig) -> int:
    on_disk = int(rig.sql("SELECT sum(waiting) FROM shape")[0][0])
    assert on_disk == sum(s.waiting for s in rig.store.writer.catalog.shapes.values())
    return on_disk


def test_of_200_shapes_only_those_that_fit_are_searched(
    rig: StoreRig, site: SiteRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    shaped(rig, site, [(9, 100 + i) for i in range(198)] * 2)
    fit = shaped(rig, site, [(0, 2), (1, 1), (0, 1), (0, 2)])
    searched = []
    heads = acquire._heads

    def counting(tx: Any, entry: Any, room: Any, shapes: int) -> Any:
        searched.append(entry.shape.cores)
        return heads(tx, entry, room, shapes)

    monkeypatch.setattr(acquire, "_heads", counting)
    grants = site.add_pilot().sync(capacity=cores(99)).grants
    assert ids(grants) == [fit[1].id, fit[0].id, fit[2].id, fit[3].id]
    assert sorted(searched) == [1, 2]
    assert waiting(rig) == 396


def test_a_shape_without_waiting_jobs_is_not_searched(
    rig: StoreRig, site: SiteRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    shaped(rig, site, [(0, 1)])
    pilot = site.add_pilot()
    (grant,) = pilot.sync(capacity=cores(4)).grants
    monkeypatch.setattr(acquire, "_heads", lambda *_: pytest.fail("searched for nothing"))
    assert not site.add_pilot().sync(capacity=cores(4)).grants
    assert waiting(rig) == 0
    monkeypatch.undo()
    pilot.sync(returned=[JobEpoch(grant.job, grant.epoch)])
    assert waiting(rig) == 1


def test_a_large_job_that_has_no_room_does_not_hold_small_ones_back(
    rig: StoreRig, site: SiteRig
) -> None:
    small, large, later = shaped(rig, site, [(9, 2), (5, 3), (0, 2)])
    grants = site.add_pilot().sync(capacity=cores(4)).grants
    assert ids(grants) == [small.id, later.id]
    assert rig.job(large.id).session is None


def test_prefetch_takes_more_than_fits_now_but_nothing_that_never_fits(
    rig: StoreRig, site: SiteRig
) -> None:
    first = shaped(rig, site, [(0, 2)] * 6)
    shaped(rig, site, [(9, 3)])
    grants = site.add_pilot().sync(capacity=cores(2, prefetch=3)).grants
    assert ids(grants) == [job.id for job in first[:4]]


def test_a_node_that_is_full_prefetches(rig: StoreRig, site: SiteRig) -> None:
    jobs = shaped(rig, site, [(0, 1)] * 3)
    capacity = cores(2, cores=0, mem_bytes=0, prefetch=2)
    assert ids(site.add_pilot().sync(capacity=capacity).grants) == [j.id for j in jobs[:2]]


def test_memory_bounds_as_cores_do(rig: StoreRig, site: SiteRig) -> None:
    specs = [rig.spec(site, resources=Resources(mem_bytes=3 * GIB)) for _ in range(3)]
    rig.submit(*specs)
    assert ids(site.add_pilot().sync(capacity=cores(7)).grants) == [s.id for s in specs[:2]]


def test_a_limit_longer_than_what_is_left_does_not_fit(rig: StoreRig, site: SiteRig) -> None:
    walls = (None, 60.0, 600.0, 7_200.0)
    specs = [rig.spec(site, resources=Resources(wall_s=w)) for w in walls]
    rig.submit(*specs)
    grants = site.add_pilot().sync(capacity=cores(9, left_s=1_000.0)).grants
    assert ids(grants) == [s.id for s in specs[:3]]


def test_a_sync_has_a_bound(rig: StoreRig, site: SiteRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "GRANTS_PER_SYNC", 5)
    shaped(rig, site, [(0, 1)] * 8)
    assert len(site.add_pilot().sync(capacity=cores(99)).grants) == 5


@pytest.mark.parametrize("shapes", [1, 3, 40])
def test_chunks_keep_the_order(rig: StoreRig, site: SiteRig, shapes: int) -> None:
    """Many Jobs of many Shapes, in several rounds: the order is as if all were read at once."""
    wanted = [((i * 7919) % 11, 1 + (i * 104_729) % shapes) for i in range(600)]
    specs = shaped(rig, site, wanted)
    order = sorted(range(600), key=lambda i: (-wanted[i][0], i))
    place = {spec.id: i for i, spec in enumerate(specs)}
    got: list[str] = []
    capacity = cores(40, prefetch=110)
    while grants := site.add_pilot().sync(capacity=capacity).grants:
        got += ids(grants)
        ranks = [(-g.priority, place[g.job]) for g in grants]
        assert ranks == sorted(ranks)
    assert sorted(got) == sorted(s.id for s in specs)
    if shapes == 1:
        assert got == [specs[i].id for i in order]
    assert waiting(rig) == 0


def test_one_shape_may_give_all_of_a_round(
    rig: StoreRig, site: SiteRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The chunks are small when many Shapes fit: a Shape with all the best Jobs is read on."""
    monkeypatch.setattr(limits, "GRANTS_PER_SYNC", 100)
    shaped(rig, site, [(0, c) for c in range(1, 30)])
    best = shaped(rig, site, [(5, 1)] * 100)
    grants = site.add_pilot().sync(capacity=cores(30, prefetch=70)).grants
    assert ids(grants) == [job.id for job in best]


# -- several sites ----------------------------------------------------------------------------------


@pytest.fixture
def two(rig: StoreRig, site: SiteRig) -> tuple[PilotRig, PilotRig]:
    return site.add_pilot(), rig.add_site("rome").add_pilot()


def counts(rig: StoreRig) -> dict[tuple[int, str], int]:
    rows = rig.sql("SELECT site, state, count FROM counter WHERE count <> 0")
    return {(row[0], row[1]): row[2] for row in rows}


def test_a_job_of_two_sites_goes_to_whichever_asks(
    rig: StoreRig, two: tuple[PilotRig, PilotRig]
) -> None:
    paris, rome = two
    job = rig.spec(paris.site, rome.site)
    rig.submit(job)
    assert rig.job(job.id).site is None
    assert counts(rig) == {(0, "PREPROCESSED"): 1}
    (grant,) = rome.sync(capacity=cores(1)).grants
    assert not paris.sync(capacity=cores(1)).grants
    assert rig.job(job.id).site == rome.site.id
    assert counts(rig) == {(rome.principal.site_n, "PREPROCESSED"): 1}
    rome.run(grant)
    assert (rig.job(job.id).state, rig.job(job.id).site) == ("JOB_FINISHED", rome.site.id)


def test_a_job_of_two_sites_that_is_given_back_belongs_to_none(
    rig: StoreRig, two: tuple[PilotRig, PilotRig]
) -> None:
    paris, rome = two
    job = rig.spec(paris.site, rome.site)
    rig.submit(job)
    (grant,) = rome.sync(capacity=cores(1)).grants
    rome.sync(returned=[JobEpoch(grant.job, grant.epoch)])
    assert rig.job(job.id).site is None
    assert counts(rig) == {(0, "PREPROCESSED"): 1}
    (again,) = paris.sync(capacity=cores(1)).grants
    assert (again.epoch, again.attempt) == (2, 1)


def test_a_job_of_two_sites_may_be_tried_again_at_the_other(
    rig: StoreRig, two: tuple[PilotRig, PilotRig]
) -> None:
    paris, rome = two
    job = rig.spec(paris.site, rome.site, retries=Retries(1, (RetryOn.ERROR,)))
    rig.submit(job)
    (grant,) = rome.sync(capacity=cores(1)).grants
    rome.run(grant, exit=1)
    assert (rig.job(job.id).state, rig.job(job.id).site) == ("RESTART_READY", None)
    (again,) = paris.sync(capacity=cores(1)).grants
    paris.run(again)
    assert (rig.job(job.id).state, rig.job(job.id).site) == ("JOB_FINISHED", paris.site.id)
    assert counts(rig) == {(paris.principal.site_n, "JOB_FINISHED"): 1}


def test_a_site_is_granted_only_its_own(rig: StoreRig, two: tuple[PilotRig, PilotRig]) -> None:
    paris, rome = two
    mine, theirs = rig.spec(paris.site), rig.spec(rome.site, app=AppRef("true"))
    rig.submit(mine, theirs)
    assert ids(paris.sync(capacity=cores(9)).grants) == [mine.id]
    assert ids(rome.sync(capacity=cores(9)).grants) == [theirs.id]


def needing(rig: StoreRig, site: SiteRig, *wanted: Resources) -> list[JobSpec]:
    specs = [rig.spec(site, resources=resources) for resources in wanted]
    rig.submit(*specs)
    return specs


def test_licences_are_counted_over_all_pilots_of_a_site(rig: StoreRig, site: SiteRig) -> None:
    jobs = needing(rig, site, *[Resources(named={"lic": 2})] * 3, Resources())
    offer = cores(9, named={"lic": 5})
    first, second = site.add_pilot(), site.add_pilot()
    (one, *others) = first.sync(capacity=cores(1, named={"lic": 5})).grants
    assert ([one.job], others) == ([jobs[0].id], [])
    (two, plain) = second.sync(capacity=offer).grants
    assert (two.job, plain.job) == (jobs[1].id, jobs[3].id)
    assert not second.sync(capacity=offer, held=[held(two), held(plain)]).grants
    # What was never started uses none either, once it is given back.
    back = first.sync(returned=[JobEpoch(one.job, one.epoch)], capacity=offer)
    assert ids(back.grants) == [jobs[0].id]


def test_a_site_without_licences_is_never_asked(rig: StoreRig, site: SiteRig) -> None:
    needing(rig, site, Resources(named={"lic": 1}))
    assert not site.add_pilot().sync(capacity=cores(9)).grants


def test_small_ones_do_not_overtake_a_job_that_waited_long_enough(
    rig: StoreRig, site: SiteRig
) -> None:
    (large, *small) = shaped(rig, site, [(0, 4), (0, 1), (0, 1)])
    pilot = site.add_pilot()
    offer = cores(4, cores=1, reserve=True)
    (granted,) = pilot.sync(capacity=offer).grants
    assert granted.job == small[0].id  # for now: another pilot may have room
    rig.clock.advance(limits.RESERVE_AFTER_S)
    (kept,) = pilot.sync(capacity=offer, held=[held(granted)]).grants
    assert kept.job == large.id
    # Now the pilot gathers room, and says what others may use meanwhile.
    asks = {"held": [held(granted), held(kept, started=False)]}
    room = NodeRoom(1, 1, GIB, (), 30.0)
    assert not pilot.sync(capacity=cores(4, rooms=(room,)), **asks).grants
    (short,) = needing(rig, site, Resources(estimate_s=20.0))
    (last,) = pilot.sync(capacity=cores(4, rooms=(room,)), **asks).grants
    assert last.job == short.id


def test_a_pilot_of_an_older_version_is_never_asked_to_keep_room(
    rig: StoreRig, site: SiteRig
) -> None:
    _, small = shaped(rig, site, [(0, 4), (0, 1)])
    rig.clock.advance(limits.RESERVE_AFTER_S)
    assert ids(site.add_pilot().sync(capacity=cores(4, cores=1)).grants) == [small.id]


def test_a_job_that_lacks_licences_keeps_them_from_smaller_ones(
    rig: StoreRig, site: SiteRig
) -> None:
    holds, wants = needing(rig, site, *(Resources(named={"lic": n}) for n in (1, 3)))
    pilot = site.add_pilot()
    offer = cores(9, named={"lic": 3})
    (grant,) = pilot.sync(capacity=offer).grants
    assert grant.job == holds.id
    rig.clock.advance(limits.RESERVE_AFTER_S)
    needing(rig, site, Resources(named={"lic": 1}))
    assert not pilot.sync(capacity=offer, held=[held(grant)]).grants
    end = pilot.sync(capacity=offer, returned=[JobEpoch(grant.job, grant.epoch)])
    assert ids(end.grants) == [holds.id]  # it is older
    rig.cancel(holds)
    back = pilot.sync(capacity=offer, returned=[JobEpoch(g.job, g.epoch) for g in end.grants])
    assert ids(back.grants) == [wants.id]


def test_what_the_hub_counts_is_counted_over_all_sites(rig: StoreRig, site: SiteRig) -> None:
    other = rig.add_site("rome")
    rig.store.writer.share({"lic": 3})
    (here,) = needing(rig, site, Resources(named={"lic": 2}))
    (there,) = needing(rig, other, Resources(named={"lic": 2}))
    pilot, elsewhere = site.add_pilot(), other.add_pilot()
    (grant,) = pilot.sync(capacity=cores(4)).grants
    assert grant.job == here.id
    # What a Site says of it counts for nothing.
    offer = cores(4, named={"lic": 9})
    assert not elsewhere.sync(capacity=offer).grants
    assert not pilot.sync(returned=[JobEpoch(grant.job, grant.epoch)]).grants
    (later,) = elsewhere.sync(capacity=offer).grants
    assert later.job == there.id


def test_what_the_hub_counts_outlives_a_rollback(rig: StoreRig) -> None:
    rig.store.writer.share({"lic": 3})
    before = rig.store.writer.catalog
    with pytest.raises(ZeroDivisionError):
        rig.do(lambda _tx: 1 // 0)
    rig.add_site("paris")
    assert rig.store.writer.catalog is not before
    assert rig.store.writer.catalog.shared == {"lic": 3}


def test_the_hub_looks_for_urgent_jobs_where_only_kept_cores_are_free(
    rig: StoreRig, site: SiteRig
) -> None:
    (_, urgent, _) = shaped(rig, site, [(99, 1), (100, 1), (0, 2)])
    kept = cores(4, rooms=(NodeRoom(1, 2, GIB, (), None, 2),), cores=2, urgent=100, urgent_cores=2)
    pilot = site.add_pilot()
    assert ids(pilot.sync(capacity=kept).grants) == [urgent.id]
