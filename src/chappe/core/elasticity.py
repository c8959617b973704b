"""How many allocations to ask for, and how large: a pure rule over what waits, what is open, and limits.

What waits is first given to what is open: to allocations that run and will have room in time, and to those
that were asked for and have not begun. Only for the rest is asked, the widest and longest Jobs first, within
the limits of policy, queues and budgets; of what cannot be asked for each Shape gets its reason. What is
queued and would serve nothing is taken back, when that has been so for a while: places in a queue are dear.

Why it does not swing: what is asked for is counted as room from the moment it was asked, by the same fit that
led to it, so the same demand asks nothing twice and calls nothing surplus. An allocation ceases to count
when its pilot has asked for work, since from then on what still waits did not fit into it. Made smaller is
only what waited too long, or is wider than the machine, each time to at most half.
"""

from __future__ import annotations

import math

from chappe.core.elastic import (
    DAY_S,
    Allocation,
    Ask,
    Cancel,
    Plan,
    Policy,
    PolicyKind,
    Situation,
    Stage,
    Unmet,
)
from chappe.core.elastic_fit import Bin, Load, bins_of, in_order, per_node
from chappe.core.elastic_purse import Need, Offer, Purse, Refusal


def decide(policy: Policy, seen: Situation) -> Plan:
    """What to ask for, and what to take back."""
    if policy.kind is PolicyKind.OFF:
        return Plan(why="the policy is off: nothing is asked for but what users ask for themselves")
    purse = Purse(policy, seen)
    asks = _lasting(policy, seen, purse)
    if policy.kind is PolicyKind.KEEP:
        return _finish(policy, seen, asks, (), [], [])
    within_s = _within_s(policy, seen)
    bins = bins_of(seen.open, seen.node, seen.now, policy.margin_s)
    for ask in asks:
        bins.append(Bin(ask.nodes, _room_s(policy, ask.wall_s), seen.node))
    loads = in_order(Load(w, policy.assumed_s, seen.named_free) for w in seen.demand if w.jobs > 0)
    unmet = [
        Unmet(w.shape, w.jobs, "named", _lacking(seen, w.shape.named))
        for w in seen.demand
        if w.jobs > 0 and not Load(w, policy.assumed_s, seen.named_free).jobs
    ]
    made: list[tuple[Offer, Bin]] = []
    for load in loads:
        for bin_ in bins:
            bin_.take(load, within_s)
        while load.jobs:
            found = _open(policy, seen, purse, load, within_s)
            if isinstance(found, Unmet):
                unmet.append(found)
                break
            offer, bin_ = found
            bin_.take(load, within_s)
            bins.append(bin_)
            made.append(found)
    for offer, bin_ in made:
        asks.append(_ask(offer, bin_, within_s))
    return _finish(policy, seen, asks, _smaller(policy, seen, bins), bins, unmet)


def _lasting(policy: Policy, seen: Situation, purse: Purse) -> list[Ask]:
    """The allocations that stay, as far as they are missing."""
    if seen.now < seen.hold_until:
        return []
    have = sum(a.lasting and a.own and a.stage is not Stage.CLOSED for a in seen.open)
    asks: list[Ask] = []
    for nth in range(have + 1, policy.keep + 1):
        offer = purse.lasting()
        if isinstance(offer, Refusal):
            break
        why = f"{nth} of {policy.keep} allocations that are kept whatever waits"
        asks.append(Ask(offer.nodes, offer.wall_s, why, offer.queue, offer.account, lasting=True))
    return asks


def _within_s(policy: Policy, seen: Situation) -> float:
    """The time from the start of an allocation in which what waits is to be through."""
    if policy.kind is not PolicyKind.DEADLINE or policy.deadline_at is None:
        return policy.within_s
    queue = policy.queues[0].name
    wait_s = seen.waits.expected_s(queue, policy.nodes, policy.wall_s) or 0.0
    return max(0.0, policy.deadline_at - seen.now - wait_s - policy.margin_s)


def _open(
    policy: Policy, seen: Situation, purse: Purse, load: Load, within_s: float
) -> tuple[Offer, Bin] | Unmet:
    """A new allocation for what is left of a load; or why there is none."""
    shape = load.shape
    at_once = per_node(shape, seen.node)
    if not at_once:
        return Unmet(shape, load.jobs, "node_size", _too_large(load, seen))
    turns = max(1, math.floor(within_s / load.time_s))
    rounds = min(turns, math.ceil(load.jobs / at_once))
    groups = math.ceil(load.jobs / (at_once * turns))
    need = Need(
        shape.nodes,
        groups * shape.nodes,
        load.time_s,
        max(1, rounds) * load.time_s,
        seen.node is None,
    )
    offer = purse.offer(need)
    if isinstance(offer, Refusal):
        return Unmet(shape, load.jobs, *offer)
    return offer, Bin(offer.nodes, _room_s(policy, offer.wall_s), seen.node)


def _room_s(policy: Policy, wall_s: float | None) -> float | None:
    return None if wall_s is None else max(0.0, wall_s - policy.margin_s)


