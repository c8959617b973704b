"""What a decision about allocations never does, whatever waits and whatever is open.

A small batch system follows the decisions: what is asked for is queued, begins or not, asks for work or not.
"""

from __future__ import annotations

import math

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from chappe.core.elastic import (
    DAY_S,
    Account,
    Allocation,
    NodeSize,
    Plan,
    Policy,
    PolicyKind,
    Queue,
    Situation,
    Stage,
    Waiting,
    Window,
)
from chappe.core.elastic_fit import per_node
from chappe.core.elasticity import decide
from chappe.core.shapes import Shape
from chappe.core.waits import Waits

NOW = 1e9
NODE = NodeSize(8, 64, 2)

SHAPES = st.builds(
    Shape,
    sites=st.just(("s",)),
    cores=st.integers(1, 10),
    mem_bytes=st.sampled_from([0, 8, 64, 80]),
    wall_s=st.sampled_from([0, 1, 60, 600, 3_600, 14_400]),
    nodes=st.sampled_from([1, 1, 1, 2, 3, 9]),
    gpus=st.sampled_from([0, 0, 0.5, 2, 3]),
    named=st.sampled_from([(), (), (("licence", 2),)]),
)
DEMAND = st.lists(
    st.builds(Waiting, SHAPES, st.integers(0, 300)), max_size=5, unique_by=lambda w: w.shape
).map(tuple)
POLICIES = st.builds(
    Policy,
    kind=st.sampled_from(PolicyKind),
    keep=st.integers(0, 2),
    most=st.integers(0, 8),
    queued_most=st.integers(0, 5),
    nodes=st.integers(1, 5),
    nodes_most=st.integers(1, 20),
    wall_s=st.sampled_from([None, 1_800.0, 20_000.0]),
    within_s=st.sampled_from([0.0, 600.0, 3_600.0]),
    deadline_at=st.sampled_from([None, NOW - 5, NOW + 9_000]),
    wait_s=st.sampled_from([None, 1_000.0]),
    day_node_s=st.sampled_from([None, 0.0, 50_000.0]),
    queues=st.sampled_from(
        [
            (Queue(),),
            (Queue("small", 2, 3_600.0, 2, 3), Queue("large", None, 90_000.0, 2)),
        ]
    ),
    accounts=st.sampled_from([(Account(),), (Account("a", 30_000.0), Account("b", 9_000.0))]),
)


@st.composite
def allocations(draw: st.DrawFn) -> tuple[Allocation, ...]:
    found = []
    for n in range(draw(st.integers(0, 4))):
        stage = draw(st.sampled_from(Stage))
        asked_at = NOW - draw(st.sampled_from([0.0, 500.0, 2_000.0]))
        found.append(
            Allocation(
                f"b{n}",
                stage,
                draw(st.integers(1, 4)),
                asked_at,
                draw(st.sampled_from([None, 3_600.0])),
                None if stage is Stage.QUEUED else asked_at,
                draw(st.sampled_from(["", "small", "large"])),
                draw(st.sampled_from(["", "a"])),
                own=draw(st.booleans()),
                lasting=draw(st.booleans()),
                surplus_at=draw(st.sampled_from([None, NOW - 400.0])),
            )
        )
    return tuple(found)


@st.composite
def situations(draw: st.DrawFn) -> Situation:
    return Situation(
        NOW,
        draw(DEMAND),
        draw(allocations()),
        draw(st.sampled_from([NODE, NODE, None])),
        {"licence": draw(st.integers(0, 5))},
        (Window(3, 4_000.0), Window(1, None, "small")),
        Waits().learned("small", 1, 3_600.0, 100.0),
        {"": draw(st.sampled_from([0.0, 20_000.0]))},
        draw(st.sampled_from([0.0, 0.0, NOW + 5])),
    )


def cost(nodes: int, wall_s: float | None) -> float:
    return nodes * (DAY_S if wall_s is None else wall_s)


