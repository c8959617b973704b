"""What waits for a Site, as its agent is told, and what becomes of its decisions."""

from __future__ import annotations

from typing import Any

import pytest

from chappe.core import limits
from chappe.core.errors import NotFound, TooLarge
from chappe.core.jobs import Resources
from chappe.store import sites
from chappe.store.feed import EventFilter, page
from chappe.testing.store import SiteRig, StoreRig, cores, held
from chappe.wire.demand import Decision, Demand
from chappe.wire.sites import AgentSync, AgentSyncReply


def sync(rig: StoreRig, site: SiteRig, demand: str | None = "", **more: Any) -> AgentSyncReply:
    body = AgentSync(site.agent, demand=demand, **more)
    return rig.do(sites.agent_sync, site.principal, site.id, body)


def waiting(demand: Demand | None) -> dict[int, int]:
    """Cores → Jobs."""
    assert demand is not None
    return {w.shape.cores: w.jobs for w in demand.waiting}


def submit(rig: StoreRig, site: SiteRig, jobs: int, **resources: Any) -> None:
    rig.submit(*(rig.spec(site, resources=Resources(**resources)) for _ in range(jobs)))


def test_jobs_are_counted_by_shape_at_each_of_their_sites(rig: StoreRig) -> None:
    here, there = rig.add_site("here"), rig.add_site("there")
    submit(rig, here, 5)
    submit(rig, here, 2, cores=4)
    demand = rig.do(sites.show_demand, rig.user, here.id)
    assert waiting(demand) == {1: 5, 4: 2}
    assert not rig.do(sites.show_demand, rig.user, there.id).waiting
    with pytest.raises(NotFound):
        rig.do(sites.show_demand, there.principal, here.id)


def test_an_agent_is_told_only_when_sizes_change(rig: StoreRig) -> None:
    site = rig.add_site("here")
    assert sync(rig, site, None).demand is None
    submit(rig, site, 5)
    first = sync(rig, site).demand
    assert first is not None
    submit(rig, site, 1)  # six: still between four and seven
    assert sync(rig, site, first.mark).demand is None
    submit(rig, site, 2)
    assert waiting(sync(rig, site, first.mark).demand) == {1: 8}


def test_a_pilot_counts_once_it_has_asked_for_work(rig: StoreRig) -> None:
    site = rig.add_site("here")
    submit(rig, site, 3)
    pilot = site.add_pilot()
    pilot.sync()  # it starts, and has nothing to offer yet
    before = sync(rig, site).demand
    assert before is not None
    assert not before.pilots
    grants = pilot.sync(capacity=cores(2)).grants
    demand = sync(rig, site, before.mark).demand
    assert waiting(demand) == {1: 1}
    assert demand is not None
    (offer,) = demand.pilots
    assert (offer.session, offer.closed, offer.cores) == (pilot.id, False, 2)
    pilot.sync(held=[held(g) for g in grants])  # it drains
    (offer,) = rig.do(sites.show_demand, rig.user, site.id).pilots
    assert offer.closed


def test_decisions_become_events_once(rig: StoreRig) -> None:
    site = rig.add_site("here")
    told = [Decision(7, 1.0, {"why": "a"}), Decision(5, 0.5, {"why": "b"})]
    assert sync(rig, site, decisions=told).decided == 7
    lies = {"why": "c", "id": rig.add_site("there").id, "name": "there"}
    assert sync(rig, site, decisions=[*told, Decision(9, 2.0, lies)]).decided == 9
    only = EventFilter(kinds=frozenset({"elastic"}))
    events, _ = rig.ask(page, rig.user, 0, rig.store.head(rig.user.project_n), 100, only)
    assert [(e.occurred_at, e.data["why"], e.subject) for e in events] == [
        (0.5, "b", site.id),
        (1.0, "a", site.id),
        (2.0, "c", site.id),
    ]
    assert events[-1].data["name"] == "here"


def test_decisions_are_bounded(rig: StoreRig) -> None:
    site = rig.add_site("here")
    many = [Decision(n, 1.0) for n in range(limits.DECISIONS_PER_SYNC + 1)]
    for wrong in (many, [Decision(1, 1.0, {"why": "x" * limits.DECISION_BYTES})]):
        with pytest.raises(TooLarge):
            sync(rig, site, decisions=wrong)