def _ask(offer: Offer, bin_: Bin, within_s: float) -> Ask:
    jobs = sum(s.jobs for s in bin_.serves)
    why = f"{jobs} waiting jobs have no room in what is open, to be through in {within_s:.0f} s"
    if bin_.widest > 1:
        why += f"; the widest needs {bin_.widest} nodes"
    nodes = bin_.needed
    return Ask(nodes, offer.wall_s, why, offer.queue, offer.account, serves=tuple(bin_.serves))


def _smaller(policy: Policy, seen: Situation, bins: list[Bin]) -> list[Ask]:
    """Smaller ones for those that waited too long or would for ever, where what they are for fits into
    less."""
    asks = []
    for bin_ in bins:
        a = bin_.of
        if a is None or not bin_.serves or not _to_be_smaller(policy, a, seen.now):
            continue
        nodes = max(bin_.widest, a.nodes // 2)
        if nodes < a.nodes:
            why = f"{a.id} of {a.nodes} nodes has waited {seen.now - a.asked_at:.0f} s, and "
            if a.too_wide:
                why += "the scheduler has not so many for it"
            else:
                why += f"at most {policy.wait_s:.0f} s are wanted: a smaller one may begin sooner"
            serves = tuple(bin_.serves)
            asks.append(Ask(nodes, a.wall_s, why, a.queue, a.account, False, serves, a.id))
    return asks


def _to_be_smaller(policy: Policy, a: Allocation, now: float) -> bool:
    waits = policy.wait_s is not None and now - a.asked_at >= policy.wait_s
    return (waits or a.too_wide) and a.stage is Stage.QUEUED and a.own and not a.lasting


def _finish(
    policy: Policy,
    seen: Situation,
    asks: list[Ask],
    smaller: list[Ask] | tuple[()],
    bins: list[Bin],
    unmet: list[Unmet],
) -> Plan:
    idle = [
        b.of
        for b in bins
        if b.of is not None
        and b.of.stage is Stage.QUEUED
        and b.of.own
        and not b.of.lasting
        and not b.serves
    ]
    cancels = [
        Cancel(a.id, f"nothing that waits has needed it for {policy.idle_s:.0f} s")
        for a in idle
        if a.surplus_at is not None and seen.now - a.surplus_at >= policy.idle_s
    ]
    held = seen.now < seen.hold_until
    all_asks = () if held else (*asks, *smaller)
    return Plan(
        all_asks,
        tuple(cancels),
        tuple(unmet),
        tuple(a.id for a in idle),
        _why(policy, seen, len(all_asks), cancels, unmet, held),
        _again_at(policy, seen, idle, held),
    )


def _why(
    policy: Policy,
    seen: Situation,
    asks: int,
    cancels: list[Cancel],
    unmet: list[Unmet],
    held: bool,
) -> str:
    waiting = sum(w.jobs for w in seen.demand)
    if held:
        return (
            f"nothing is asked for during the next {seen.hold_until - seen.now:.0f} s: pilots ended "
            "as soon as they had begun"
        )
    if asks or cancels:
        return f"{waiting} jobs wait, {len(seen.open)} allocations are open"
    if policy.kind is PolicyKind.KEEP:
        return f"of {policy.keep} to be kept, all are open, or cannot be asked for"
    if not waiting:
        return "no job waits"
    if unmet:
        return f"{waiting} jobs wait: {unmet[0].why}"
    return f"{waiting} jobs wait, and what is open has room for them in time"


def _again_at(policy: Policy, seen: Situation, idle: list[Allocation], held: bool) -> float | None:
    times = [(seen.now if a.surplus_at is None else a.surplus_at) + policy.idle_s for a in idle]
    if held:
        times.append(seen.hold_until)
    if policy.wait_s is not None:
        times += [
            a.asked_at + policy.wait_s
            for a in seen.open
            if a.stage is Stage.QUEUED and a.own and not a.lasting
        ]
    if any(a is not None for a in (policy.day_node_s, *(a.day_node_s for a in policy.accounts))):
        times.append(seen.now + DAY_S / 96)
    return min((at for at in times if at > seen.now), default=None)


def _too_large(load: Load, seen: Situation) -> str:
    shape, node = load.shape, seen.node
    assert node is not None  # noqa: S101 - of an unknown node nothing is too large
    if shape.cores > node.cores:
        return f"it needs {shape.cores} cores of a node, and a node has {node.cores}"
    if shape.gpus > node.gpus:
        return f"it needs {shape.gpus:g} GPUs of a node, and a node has {node.gpus:g}"
    return f"it needs {shape.mem_bytes} bytes of a node, and a node has {node.mem_bytes}"


def _lacking(seen: Situation, named: tuple[tuple[str, int], ...]) -> str:
    for name, count in named:
        free = seen.named_free.get(name, 0)
        if free < count:
            return f"it needs {count} {name}, of which {max(0, free)} are free: no allocation helps"
    return "it needs something that the site has not"
