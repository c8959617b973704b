"""Job states: one table of legal transitions, enforced here and once more in SQL (promise I7).

A state without work to do is skipped by a legal edge, so a plain Job makes four Events:
→ PREPROCESSED (creation) → RUNNING → RUN_DONE → JOB_FINISHED.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class State(StrEnum):
    """Where a Job is. The names are Balsam's, which its users know."""

    CREATED = "CREATED"
    AWAITING_PARENTS = "AWAITING_PARENTS"
    READY = "READY"
    STAGED_IN = "STAGED_IN"
    PREPROCESSED = "PREPROCESSED"
    RUNNING = "RUNNING"
    RUN_DONE = "RUN_DONE"
    RUN_ERROR = "RUN_ERROR"
    RUN_TIMEOUT = "RUN_TIMEOUT"
    RESTART_READY = "RESTART_READY"
    POSTPROCESSED = "POSTPROCESSED"
    STAGED_OUT = "STAGED_OUT"
    JOB_FINISHED = "JOB_FINISHED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    #: Enum hashes the member's name in Python; states are keys on the hottest paths.
    __hash__ = str.__hash__


class Phase(StrEnum):
    """A coarse state for people and filters."""

    WAITING = "waiting"
    RUNNABLE = "runnable"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"


S = State
_STOP: Final = frozenset({S.FAILED, S.CANCELLED})

TRANSITIONS: Final[dict[State | None, frozenset[State]]] = {
    None: frozenset({S.CREATED, S.AWAITING_PARENTS, S.READY, S.PREPROCESSED}),
    S.CREATED: frozenset({S.AWAITING_PARENTS, S.READY, S.PREPROCESSED}) | _STOP,
    S.AWAITING_PARENTS: frozenset({S.READY, S.PREPROCESSED}) | _STOP,
    S.READY: frozenset({S.STAGED_IN, S.PREPROCESSED}) | _STOP,
    S.STAGED_IN: frozenset({S.PREPROCESSED}) | _STOP,
    S.PREPROCESSED: frozenset({S.RUNNING}) | _STOP,
    S.RUNNING: frozenset({S.RUN_DONE, S.RUN_ERROR, S.RUN_TIMEOUT, S.CANCELLED}),
    S.RUN_DONE: frozenset({S.POSTPROCESSED, S.STAGED_OUT, S.JOB_FINISHED, S.FAILED}),
    S.RUN_ERROR: frozenset({S.RESTART_READY}) | _STOP,
    S.RUN_TIMEOUT: frozenset({S.RESTART_READY}) | _STOP,
    S.RESTART_READY: frozenset({S.RUNNING}) | _STOP,
    S.POSTPROCESSED: frozenset({S.STAGED_OUT, S.JOB_FINISHED, S.FAILED}),
    S.STAGED_OUT: frozenset({S.JOB_FINISHED, S.FAILED}),
    S.JOB_FINISHED: frozenset(),
    # Only an explicit retry reopens these two.
    S.FAILED: frozenset({S.AWAITING_PARENTS, S.RESTART_READY}),
    S.CANCELLED: frozenset({S.AWAITING_PARENTS, S.RESTART_READY}),
}

PHASE: Final[dict[State, Phase]] = {
    S.CREATED: Phase.WAITING,
    S.AWAITING_PARENTS: Phase.WAITING,
    S.READY: Phase.WAITING,
    S.STAGED_IN: Phase.WAITING,
    S.PREPROCESSED: Phase.RUNNABLE,
    S.RESTART_READY: Phase.RUNNABLE,
    S.RUNNING: Phase.RUNNING,
    S.RUN_DONE: Phase.RUNNING,
    S.RUN_ERROR: Phase.RUNNING,
    S.RUN_TIMEOUT: Phase.RUNNING,
    S.POSTPROCESSED: Phase.RUNNING,
    S.STAGED_OUT: Phase.RUNNING,
    S.JOB_FINISHED: Phase.FINISHED,
    S.FAILED: Phase.FAILED,
    S.CANCELLED: Phase.CANCELLED,
}

FINAL: Final = frozenset({S.JOB_FINISHED, S.FAILED, S.CANCELLED})
RUNNABLE: Final = frozenset({S.PREPROCESSED, S.RESTART_READY})
#: The states a Job may be in while a Session holds it.
LEASED: Final = frozenset({S.PREPROCESSED, S.RESTART_READY, S.RUNNING})
FINAL_PHASES: Final = frozenset({Phase.FINISHED, Phase.FAILED, Phase.CANCELLED})


def legal(old: State | None, new: State) -> bool:
    """Whether one Event may lead from `old` to `new`."""
    return new in TRANSITIONS[old]


def legal_updates() -> frozenset[tuple[State, State]]:
    """Pairs (old, new) that one row update may show: paths through states that never rest in a row.

    An end report writes RUNNING → RUN_DONE → JOB_FINISHED as two Events and one update of the row.
    """
    passing = {S.RUNNING, S.RUN_DONE, S.RUN_ERROR, S.RUN_TIMEOUT, S.AWAITING_PARENTS, S.CREATED}
    pairs: set[tuple[State, State]] = set()
    for start in State:
        frontier, seen = set(TRANSITIONS[start]), set()
        while frontier:
            new = frontier.pop()
            pairs.add((start, new))
            seen.add(new)
            if new in passing and start not in FINAL:
                frontier |= TRANSITIONS[new] - seen
    return frozenset(pairs)
