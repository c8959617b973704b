"""When the pilot speaks, how much work it wants at hand, and when its allocation ends."""

from __future__ import annotations

from math import inf

import pytest

from chappe.pilot.lifetime import Lifetime, Step
from chappe.pilot.pacing import (
    FEW_TOOK_S,
    GAP_MAX_S,
    GAP_MIN_S,
    HASTE_MAX_S,
    MANY,
    PREFETCH_MOST,
    RETRY_MAX_S,
    Estimate,
    Pacer,
    prefetch,
)
from chappe.pilot.session import Options


def streaming() -> Pacer:
    """A pacer that has just reported many ends."""
    pacer = Pacer()
    pacer.answered(99.98, 100.0, 0.02, granted=False, reports=1_000)
    return pacer


def test_under_load_reports_gather_for_four_times_what_the_hub_takes() -> None:
    pacer = streaming()
    pacer.answered(100.0, 100.02, 0.02, granted=False, reports=1)
    assert pacer.next_at == 100.08
    pacer.answered(100.0, 100.0, 0.0, granted=True)
    assert pacer.next_at == 100.0 + GAP_MIN_S
    pacer.answered(100.0, 105.0, 5.0, granted=True)
    assert pacer.next_at == 100.0 + GAP_MAX_S


def test_a_stream_of_short_jobs_gathers_for_longer() -> None:
    pacer = streaming()
    pacer.answered(100.0, 100.02, 0.02, granted=True, reports=MANY)
    assert pacer.next_at == 100.2
    pacer.answered(101.0, 101.02, 0.02, granted=True, reports=MANY - 1)
    assert pacer.next_at == 101.08


def test_a_slow_hub_is_asked_less_often_also_for_few() -> None:
    pacer = Pacer()
    pacer.answered(100.0, 100.0 + FEW_TOOK_S, FEW_TOOK_S, granted=False, reports=1)
    assert pacer.next_at == 100.0 + 4 * FEW_TOOK_S


def test_where_work_waits_in_line_reports_gather_however_few() -> None:
    pacer = Pacer()
    pacer.answered(100.0, 100.003, 0.003, granted=False, reports=1, backlog=True)
    assert pacer.next_at == 100.012


def test_few_reports_wait_for_nothing() -> None:
    pacer = Pacer()
    assert pacer.next_at == 0.0
    pacer.answered(100.0, 115.0, 0.001, granted=False)  # a long poll that ended
    assert pacer.next_at <= 115.0
    now, polled = 115.0, []
    for _ in range(100):  # call after call
        now += 0.015
        polled.append(pacer.answered(now - 0.003, now, 0.003, granted=False, reports=1) - now)
        assert pacer.next_at == now
    assert set(polled) == {0.0}


def test_a_stream_ceases_to_be_one() -> None:
    pacer = streaming()
    pacer.answered(110.0, 110.003, 0.003, granted=False, reports=1)
    assert pacer.next_at == 110.003


def test_a_poll_follows_at_once_unless_reports_are_to_come() -> None:
    pacer = Pacer()
    assert pacer.answered(100.0, 115.0, 0.001, granted=False) == 115.0
    assert pacer.answered(115.0, 116.0, 0.001, granted=True) >= 116.0 + GAP_MIN_S


def test_a_hub_that_repeats_itself_is_asked_less_and_less() -> None:
    pacer = Pacer()
    now, waits = 100.0, []
    for _ in range(20):
        until = pacer.answered(now, now + 0.001, 0.001, granted=False)
        waits.append(until - now)
        now = until
    assert waits[0] < GAP_MIN_S
    assert waits[-1] >= HASTE_MAX_S
    pacer.answered(now, now + 0.001, 0.001, granted=True)
    assert pacer.answered(now, now + 0.001, 0.001, granted=False) == now + 0.001


def test_failures_are_retried_later_and_later_with_jitter() -> None:
    pacer = Pacer()
    first = [pacer.failed(100.0, 0.0), pacer.failed(100.0, 0.0)]
    assert first[0] < first[1]
    for _ in range(30):
        last = pacer.failed(100.0, 0.999)
    assert 100.0 + RETRY_MAX_S < last < 100.0 + 2 * RETRY_MAX_S
    pacer.answered(200.0, 200.0, 0.0, granted=False)
    assert pacer.failed(300.0, 0.0) == 300.0 + first[0] - 100.0


def test_a_second_of_work_is_fetched_and_nothing_unknown() -> None:
    assert prefetch(None, 8, 1) == 0
    assert prefetch(0.1, 2, 1) == 20
    assert prefetch(0.1, 8, 4) == 20
    assert prefetch(3600.0, 8, 1) == 0
    assert prefetch(0.0, 64, 1) == PREFETCH_MOST


def test_the_estimate_follows_what_jobs_take() -> None:
    estimate = Estimate()
    known = [estimate.known_s]
    estimate.ended(1.0)
    known.append(estimate.known_s)
    assert known == [None, 1.0]
    for _ in range(200):
        estimate.ended(0.1)
    assert estimate.known_s == pytest.approx(0.1, rel=0.1)


def test_an_allocation_without_end_goes_on_for_ever() -> None:
    life = Lifetime(Options())
    life.busy(False, 0.0)
    assert (life.next_at(), life.due(1e9), life.left_s(0.0), life.ends_in_s(0.0)) == (
        inf,
        None,
        None,
        None,
    )


def test_the_end_of_an_allocation_comes_in_steps() -> None:
    life = Lifetime(Options(drain_s=30.0), 1000.0)
    assert life.left_s(100.0) == 870.0
    assert life.ends_in_s(100.0) == 900.0
    steps: list[tuple[float, Step]] = []
    now = 100.0
    while now < inf:
        step = life.due(now)
        if step is Step.GIVE_UP:
            steps.append((now, step))
            break
        if step is None:
            now = life.next_at()
        else:
            steps.append((now, step))
    assert steps == [(955.0, Step.DRAIN), (970.0, Step.END_JOBS), (1000.0, Step.GIVE_UP)]
    assert life.draining


def test_sigterm_ends_within_kill_s_and_a_second_one_at_once() -> None:
    life = Lifetime(Options(drain_s=10.0, kill_s=30.0))
    life.sigterm(100.0)
    assert life.draining
    assert life.due(100.0) is None
    assert life.next_at() == 120.0
    life.sigterm(105.0)
    assert life.due(105.0) is Step.END_JOBS
    assert life.due(105.0) is None


def test_sigterm_without_kill_s_waits_for_jobs() -> None:
    life = Lifetime(Options(kill_s=0.0))
    life.sigterm(100.0)
    assert life.draining
    assert life.next_at() == inf
    life.sigterm(200.0)
    assert life.due(200.0) is Step.END_JOBS


def test_idleness_ends_it() -> None:
    life = Lifetime(Options(idle_s=60.0))
    life.busy(False, 100.0)
    life.busy(False, 130.0)
    assert life.next_at() == 160.0
    life.busy(True, 140.0)
    assert life.next_at() == inf
    life.busy(False, 200.0)
    assert life.due(259.0) is None
    assert life.due(260.0) is Step.DRAIN
    assert life.due(260.0) is None
