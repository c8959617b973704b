"""From what a decision about allocations is made: site.toml, the book, and what the Hub says waits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from chappe.core import elastic, limits
from chappe.core.batchjobs import NODES_MAX
from chappe.core.elastic import (
    DAY_S,
    Account,
    Allocation,
    NodeSize,
    Plan,
    PolicyKind,
    Queue,
    Situation,
    Stage,
    Waiting,
)
from chappe.core.elasticity import decide
from chappe.link.clock import now
from chappe.site import config as site_config
from chappe.site import sessions
from chappe.site.book import Batch, Pages, read_book
from chappe.site.config import SiteConfig
from chappe.site.paths import SitePaths
from chappe.site.schedulers.base import Phase
from chappe.wire.demand import Demand, PilotOffer, ShapeWaiting

_JOBS_MAX = 1_000_000_000

SHOWN_MOST = 20
"""Shapes, allocations and reasons at most that a decision's Event tells."""

FOLLOWS = frozenset({PolicyKind.FIT, PolicyKind.BACKFILL, PolicyKind.DEADLINE})


def policy_of(config: SiteConfig) -> elastic.Policy:
    """The policy that site.toml describes: `[elastic]`, within `[policy]`. Raises Invalid."""
    asked, rules, scheduler = config.elastic, config.policy, config.scheduler
    keep = config.pilot.keep if asked.policy is PolicyKind.KEEP else asked.minimum
    most = max(asked.maximum, keep) if asked.policy is PolicyKind.KEEP else asked.maximum
    nodes_most = max(asked.nodes_max, keep * asked.nodes)
    wall_s = asked.wall_s or (config.pilot.wall_s if asked.policy in FOLLOWS else 0.0)
    queues = tuple(
        Queue(
            name,
            rule.nodes_max or None,
            rule.wall_s_max or None,
            rule.queued_max or None,
            rule.running_max or None,
        )
        for name, rule in rules.queues.items()
    )
    accounts = tuple(Account(name, hours * 3_600.0) for name, hours in asked.accounts.items())
    return elastic.Policy(
        kind=asked.policy,
        keep=keep,
        most=min(most, rules.running_max or most),
        queued_most=min(most, rules.queued_max or most),
        nodes=asked.nodes,
        nodes_most=min(nodes_most, rules.nodes_max or nodes_most),
        wall_s=wall_s or None,
        wall_least_s=asked.wall_s_min,
        within_s=asked.within_s,
        deadline_at=asked.deadline_at,
        idle_s=asked.idle_s,
        wait_s=asked.wait_s or None,
        assumed_s=asked.assumed_s,
        margin_s=2 * config.pilot.drain_s + 60.0,
        day_node_s=asked.node_hours_per_day * 3_600.0 or None,
        queues=queues or (Queue(scheduler.queue),),
        accounts=accounts or (Account(scheduler.account),),
    )


def situation(
    config: SiteConfig,
    pages: Pages,
    demand: Demand | None,
    surplus_at: Mapping[str, float],
    at: float,
) -> Situation:
    """All that a decision is made from, besides what the scheduler says of free nodes."""
    # The Hub is not believed to make sense: whatever it says, the owner's limits hold.
    waiting = [] if demand is None else [w for w in demand.waiting if _possible(w)]
    offers = {} if demand is None else {p.session: p for p in demand.pilots}
    named = config.resources.named
    used: Mapping[str, int] = {} if demand is None else demand.named_used
    spent = pages.memory.spent_since(at - DAY_S)
    # What was asked for without an account was billed to the Site's.
    if unnamed := spent.pop("", 0.0):
        account = config.scheduler.account
        spent[account] = spent.get(account, 0.0) + unnamed
    return Situation(
        now=at,
        demand=tuple(Waiting(w.shape, w.jobs) for w in waiting),
        open=tuple(
            _allocation(config, b, offers.get(b.session), surplus_at.get(b.id), at)
            for b in pages.batches.values()
            if not b.over
        ),
        node=config.elastic.node or pages.memory.node,
        named_free={name: have - used.get(name, 0) for name, have in named.items()},
        waits=pages.memory.waits,
        spent=spent,
    )


