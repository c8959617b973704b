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
from chappe.pilot.holdings import Holdings
from chappe.pilot.pacing import STALE_S
from chappe.pilot.placement import Placement
from chappe.wire.sync import Grant, HeldJob, JobEpoch

GIB = 1 << 30


def grant(job: str, epoch: int = 1, priority: int = 0, **spec: Any) -> Grant:
    resources = {k: spec.pop(k) for k in ("cores", "mem_bytes", "estimate_s") if k in spec}
    raw = msgspec.Raw(msgspec.json.encode({"resources": resources, **spec}))
    return Grant(job, epoch, 1, raw, priority=priority)


def node(cores: int = 2) -> Holdings:
    return Holdings(Placement(range(cores), GIB))


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
    held.estimate.ended(0.5)
    take(held, *(grant(f"n{k}") for k in range(10)))
    assert (held.capacity(None).cores, held.capacity(None).prefetch) == (0, 16 - 10)


def test_what_users_expect_counts_while_nothing_is_measured() -> None:
    held = node(1)
    take(held, grant("a", estimate_s=0.5))
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
    held.adopt(Holding(grant("a"), -1e9, 0), Phase.RUNNING, 5.0, {1})
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
    assert (new[0].cores, new[0].mem_bytes) == (1, 0)


@pytest.mark.parametrize("size", [300, 500])
def test_a_prefetched_grant_stays_small(size: int) -> None:
    held = node(1)
    (h,) = take(held, grant("0" * 36, text="x" * size))
    parts = [getattr(h, name) for name in Holding.__slots__]
    own = sys.getsizeof(h) + sum(sys.getsizeof(p) for p in parts if isinstance(p, str | bytes))
    assert own + sys.getsizeof(h.wire) + 200 < 2048 - 700  # the rest is for its submission
