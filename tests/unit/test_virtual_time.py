"""Days of pilots and allocations in seconds: nodes kept busy, and a campaign in which things fail."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from chappe.core.elastic import Plan, Policy, PolicyKind, Situation
from chappe.core.elasticity import decide
from chappe.core.jobs import Retries
from chappe.testing import campaign as campaign_module
from chappe.testing.campaign import Campaign, Faults
from chappe.testing.store import StoreRig
from chappe.testing.virtual import VirtualPilot, World, mixed

HOUR_S = 3_600.0
POLICY = Policy(
    PolicyKind.FIT,
    most=6,
    queued_most=4,
    nodes=2,
    nodes_most=12,
    wall_s=6 * HOUR_S,
    within_s=1_800.0,
    wait_s=HOUR_S,
    day_node_s=60 * HOUR_S,
)
FAULTS = Faults(timeout=0.2, crash=0.2, life_s=HOUR_S)


def test_nodes_are_kept_busy_with_mixed_jobs(memory: Path) -> None:
    """Wide Jobs are not starved by small ones, and small ones fill what wide ones leave."""
    with StoreRig(memory / "hub.db") as rig:
        world, site = World(rig), rig.add_site("s")
        jobs = world.submit(site, 250, mixed(8), random.Random(1))
        VirtualPilot(world, site.add_pilot(), nodes=16, cores=8)
        world.run(24 * HOUR_S, lambda: world.waiting() == 0)
        assert world.busy() / (16 * 8 * (world.now - world.began_at)) >= 0.85
        world.run(24 * HOUR_S, lambda: len(world.runs) == len(jobs))
        assert not world.overlaps()
        # What the last heartbeat told is in the store.
        world.run(25 * HOUR_S)
        assert Counter(rig.job(id).state for id in jobs) == {"JOB_FINISHED": len(jobs)}


def campaign(rig: StoreRig, hours: float) -> tuple[Campaign, list[str]]:
    made = Campaign(rig, POLICY, nodes=16, cores=8, seed=3, faults=FAULTS, wait_s=300.0)
    jobs: list[str] = []

    def submit() -> None:
        jobs.extend(made.world.submit(made.site, 24, mixed(8), made.rng, retries=Retries(max=100)))
        made.soon()

    for hour in range(0, int(hours) - 12, 6):
        made.world.after(hour * HOUR_S, submit)
    made.world.run(hours * HOUR_S)
    return made, jobs


def test_two_days_in_which_everything_fails_at_times(memory: Path) -> None:
    with StoreRig(memory / "hub.db") as rig:
        made, jobs = campaign(rig, 48.0)
        assert made.wrong == [], "policy, budget, one allocation for each intent (I12)"
        assert made.world.overlaps() == [], "no job ran twice at once (I9)"
        assert Counter(rig.job(id).state for id in jobs) == {"JOB_FINISHED": len(jobs)}, "I10"
        runs = sum(len(runs) for runs in made.world.runs.values())
        assert runs > len(jobs), "some were killed, and run again"
        assert not made.open, "from none, and back to none"
        assert len(made.batches) > 10


def test_a_rule_that_asks_for_too_much_is_found_out(
    memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def greedy(policy: Policy, seen: Situation) -> Plan:
        plan = decide(msgspec.structs.replace(policy, most=9, nodes_most=99), seen)
        return msgspec.structs.replace(plan, asks=plan.asks * 3)

    monkeypatch.setattr(campaign_module, "decide", greedy)
    with StoreRig(memory / "hub.db") as rig:
        assert campaign(rig, 14.0)[0].wrong