def _possible(waiting: ShapeWaiting) -> bool:
    """Whether there can be such Jobs."""
    shape = waiting.shape
    return (
        0 <= waiting.jobs <= _JOBS_MAX
        and 1 <= shape.nodes <= NODES_MAX
        and 1 <= shape.cores <= limits.CORES_MAX
        and 0 <= shape.wall_s <= limits.WALL_MAX_S
        and 0 <= shape.least_s <= limits.WALL_MAX_S
        and 0 <= shape.mem_bytes <= 1 << 60
        and 0 <= shape.gpus <= limits.CORES_MAX
        and all(1 <= count <= limits.NAMED_MAX for _, count in shape.named)
    )


def _allocation(
    config: SiteConfig, batch: Batch, offer: PilotOffer | None, surplus_at: float | None, at: float
) -> Allocation:
    intent, began_at = batch.wanted.intent, batch.running_at
    if batch.cancel or (offer is not None and offer.closed):
        stage = Stage.CLOSED
    elif offer is not None:
        # Its pilot asks for work: so it runs, whatever the scheduler said last.
        stage, began_at = Stage.ASKS, began_at or at
    else:
        stage = Stage.FRESH if batch.phase is Phase.RUNNING else Stage.QUEUED
    return Allocation(
        batch.id,
        stage,
        intent.nodes,
        batch.wanted.at,
        sessions.wall_of(config, intent),
        None if stage is Stage.QUEUED else began_at,
        intent.queue or config.scheduler.queue,
        intent.account or config.scheduler.account,
        own=batch.wanted.kept,
        lasting=batch.wanted.kept and not batch.wanted.idle_s,
        node=None if offer is None or not tells_size(offer) else size_of(offer),
        surplus_at=surplus_at,
        too_wide=batch.too_wide,
    )


def dry_run(directory: Path, demand: Demand) -> dict[str, Any]:
    """What the agent of this directory would decide now, and from what; nothing is changed. What only the
    running agent knows is left out: free nodes, and for how long something was not needed.

    Raises SiteProblem.
    """
    paths = SitePaths.of(directory)
    config = site_config.load(paths.root)
    policy, seen = policy_of(config), situation(config, read_book(paths.book), demand, {}, now())
    plan = decide(policy, seen)
    return {**as_data(policy, seen, plan, [""] * len(plan.asks)), "surplus": plan.surplus}


def tells_size(offer: PilotOffer) -> bool:
    """Whether it tells what a node has, and that can be."""
    return (
        0 < offer.cores <= limits.CORES_MAX
        and 0 <= offer.mem_bytes <= 1 << 60
        and 0 <= offer.gpus <= limits.CORES_MAX
    )


def size_of(offer: PilotOffer) -> NodeSize:
    """What a node of this pilot has."""
    return NodeSize(offer.cores, offer.mem_bytes, offer.gpus)


def as_data(policy: elastic.Policy, seen: Situation, plan: Plan, ids: list[str]) -> dict[str, Any]:
    """A decision and its inputs, for people and for the EventLog."""
    return {
        "policy": str(policy.kind),
        "why": plan.why,
        "asks": [
            {
                "batch_job": id,
                "nodes": ask.nodes,
                "wall_s": ask.wall_s,
                "queue": ask.queue,
                "account": ask.account,
                "instead_of": ask.instead_of,
                "jobs": sum(s.jobs for s in ask.serves),
                "why": ask.why,
            }
            for ask, id in list(zip(plan.asks, ids, strict=True))[:SHOWN_MOST]
        ],
        "cancels": [{"batch_job": c.id, "why": c.why} for c in plan.cancels[:SHOWN_MOST]],
        "unmet": [{"code": u.code, "jobs": u.jobs, "why": u.why} for u in plan.unmet[:SHOWN_MOST]],
        "inputs": inputs_of(seen),
    }


def inputs_of(seen: Situation) -> dict[str, Any]:
    """What a decision was made from, in short."""
    return {
        "waiting": [
            {
                "jobs": w.jobs,
                "nodes": w.shape.nodes,
                "cores": w.shape.cores,
                "gpus": w.shape.gpus,
                "mem_bytes": w.shape.mem_bytes,
                "wall_s": w.shape.wall_s,
            }
            for w in seen.demand[:SHOWN_MOST]
        ],
        "open": [
            {"batch_job": a.id, "stage": str(a.stage), "nodes": a.nodes}
            for a in seen.open[:SHOWN_MOST]
        ],
        "node": None if seen.node is None else msgspec.to_builtins(seen.node),
        "named_free": dict(list(seen.named_free.items())[:SHOWN_MOST]),
        "windows": [msgspec.to_builtins(w) for w in seen.windows[:SHOWN_MOST]],
        "spent_node_s": seen.spent,
    }
