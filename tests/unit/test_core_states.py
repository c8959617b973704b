"""The table of states: legal steps, what one update of a row may show, and phases."""

from __future__ import annotations

from itertools import pairwise

import pytest

from chappe.core.states import (
    FINAL,
    FINAL_PHASES,
    LEASED,
    PHASE,
    RUNNABLE,
    TRANSITIONS,
    Phase,
    State,
    legal,
    legal_updates,
)

S = State


def test_the_table_names_every_state() -> None:
    assert TRANSITIONS.keys() == {None, *State}
    assert PHASE.keys() == set(State)


def test_every_state_is_reachable_from_creation() -> None:
    reached: set[State] = set()
    frontier = set(TRANSITIONS[None])
    while frontier:
        reached |= frontier
        frontier = {new for old in frontier for new in TRANSITIONS[old]} - reached
    assert reached == set(State)


def test_every_state_can_come_to_an_end() -> None:
    ends = set(FINAL)
    while True:
        more = {s for s in State if s not in ends and TRANSITIONS[s] & ends}
        if not more:
            break
        ends |= more
    assert ends == set(State)


def test_only_a_retry_leads_out_of_a_final_state() -> None:
    assert TRANSITIONS[S.JOB_FINISHED] == frozenset()
    for state in (S.FAILED, S.CANCELLED):
        assert TRANSITIONS[state] == {S.AWAITING_PARENTS, S.RESTART_READY}


def test_a_plain_job_makes_four_events() -> None:
    path = [None, S.PREPROCESSED, S.RUNNING, S.RUN_DONE, S.JOB_FINISHED]
    assert all(legal(old, new) for old, new in pairwise(path) if new)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (None, S.RUNNING),
        (None, S.FAILED),
        (S.PREPROCESSED, S.JOB_FINISHED),
        (S.RUNNING, S.FAILED),
        (S.RUNNING, S.RUNNING),
        (S.RUNNING, S.PREPROCESSED),
        (S.AWAITING_PARENTS, S.RUNNING),
        (S.RUN_DONE, S.CANCELLED),
        (S.CANCELLED, S.PREPROCESSED),
        (S.FAILED, S.JOB_FINISHED),
    ],
)
def test_steps_that_are_not_legal(old: State | None, new: State) -> None:
    assert not legal(old, new)


def test_the_groups_agree_with_the_phases() -> None:
    assert {s for s in State if PHASE[s] in FINAL_PHASES} == FINAL
    assert {s for s in State if PHASE[s] is Phase.RUNNABLE} == RUNNABLE
    assert RUNNABLE | {S.RUNNING} == LEASED
    assert not LEASED & FINAL


def test_one_step_is_also_a_legal_update_of_a_row() -> None:
    updates = legal_updates()
    for old, news in TRANSITIONS.items():
        if old is not None:
            assert {(old, new) for new in news} <= updates


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (S.RUNNING, S.JOB_FINISHED),  # one end report
        (S.RUNNING, S.RESTART_READY),
        (S.RUNNING, S.FAILED),
        (S.PREPROCESSED, S.JOB_FINISHED),  # an end that overtook its start
        (S.RESTART_READY, S.RESTART_READY),  # assumed to have started, lost, and free again
        (S.AWAITING_PARENTS, S.FAILED),
    ],
)
def test_updates_of_several_events(old: State, new: State) -> None:
    assert (old, new) in legal_updates()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (S.FAILED, S.RUNNING),
        (S.FAILED, S.JOB_FINISHED),
        (S.CANCELLED, S.RUNNING),
        (S.RUNNING, S.PREPROCESSED),
        (S.RUNNING, S.AWAITING_PARENTS),
        (S.AWAITING_PARENTS, S.RUNNING),
        (S.AWAITING_PARENTS, S.JOB_FINISHED),
    ],
)
def test_updates_that_are_not_legal(old: State, new: State) -> None:
    assert (old, new) not in legal_updates()


def test_no_update_leads_out_of_a_final_state_but_a_retry() -> None:
    out = {(old, new) for old, new in legal_updates() if old in FINAL}
    reopened = {S.AWAITING_PARENTS, S.RESTART_READY}
    assert out == {(old, new) for old in (S.FAILED, S.CANCELLED) for new in reopened}
