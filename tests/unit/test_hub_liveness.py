"""Who is silent: on the Hub's own clock, with a full TTL after a start."""

from __future__ import annotations

from chappe.hub.liveness import Liveness

TTL_S = 60.0


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


def test_sessions_found_at_a_start_get_a_full_ttl() -> None:
    clock = Clock()
    liveness = Liveness(clock)
    liveness.open([1, 2])
    clock.now += TTL_S
    assert liveness.late(TTL_S) == {}
    clock.now += 1
    assert liveness.late(TTL_S) == {1: 1_000.0, 2: 1_000.0}
    assert liveness.ago_s() == {1: 61.0, 2: 61.0}


def test_looking_again_does_not_renew() -> None:
    clock = Clock()
    liveness = Liveness(clock)
    liveness.open([1])
    clock.now += 61
    liveness.open([1, 2])
    assert liveness.late(TTL_S) == {1: 1_000.0}


def test_the_dead_are_forgotten() -> None:
    clock = Clock()
    liveness = Liveness(clock)
    liveness.open([1, 2])
    clock.now += 61
    liveness.mark(liveness.late(TTL_S))
    liveness.open([2])
    assert liveness.ago_s() == {2: 61.0}
    liveness.open([1, 2])
    assert liveness.ago_s() == {1: 0.0, 2: 61.0}


def test_a_session_is_marked_once_for_each_silence() -> None:
    clock = Clock()
    liveness = Liveness(clock)
    liveness.open([1])
    clock.now += 61
    silent = liveness.late(TTL_S)
    liveness.mark(silent)
    assert liveness.late(TTL_S) == {}
    liveness.heard(1)
    clock.now += 61
    assert liveness.late(TTL_S) == {1: 1_061.0}


def test_a_sync_while_the_mark_is_being_written_counts() -> None:
    clock = Clock()
    liveness = Liveness(clock)
    liveness.open([1])
    clock.now += 61
    silent = liveness.late(TTL_S)
    liveness.heard(1)
    liveness.mark(silent)
    clock.now += 61
    assert liveness.late(TTL_S) == {1: 1_061.0}