@given(POLICIES, situations())
def test_a_plan_never_exceeds_policy_limits_or_budget(policy: Policy, seen: Situation) -> None:
    plan = decide(policy, seen)
    if policy.kind is PolicyKind.OFF or seen.hold_until > NOW:
        assert not plan.asks
    more = [ask for ask in plan.asks if ask.instead_of is None]
    if more:
        assert len(seen.open) + len(more) <= policy.most
        queued = sum(a.stage is Stage.QUEUED for a in seen.open)
        assert queued + len(more) <= policy.queued_most
        nodes = sum(a.nodes for a in seen.open) + sum(a.nodes for a in more)
        assert nodes <= policy.nodes_most
    queues = {q.name: q for q in policy.queues}
    by_id = {a.id: a for a in seen.open}
    for ask in plan.asks:
        assert ask.why
        if ask.instead_of is not None:
            old = by_id[ask.instead_of]
            assert (old.stage, old.own, old.lasting) == (Stage.QUEUED, True, False)
            assert ask.nodes <= max(old.nodes // 2, *(s.shape.nodes for s in ask.serves))
            assert (ask.queue, ask.wall_s, ask.account) == (old.queue, old.wall_s, old.account)
            assert ask.nodes < old.nodes
            continue
        queue = queues[ask.queue]
        assert ask.nodes <= (queue.nodes or math.inf)
        wall_s = math.inf if ask.wall_s is None else ask.wall_s
        for most in (policy.wall_s, queue.wall_s):
            assert most is None or wall_s <= most
    for name, queue in queues.items():
        new = sum(a.queue == name for a in more)
        ours = [a for a in seen.open if a.queue == name]
        queued = sum(a.stage is Stage.QUEUED for a in ours)
        assert not new or queue.queued is None or queued + new <= queue.queued
        assert not new or queue.opened is None or len(ours) + new <= queue.opened
    check_budgets(policy, seen, plan)


def check_budgets(policy: Policy, seen: Situation, plan: Plan) -> None:
    more = [ask for ask in plan.asks if ask.instead_of is None]
    spent = dict(seen.spent)
    for a in seen.open:
        spent[a.account] = spent.get(a.account, 0.0) + cost(a.nodes, a.wall_s)
    for ask in more:
        spent[ask.account] = spent.get(ask.account, 0.0) + cost(ask.nodes, ask.wall_s)
    if more and policy.day_node_s is not None:
        assert sum(spent.values()) <= policy.day_node_s + 1e-6
    for account in policy.accounts:
        if account.day_node_s is not None and any(a.account == account.name for a in more):
            assert spent[account.name] <= account.day_node_s + 1e-6


@given(POLICIES, situations())
def test_without_demand_only_what_is_kept_is_asked_for(policy: Policy, seen: Situation) -> None:
    none = tuple(msgspec.structs.replace(w, jobs=0) for w in seen.demand)
    plan = decide(policy, msgspec.structs.replace(seen, demand=none))
    assert all(ask.lasting for ask in plan.asks)
    assert len(plan.asks) <= policy.keep
    assert not plan.unmet


@given(POLICIES, situations())
def test_every_job_has_room_or_a_named_reason(policy: Policy, seen: Situation) -> None:
    """Counted over one decision: what fits into nothing open is asked for, or named with its reason."""
    if policy.kind in (PolicyKind.OFF, PolicyKind.KEEP):
        return
    seen = msgspec.structs.replace(seen, open=(), hold_until=0.0)
    plan = decide(policy, seen)
    for w in seen.demand:
        named = [u for u in plan.unmet if u.shape == w.shape]
        served = sum(s.jobs for ask in plan.asks for s in ask.serves if s.shape == w.shape)
        lasting = any(ask.lasting for ask in plan.asks)
        licences = seen.named_free["licence"] // 2 if w.shape.named else w.jobs
        assert served <= w.jobs
        if w.jobs and not named and not lasting:
            assert served == min(w.jobs, licences)
        for u in named:
            assert all((u.code, u.why, u.jobs))
    for ask in plan.asks:
        for s in ask.serves:
            assert s.shape.nodes <= ask.nodes
            assert per_node(s.shape, seen.node) > 0
            time_s = s.shape.wall_s or policy.assumed_s
            assert ask.wall_s is None or time_s <= ask.wall_s


@given(DEMAND, st.integers(1, 3), st.sampled_from([0.0, 600.0, 3_600.0]), st.integers(1, 5))
def test_more_demand_never_asks_for_less(
    demand: tuple[Waiting, ...], times: int, within_s: float, nodes: int
) -> None:
    policy = Policy(
        PolicyKind.FIT,
        most=10_000,
        queued_most=10_000,
        nodes=nodes,
        nodes_most=100_000,
        within_s=within_s,
    )
    more = tuple(msgspec.structs.replace(w, jobs=w.jobs * times + times) for w in demand)
    free = {"licence": 1_000}
    before = decide(policy, Situation(NOW, demand, node=NODE, named_free=free))
    after = decide(policy, Situation(NOW, more, node=NODE, named_free=free))
    assert sum(a.nodes for a in before.asks) <= sum(a.nodes for a in after.asks)


@given(POLICIES, DEMAND, st.sampled_from([NODE, None]), st.booleans())
def test_the_same_demand_leads_to_rest(
    policy: Policy, demand: tuple[Waiting, ...], node: NodeSize | None, begins: bool
) -> None:
    """What is asked for stays in its queue, or begins and still nobody asks for work. The demand stays. Then
    nothing is asked for twice, and nothing that was asked for is taken back; only what waits too long is made
    smaller, and for that what is missing is asked for again."""
    open_: list[Allocation] = []
    now, quiet = NOW, 0
    for step in range(80):
        seen = Situation(now, demand, tuple(open_), node, {"licence": 5}, (Window(4, 9_000.0),))
        plan = decide(policy, seen)
        assert not plan.cancels
        assert not plan.surplus
        quiet = 0 if plan.asks else quiet + 1
        gone = {ask.instead_of for ask in plan.asks}
        open_ = [a for a in open_ if a.id not in gone]
        for n, ask in enumerate(plan.asks):
            open_.append(
                Allocation(
                    f"{step}.{n}",
                    Stage.FRESH if begins else Stage.QUEUED,
                    ask.nodes,
                    now,
                    ask.wall_s,
                    now if begins else None,
                    ask.queue,
                    ask.account,
                    lasting=ask.lasting,
                )
            )
        if quiet == 10:
            return
        now += 300.0
    raise AssertionError("it never comes to rest")
