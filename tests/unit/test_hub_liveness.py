"""Who is silent: on the Hub's own clock, with a full TTL after a start."""

from __future__ import annotations

from chappe.core import limits
from chappe.hub.liveness import Liveness

TTL_S = 60.0


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


def test_sessions_found_at_a_start_get_a_full_ttl() -> None:
    clock = Clock()
    liveness = Liveness(clock, clock)
    liveness.open({1: None, 2: None})
    clock.now += TTL_S
    assert liveness.late(TTL_S) == {}
    clock.now += 1
    assert liveness.late(TTL_S) == {1: 1_000.0, 2: 1_000.0}
    assert liveness.ago_s() == {1: 61.0, 2: 61.0}


def test_looking_again_does_not_renew() -> None:
    clock = Clock()
    liveness = Liveness(clock, clock)
    liveness.open({1: None})
    clock.now += 61
    liveness.open({1: None, 2: None})
    assert liveness.late(TTL_S) == {1: 1_000.0}


def test_the_dead_are_forgotten() -> None:
    clock = Clock()
    liveness = Liveness(clock, clock)
    liveness.open({1: None, 2: None})
    clock.now += 61
    liveness.mark(liveness.late(TTL_S))
    liveness.open({2: None})
    assert liveness.ago_s() == {2: 61.0}
    liveness.open({1: None, 2: None})
    assert liveness.ago_s() == {1: 0.0, 2: 61.0}


def test_a_session_is_marked_once_for_each_silence() -> None:
    clock = Clock()
    liveness = Liveness(clock, clock)
    liveness.open({1: None})
    clock.now += 61
    silent = liveness.late(TTL_S)
    liveness.mark(silent)
    assert liveness.late(TTL_S) == {}
    liveness.heard(1)
    clock.now += 61
    assert liveness.late(TTL_S) == {1: 1_061.0}


def test_a_sync_while_the_mark_is_being_written_counts() -> None:
    clock = Clock()
    liveness = Liveness(clock, clock)
    liveness.open({1: None})
    clock.now += 61
    silent = liveness.late(TTL_S)
    liveness.heard(1)
    liveness.mark(silent)
    clock.now += 61
    assert liveness.late(TTL_S) == {1: 1_061.0}


def test_an_allocation_is_over_when_its_hard_end_and_the_kill_time_have_passed() -> None:
    clock = Clock()
    liveness = Liveness(clock, clock)
    liveness.open({1: None, 2: None})
    liveness.ends(1, 100.0)
    clock.now += 100 + limits.KILL_TIME_S - 0.5
    assert liveness.over() == []
    clock.now += 0.5
    assert liveness.over() == [1]
    liveness.ends(1, 10.0)  # it was prolonged
    assert liveness.over() == []
    liveness.ends(1, None)
    clock.now += 1e8
    assert liveness.over() == []


def test_a_jump_of_the_calendar_proves_nobody_dead() -> None:
    boot, day = Clock(), Clock()
    liveness = Liveness(boot, day)
    liveness.open({1: None})
    liveness.ends(1, 100.0)
    day.now += 1e7
    liveness.open({1: day.now - 1e7})
    assert liveness.over() == []


def test_a_hard_end_that_the_store_remembers_is_not_believed_within_the_ttl() -> None:
    boot, day = Clock(), Clock()
    liveness = Liveness(boot, day)
    liveness.open({1: day.now - 1e7, 2: day.now + 1e4})
    boot.now += TTL_S + limits.KILL_TIME_S - 0.5
    assert liveness.over() == []
    boot.now += 0.5
    assert liveness.over() == [1]
    liveness.open({2: day.now + 1e4})
    assert liveness.over() == []
    boot.now += 1e4
    assert liveness.over() == [2]
