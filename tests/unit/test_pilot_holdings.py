"""What the pilot holds: fences, order, returns, cancels, and what it tells the Hub of it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from chappe.core import limits
from chappe.core.leases import Outcome, Reason, Usage
from chappe.link.journal import End
from chappe.pilot.holding import Holding, Phase
from chappe.pilot.holdings import KEEP_NONE_S, KEEP_S, Holdings
from chappe.pilot.nodes import Need
from chappe.pilot.pacing import STALE_S
from chappe.pilot.placement import Place, Placement
from chappe.testing.nodes import big, plain
from chappe.wire.sync import Grant, HeldJob, JobEpoch

GIB = 1 << 30


def grant(job: str, epoch: int = 1, priority: int = 0, **spec: Any) -> Grant:
    names = ("cores", "mem_bytes", "estimate_s", "wall_s", "gpus", "nodes", "warn_s")
    resources = {k: spec.pop(k) for k in names if k in spec}
    raw = msgspec.Raw(msgspec.json.encode({"resources": resources, **spec}))
    return Grant(job, epoch, 1, raw, priority=priority)


def node(cores: int = 2) -> Holdings:
    return Holdings(Placement([plain(range(cores))]))


def take(held: Holdings, *grants: Grant, sent_at: float = 0.0) -> list[Holding]:
    """Grants that arrived and are in the journal."""
    new, refusals = held.granted(grants, sent_at, 0.0)
    assert refusals == []
    held.journaled(new)
    return new


def hand(held: Holdings, now: float = 0.0) -> list[str]:
    """Start what can start now."""
    picked = held.pick(now, 100)
    for h in picked:
        h.claim()
        h.phase = Phase.HANDED
    return [h.job for h in picked]


def end(held: Holdings, h: Holding, wall_s: float = 1.0) -> End:
    outcome = Outcome(Reason.EXIT, 0, usage=Usage(wall_s=wall_s))
    return held.over(h, End(h.job, h.epoch, 1, "end", 0.0, outcome))


def named(held: Sequence[HeldJob]) -> set[tuple[str, bool]]:
    return {(h.job, h.started) for h in held}


def test_nothing_starts_before_it_is_in_the_journal() -> None:
    held = node()
    new, _ = held.granted([grant("a")], 0.0, 0.0)
    assert held.pick(0.0, 10) == []
    assert named(held.held()) == {("a", False)}
    held.journaled(new)
    assert hand(held) == ["a"]
    assert named(held.held()) == {("a", True)}


def test_repeated_grants_are_one() -> None:
    held = node()
    take(held, grant("a"))
    assert held.granted([grant("a")], 5.0, 0.0) == ([], [])
    assert len(held) == 1


def test_a_higher_epoch_replaces_a_grant_that_has_not_begun() -> None:
    held = node()
    take(held, grant("a", 1))
    take(held, grant("a", 2))
    assert [h.epoch for h in held.pick(0.0, 10)] == [2]
    assert held.get("a", 1) is None


def test_a_job_that_runs_here_is_not_started_again() -> None:
    held = node()
    take(held, grant("a", 1))
    hand(held)
    new, refusals = held.granted([grant("a", 2)], 0.0, 7.0)
    assert new == []
    assert [(r.job, r.epoch, r.kind, r.reason) for r in refusals] == [
        ("a", 2, "refused", "replayed")
    ]
    assert held.get("a", 1) is not None


def test_a_job_that_ended_here_and_was_granted_anew_runs_again() -> None:
    held = node()
    (a,) = take(held, grant("a", 1))
    hand(held)
    end(held, a)
    take(held, grant("a", 2))
    held.settled("a", 1)
    assert hand(held) == ["a"]


def test_a_claimed_start_that_was_not_made_passes_on_to_the_next_epoch() -> None:
    held = node()
    (old,) = take(held, grant("a", 1))
    held.pick(0.0, 1)
    old.claim()
    held.again([old])
    (new,) = take(held, grant("a", 2))
    assert new.claimed


def test_what_never_fits_is_refused() -> None:
    new, refusals = node(2).granted([grant("a", cores=3)], 0.0, 0.0)
    assert new == []
    assert refusals[0].reason == "too_large"
    assert "3 cores" in refusals[0].outcome.message


def test_by_priority_then_first_granted_first() -> None:
    held = node(4)
    take(held, grant("a"), grant("b", priority=1), grant("c"))
    take(held, grant("d", priority=1))
    assert hand(held) == ["b", "d", "a", "c"]


def test_smaller_jobs_do_not_overtake_one_that_waits() -> None:
    held = node(2)
    (a, *_) = take(held, grant("a"), grant("wide", cores=2), grant("c"))
    assert hand(held) == ["a"]
    end(held, a)
    assert hand(held) == ["wide"]


def test_a_grant_lapses_sixty_seconds_after_its_request_was_sent() -> None:
    held = node()
    take(held, grant("a"), sent_at=100.0)
    assert held.pick(100.0 + limits.START_WITHIN_S + 0.1, 10) == []
    assert held.returning() == [JobEpoch("a", 1)]
    assert held.held() == []


def test_renewal_counts_from_the_sending_of_the_request_that_named_it() -> None:
    held = node()
    (a,) = take(held, grant("a"), sent_at=100.0)
    order = held.last_order()
    (late,) = take(held, grant("late"), sent_at=105.0)
    held.renewed(order, 150.0)
    assert held.start_by(a) == 150.0 + limits.START_WITHIN_S
    assert held.start_by(late) == 105.0 + limits.START_WITHIN_S
    assert [h.job for h in held.pick(209.0, 10)] == ["a"]


def test_an_old_answer_takes_no_renewal_back() -> None:
    held = node()
    (a,) = take(held, grant("a"), sent_at=100.0)
    held.renewed(held.last_order(), 150.0)
    held.renewed(held.last_order(), 120.0)
    assert held.start_by(a) == 150.0 + limits.START_WITHIN_S


def test_a_claimed_start_that_lapsed_waits_for_contact_and_is_not_returned() -> None:
    held = node()
    take(held, grant("a"), sent_at=100.0)
    picked = held.pick(100.0, 10)
    picked[0].claim()
    held.again(picked)
    assert held.pick(200.0, 10) == []
    assert held.returning() == []
    held.renewed(held.last_order(), 199.0)
    assert [h.job for h in held.pick(200.0, 10)] == ["a"]


def test_what_was_not_started_waits_again_in_its_old_order() -> None:
    held = node(4)
    take(held, *(grant(name) for name in "abcd"))
    picked = held.pick(0.0, 3)
    held.again(picked)
    assert hand(held) == ["a", "b", "c", "d"]


def test_a_cancel_returns_what_waits_and_kills_what_runs() -> None:
    held = node(1)
    take(held, grant("runs"), grant("waits"))
    hand(held)
    assert held.kill("waits", 1) == (False, None)
    assert held.returning() == [JobEpoch("waits", 1)]
    assert held.kill("runs", 1) == (True, None)
    assert held.kill("runs", 1) == (False, None)  # the Hub repeats it until the end is reported
    assert held.kill("runs", 2) == (False, None)
    assert held.kill("nobody", 1) == (False, None)


def test_a_cancel_while_it_is_being_prepared_is_remembered() -> None:
    held = node()
    take(held, grant("a"))
    (a,) = held.pick(0.0, 1)
    assert held.kill("a", 1) == (False, None)
    assert a.ending == "cancelled"


def test_a_cancel_of_a_claimed_start_that_waits_is_an_end() -> None:
    held = node()
    take(held, grant("a"))
    (a,) = held.pick(0.0, 1)
    a.claim()
    held.again([a])
    assert held.kill("a", 1) == (False, a)


def test_what_the_hub_does_not_know_is_dropped_or_runs_on() -> None:
    held = node(1)
    take(held, grant("runs"), grant("waits"))
    hand(held)
    dropped = held.disowned("waits", 1)
    assert dropped is not None
    assert held.disowned("runs", 1) is None
    runs = held.get("runs", 1)
    assert runs is not None
    assert runs.orphan
    assert held.held() == []
    assert len(held) == 1
    assert held.returning() == []


def test_an_end_stands_in_the_reports_or_in_held_until_its_verdict() -> None:
    held = node()
    (a,) = take(held, grant("a"))
    hand(held)
    end(held, a)
    assert named(held.held()) == {("a", True)}
    held.reporting(["a"])
    assert held.held() == []
    held.reporting([])  # the request was not taken: the next one names it again
    assert named(held.held()) == {("a", True)}
    held.settled("a", 1)
    assert len(held) == 0


def test_returns_are_repeated_until_answered() -> None:
    held = node(1)
    (a,) = take(held, grant("a"))
    held.give_back(a)
    first = held.returning()
    assert held.returning() == first == [JobEpoch("a", 1)]
    held.returned(first)
    assert held.returning() == []


def test_a_grant_that_comes_back_is_not_returned_again() -> None:
    held = node(1)
    (a,) = take(held, grant("a", 1))
    held.give_back(a)
    given = held.returning()
    take(held, grant("a", 2))
    held.returned(given)
    assert held.returning() == []
    assert hand(held) == ["a"]


def test_takeover_deadlines_follow_the_contact() -> None:
    held = node(3)
    take(held, grant("a", takeover_s=90.0), grant("b"), grant("c", takeover_s=60.0), sent_at=100.0)
    assert held.renewed(held.last_order(), 110.0) == {}  # nothing is with the launcher yet
    hand(held, 110.0)
    held.disowned("c", 1)
    assert held.renewed(held.last_order(), 120.0) == {("a", 1): 210.0}


def test_draining_returns_what_waits_and_names_what_was_claimed() -> None:
    held = node(1)
    take(held, grant("runs"), grant("claimed"), grant("waits"))
    hand(held)
    claimed = held.get("claimed", 1)
    assert claimed is not None
    claimed.claim()
    assert held.give_back_unstarted() == [claimed]
    assert held.returning() == [JobEpoch("waits", 1)]


def test_what_waits_in_vain_goes_back() -> None:
    held = node(1)
    (runs, _) = take(held, grant("runs"), grant("waits"))
    hand(held, 10.0)
    assert held.pick(10.0, 10) == []
    assert held.stale_at() == 10.0 + STALE_S
    assert not held.return_stale(10.0 + STALE_S - 0.1)
    assert held.return_stale(10.0 + STALE_S)
    assert held.returning() == [JobEpoch("waits", 1)]
    assert held.stale_at() is None
    held.estimate.ended(0.001)
    assert held.capacity(None).prefetch == 0  # until something ends here
    end(held, runs)
    assert held.capacity(None).prefetch > 0


def test_capacity_is_what_is_free_and_not_spoken_for() -> None:
    held = node(4)
    offer = held.capacity(900.0)
    assert (offer.cores, offer.node_cores, offer.prefetch, offer.left_s) == (4, 4, 0, 900.0)
    take(held, grant("a", mem_bytes=GIB // 2))
    offer = held.capacity(None)
    assert (offer.cores, offer.mem_bytes) == (3, GIB // 2)
    hand(held)
    assert held.capacity(None) == offer
    held.estimate.ended(0.25)
    take(held, *(grant(f"n{k}") for k in range(10)))
    assert (held.capacity(None).cores, held.capacity(None).prefetch) == (0, 16 - 10)


def test_what_users_expect_counts_while_nothing_is_measured() -> None:
    held = node(1)
    take(held, grant("a", estimate_s=0.25))
    assert held.capacity(None).prefetch == 4 - 1


def test_parents_are_fetched_before_it_joins_the_line() -> None:
    held = node(1)
    new, _ = held.granted([grant("child", parents=["p"]), grant("other")], 0.0, 0.0)
    (child,) = held.journaled(new)
    assert child.job == "child"
    assert hand(held) == ["other"]
    other = held.get("other", 1)
    assert other is not None
    end(held, other)
    held.fetched(child, "/some/parents.json")
    assert hand(held) == ["child"]


def test_parents_that_come_too_late_change_nothing() -> None:
    held = node(1)
    new, _ = held.granted([grant("child", parents=["p"])], 0.0, 0.0)
    (child,) = held.journaled(new)
    held.give_back(child)
    held.fetched(child, "/some/parents.json")
    assert held.pick(0.0, 10) == []
    assert len(held) == 0


def test_adopted_runs_take_their_room_and_are_started() -> None:
    held = node(2)
    held.adopt(Holding(grant("a"), -1e9, 0), Phase.RUNNING, 5.0, [Place("", {1})])
    assert named(held.held()) == {("a", True)}
    assert held.placement.free_cores == 1
    a = held.get("a", 1)
    assert a is not None
    assert held.started("a", 1, 6.0) is None
    end(held, a)
    assert held.placement.free_cores == 2


def test_a_spec_that_cannot_be_read_waits_to_be_refused_with_words() -> None:
    held = node(1)
    new, _ = held.granted([Grant("a", 1, 1, msgspec.Raw(b'{"resources": 7}'))], 0.0, 0.0)
    assert new[0].need == Need(1)


@pytest.mark.parametrize("size", [300, 500])
def test_a_prefetched_grant_stays_small(size: int) -> None:
    held = node(1)
    (h,) = take(held, grant("0" * 36, text="x" * size))
    parts = [getattr(h, name) for name in Holding.__slots__]
    own = sys.getsizeof(h) + sum(sys.getsizeof(p) for p in parts if isinstance(p, str | bytes))
    assert own + sys.getsizeof(h.wire) + 200 < 2048 - 700  # the rest is for its submission


def gathering(cores: int = 4) -> Holdings:
    """One of the cores is busy for ten seconds, and the first in line wants all of them."""
    held = node(cores)
    take(held, grant("runs", wall_s=10, estimate_s=10), sent_at=0.0)
    assert hand(held) == ["runs"]
    take(held, grant("large", cores=cores))
    assert hand(held) == []
    return held


def test_small_ones_use_the_gap_and_no_more() -> None:
    held = gathering()
    take(held, grant("long", estimate_s=11), grant("unknown"), grant("short", estimate_s=9))
    assert hand(held) == ["short"]
    runs = held.get("runs", 1)
    short = held.get("short", 1)
    assert runs is not None
    assert short is not None
    end(held, short)
    end(held, runs)
    assert hand(held, 10.0) == ["large"]


def test_while_room_is_gathered_the_hub_is_told_what_others_may_use() -> None:
    held = gathering()
    offer = held.capacity(None, 4.0)
    assert not offer.reserve
    assert offer.prefetch == 0
    assert [(room.cores, room.within_s) for room in offer.rooms] == [(3, 6.0)]
    large = held.get("large", 1)
    assert large is not None
    held.give_back(large)
    offer = held.capacity(None, 4.0)
    assert (offer.reserve, offer.rooms, offer.cores) == (True, (), 3)


def test_what_runs_over_its_time_lets_nobody_in() -> None:
    held = gathering()
    take(held, grant("short", estimate_s=1))
    assert hand(held, 25.0) == []
    assert held.capacity(None, 25.0).rooms[0].cores == 0


def test_a_job_waits_for_room_only_so_long_when_nobody_knows_how_long() -> None:
    held = gathering()
    assert held.return_stale(STALE_S) is False  # it alone waits, and room is gathered for it
    assert held.stale_at() == KEEP_S
    held.renewed(held.last_order(), KEEP_S)
    assert held.return_stale(KEEP_S)
    assert held.returning() == [JobEpoch("large", 1)]
    assert not held.capacity(None, KEEP_S).reserve
    assert held.capacity(None, KEEP_S + KEEP_NONE_S).reserve


def test_those_behind_go_back_and_the_first_stays() -> None:
    held = gathering()
    take(held, grant("long"))
    assert hand(held) == []
    assert held.return_stale(STALE_S)
    assert held.returning() == [JobEpoch("long", 1)]


def test_a_higher_priority_takes_the_room_that_was_gathered() -> None:
    held = gathering()
    take(held, grant("urgent", priority=1, cores=3, estimate_s=99))
    assert hand(held) == ["urgent"]


def test_nothing_begins_that_cannot_end_in_the_allocation() -> None:
    held = node(4)
    take(
        held,
        grant("long", estimate_s=100),
        grant("limited", wall_s=31),
        grant("checkpoints", wall_s=900, warn_s=10),
        grant("hardly", wall_s=900, warn_s=20),
        grant("short", wall_s=30),
        grant("unknown"),
    )
    assert [h.job for h in held.pick(0.0, 9, left_s=30.0)] == ["checkpoints", "short", "unknown"]
    assert {b.job for b in held.returning()} == {"long", "limited", "hardly"}


def test_gpus_are_offered_one_by_one() -> None:
    held = Holdings(Placement([big(domains=1, cpus=4, gpus=2)]), {"lic": 3})
    take(held, grant("half", gpus=0.5), grant("whole", gpus=1))
    assert hand(held) == ["half", "whole"]
    offer = held.capacity(None)
    assert (offer.gpus, offer.named) == (2, {"lic": 3})
    assert [(room.cores, room.gpus) for room in offer.rooms] == [(2, (50, 0))]
    take(held, grant("more", gpus=0.6), grant("other", gpus=0.5))
    assert hand(held) == []  # the first in line may take what the other wants
