"""Decisions about allocations, one situation at a time."""

from __future__ import annotations

from typing import Any

import msgspec

from chappe.core.elastic import (
    Account,
    Allocation,
    Ask,
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
from chappe.core.elasticity import decide
from chappe.core.shapes import Shape
from chappe.core.waits import Waits

NOW = 1_000_000.0
NODE = NodeSize(cores=16, mem_bytes=64 << 30)
FIT = Policy(PolicyKind.FIT, wall_s=4 * 3_600.0)


def shape(cores: int = 1, wall_s: int = 600, nodes: int = 1, **more: Any) -> Shape:
    return Shape(("s",), cores, 0, wall_s, nodes, **more)


def seen(*demand: tuple[Shape, int], **more: Any) -> Situation:
    waiting = tuple(Waiting(s, jobs) for s, jobs in demand)
    return Situation(NOW, waiting, **{"node": NODE, **more})


def open_as(ask: Ask, stage: Stage, id: str = "b1", **more: Any) -> Allocation:
    began_at = None if stage is Stage.QUEUED else NOW
    fields = {"asked_at": NOW, "wall_s": ask.wall_s, "began_at": began_at} | more
    return Allocation(id, stage, ask.nodes, **fields)


def only(plan: Plan) -> Ask:
    (ask,) = plan.asks
    return ask


# --- how many, and how large


def test_one_small_job_gets_one_node_for_as_long_as_it_takes() -> None:
    ask = only(decide(FIT, seen((shape(wall_s=3_600), 1))))
    assert (ask.nodes, ask.wall_s) == (1, 7_200.0)
    assert "1 waiting jobs" in ask.why


def test_short_jobs_follow_each_other_long_ones_stand_beside_each_other() -> None:
    policy = msgspec.structs.replace(FIT, within_s=3_600.0)
    short = decide(policy, seen((shape(wall_s=600), 960)))
    long = decide(policy, seen((shape(wall_s=7_200), 96)))
    assert sum(a.nodes for a in short.asks) == 10  # 960 / (16 cores x 6 turns)
    assert sum(a.nodes for a in long.asks) == 6  # 96 / 16


def test_a_wide_job_gets_an_allocation_that_fits_it() -> None:
    policy = msgspec.structs.replace(FIT, nodes=8)
    ask = only(decide(policy, seen((shape(16, nodes=4), 1), (shape(), 10))))
    assert ask.nodes == 5
    assert [s.shape.nodes for s in ask.serves] == [4, 1]


def test_where_few_allocations_may_be_open_they_are_larger() -> None:
    policy = msgspec.structs.replace(FIT, most=2)
    plan = decide(policy, seen((shape(16, wall_s=3_600), 20)))
    assert [a.nodes for a in plan.asks] == [10, 10]


def test_before_a_node_is_known_one_allocation_is_asked_for() -> None:
    ask = only(decide(FIT, seen((shape(), 10_000), node=None)))
    assert ask.nodes == 1
    again = decide(
        FIT, seen((shape(64, nodes=2), 5), node=None, open=(open_as(ask, Stage.QUEUED),))
    )
    assert not again.asks
    assert again.unmet[0].code == "maximum"


# --- what is open already


def test_what_was_asked_for_counts_until_its_pilot_asks_for_work() -> None:
    demand = ((shape(16, wall_s=7_200), 3),)
    asks = decide(FIT, seen(*demand)).asks
    for stage in (Stage.QUEUED, Stage.FRESH):
        open_ = tuple(open_as(a, stage, f"b{n}") for n, a in enumerate(asks))
        assert not decide(FIT, seen(*demand, open=open_)).asks
    full = tuple(open_as(a, Stage.ASKS, f"b{n}") for n, a in enumerate(asks))
    assert len(decide(FIT, seen(*demand, open=full)).asks) == 3


def test_a_running_allocation_will_have_room_for_short_jobs() -> None:
    running = Allocation("b1", Stage.ASKS, 1, NOW - 60, 7_200.0, NOW - 60)
    assert not decide(FIT, seen((shape(wall_s=60), 500), open=(running,))).asks
    assert decide(FIT, seen((shape(wall_s=3_600), 500), open=(running,))).asks


def test_an_allocation_that_ends_soon_is_no_room() -> None:
    ending = Allocation("b1", Stage.ASKS, 1, NOW - 7_060, 7_200.0, NOW - 7_060)
    assert decide(FIT, seen((shape(wall_s=60), 5), open=(ending,))).asks


def test_what_is_queued_for_nobody_is_taken_back_after_a_while() -> None:
    ask = only(decide(FIT, seen((shape(), 1))))
    queued = open_as(ask, Stage.QUEUED)
    plan = decide(FIT, seen(open=(queued,)))
    assert (plan.surplus, plan.cancels, plan.again_at) == (("b1",), (), NOW + FIT.idle_s)
    late = msgspec.structs.replace(queued, surplus_at=NOW - FIT.idle_s)
    assert decide(FIT, seen(open=(late,))).cancels[0].id == "b1"
    for safe in ({"own": False}, {"lasting": True}):
        kept = msgspec.structs.replace(late, **safe)
        assert not decide(FIT, seen(open=(kept,))).cancels


def test_what_waits_too_long_is_made_smaller_and_never_smaller_than_its_job() -> None:
    policy = msgspec.structs.replace(FIT, nodes=8, wait_s=600.0)
    for width, smaller in ((1, 4), (6, 6), (8, None)):
        job = shape(16, wall_s=7_200, nodes=width)
        queued = Allocation("b1", Stage.QUEUED, 8, NOW - 601, 14_400.0)
        plan = decide(policy, seen((job, 8 // width), open=(queued,)))
        assert [a.nodes for a in plan.asks if a.instead_of == "b1"] == (
            [smaller] if smaller else []
        )


def test_what_is_wider_than_the_machine_is_halved_at_once_until_it_is_not() -> None:
    wide = Allocation("b1", Stage.QUEUED, 8, NOW, 14_400.0, too_wide=True)
    job = shape(16, wall_s=7_200)
    widths = [8]
    while wide.too_wide:
        (ask,) = [a for a in decide(FIT, seen((job, 8), open=(wide,))).asks if a.instead_of]
        widths.append(ask.nodes)
        assert "not so many" in ask.why
        wide = open_as(ask, Stage.QUEUED, too_wide=ask.nodes > 3)
    assert widths == [8, 4, 2]
    assert not [a for a in decide(FIT, seen((job, 8), open=(wide,))).asks if a.instead_of]
    for kept in ({"own": False}, {"lasting": True}, {"nodes": 1}):
        alone = msgspec.structs.replace(wide, too_wide=True, **kept)
        assert not [a for a in decide(FIT, seen((job, 8), open=(alone,))).asks if a.instead_of]


# --- reasons


def test_what_cannot_be_asked_for_has_its_reason() -> None:
    policy = msgspec.structs.replace(
        FIT, nodes_most=64, queues=(Queue("q", nodes=8, wall_s=7_200.0),), day_node_s=0.0
    )
    cases = {
        "node_size": shape(17),
        "nodes": shape(nodes=9),
        "wall": shape(wall_s=86_400),
        "named": shape(named=(("licence", 1),)),
        "budget": shape(),
    }
    for code, hard in cases.items():
        plan = decide(policy, seen((hard, 3)))
        assert not plan.asks
        assert [(u.code, u.jobs) for u in plan.unmet] == [(code, 3)]
        assert plan.unmet[0].why in plan.why


def test_licences_bound_how_many_jobs_count() -> None:
    job = shape(16, wall_s=7_200, named=(("licence", 2),))
    plan = decide(FIT, seen((job, 50), named_free={"licence": 5}))
    assert sum(a.nodes for a in plan.asks) == 2


def test_pilots_that_die_at_once_are_waited_for() -> None:
    plan = decide(FIT, seen((shape(), 1), hold_until=NOW + 8))
    assert not plan.asks
    assert plan.again_at == NOW + 8
    assert "8 s" in plan.why


# --- the other policies


def test_keep_asks_for_what_is_missing_and_no_more() -> None:
    policy = Policy(keep=3)
    plan = decide(policy, seen((shape(), 500)))
    assert [(a.nodes, a.wall_s, a.lasting) for a in plan.asks] == [(1, None, True)] * 3
    one = Allocation("b1", Stage.ASKS, 1, NOW, lasting=True)
    users = Allocation("b2", Stage.ASKS, 1, NOW, own=False)
    leaving = Allocation("b3", Stage.CLOSED, 1, NOW, lasting=True)
    assert len(decide(policy, seen(open=(one, users, leaving))).asks) == 2


def test_off_asks_for_nothing() -> None:
    plan = decide(Policy(PolicyKind.OFF, keep=3), seen((shape(), 500)))
    assert not plan.acts
    assert "off" in plan.why


def test_backfill_asks_for_what_fits_into_a_window() -> None:
    policy = msgspec.structs.replace(FIT, kind=PolicyKind.BACKFILL, nodes=8)
    job = (shape(16, wall_s=1_800), 100)
    assert decide(policy, seen(job)).unmet[0].code == "window"
    window = Window(3, 3_000.0)
    ask = only(decide(policy, seen(job, windows=(window,))))
    assert (ask.nodes, ask.wall_s) == (3, 3_000.0)
    assert decide(policy, seen(job, windows=(Window(3, 1_000.0),))).unmet[0].code == "window"
    queued = (open_as(ask, Stage.QUEUED),)
    assert not decide(policy, seen(job, windows=(window,), open=queued)).asks


def test_a_deadline_asks_for_as_much_as_it_takes() -> None:
    def nodes(left_s: float, waits: Waits = Waits()) -> int:  # noqa: B008 - immutable
        policy = msgspec.structs.replace(
            FIT, kind=PolicyKind.DEADLINE, deadline_at=NOW + left_s + FIT.margin_s, most=50
        )
        demand = seen((shape(16, wall_s=600), 48), waits=waits)
        return sum(a.nodes for a in decide(policy, demand).asks)

    assert [nodes(s) for s in (48 * 600, 7_200, 1_200, 600, 0)] == [
        3,
        4,
        24,
        48,
        48,
    ]  # 4 h of wall time, less the margin, are 23 turns
    slow = Waits().learned("", 1, FIT.wall_s, 1_200.0)
    assert nodes(2_400, slow) == nodes(1_200)


def test_the_queue_that_begins_soonest_is_asked_and_the_account_with_most_left_pays() -> None:
    queues = (Queue("slow"), Queue("fast"), Queue("short", wall_s=60.0))
    accounts = (Account("a", 40_000.0), Account("b", 90_000.0))
    policy = msgspec.structs.replace(FIT, queues=queues, accounts=accounts)
    waits = Waits().learned("slow", 1, 3_600.0, 900.0).learned("fast", 1, 3_600.0, 5.0)
    ask = only(decide(policy, seen((shape(), 1), waits=waits, spent={"a": 10.0})))
    assert (ask.queue, ask.account) == ("fast", "b")


# --- learned waits


def test_waits_answer_from_the_nearest_bucket_that_knows_enough() -> None:
    waits = Waits()
    assert waits.expected_s("q", 1, 3_600.0) is None
    for waited_s in (10.0, 20.0, 30.0, 40.0):
        waits = waits.learned("q", 1, 3_600.0, waited_s)
    for waited_s in (1_000.0, 2_000.0, 3_000.0):
        waits = waits.learned("q", 64, 86_400.0, waited_s)
    assert waits.expected_s("q", 1, 3_000.0) == 20.0
    assert waits.expected_s("q", 1, 3_000.0, quantile=0.9) == 40.0
    assert waits.expected_s("q", 48, 80_000.0) == 2_000.0
    assert waits.expected_s("other", 1, 3_600.0) is None
    assert msgspec.json.decode(msgspec.json.encode(waits), type=Waits) == waits


def test_waits_are_bounded_and_forget_the_oldest() -> None:
    waits = Waits()
    for n in range(1_000):
        waits = waits.learned("q", 1, 60.0, float(n))
    assert waits.expected_s("q", 1, 60.0, quantile=0.01) == 952.0
    for n in range(600):
        waits = waits.learned(f"q{n}", 1, 60.0, 1.0)
    assert len(waits.buckets) == 400
