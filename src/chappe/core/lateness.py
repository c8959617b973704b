"""What the hour says of a simulation: late, silent, lost end. Pure functions of (folds, now, slack).

A job's deadline is its start and its wall-clock limit. Past it without an end it is *late*. *Silent* is one
that gave signs of life and does so no longer. Its end is *lost* when the next job has started already, or
when it is late and silent both: then it is over, and only its last message is missing. All of this is undone
by the message that was missing, whenever it comes.

Messages take their time, so each deadline has a *slack*, learned from how long they took
(`learned_slack_ns`): a mail with a job's end may have sat for an hour before it was sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from itertools import pairwise
from typing import NamedTuple

import msgspec

from chappe.core.simulations import Fold, JobFold, Stamp, number, order, repeats
from chappe.core.timestamps import NS
from chappe.core.vocabulary import Scope

DEFAULT_LIMIT_S = 86_400
"""The wall-clock limit of a job that does not tell its own."""

LIMIT_MAX_S = 366 * 86_400
BEATS_MISSED = 5

SLACK_DEFAULT_NS = 3_900 * NS
"""Of a source that is not known yet: an hour in a mail's buffer, and five minutes."""

SLACK_MIN_NS = 30 * NS
SLACK_ENOUGH = 20
"""So many messages of a source speak for it."""

REPEATS_MAX = 3
"""A period that failed more often than this is for a person to look at."""


class State(StrEnum):
    """How a simulation or a job is. QUEUED are only simulations: between two jobs."""

    QUEUED = "queued"
    RUNNING = "running"
    LATE = "late"
    SILENT = "silent"
    LOST_END = "lost_end"
    COMPLETE = "complete"
    ERROR = "error"


class Verdict(NamedTuple):
    """How a job is, and when (since 1970) to look again if nothing is heard; None: never."""

    state: State
    due_ns: int | None


class JobView(msgspec.Struct, frozen=True):
    """One job, as it is now. Times are nanoseconds since 1970."""

    id: str
    kind: Scope
    state: State
    began_ns: int
    ended_ns: int | None
    deadline_ns: int | None
    messages: int
    commands: int
    actions: int


class SimulationView(msgspec.Struct, frozen=True):
    """One simulation, as it is now. `counts` are its jobs by kind and state; `stuck` says that a person must
    look, because the same period failed again and again."""

    uid: str
    state: State
    started_ns: int | None
    ended_ns: int | None
    progress: float | None
    repeats: int
    stuck: bool
    purged: bool
    suspect: int
    messages: int
    types: Mapping[str, int]
    metrics: Mapping[str, float]
    fields: Mapping[str, str]
    counts: Mapping[str, int]
    latest: str | None
    jobs: tuple[JobView, ...]


def deadline_ns(job: JobFold) -> int | None:
    """When it must have ended, since 1970; None without a limit, or with a clock not to be trusted."""
    began = job.began
    if not job.kind or began.suspect or began.at_ns == 0:
        return None
    told = job.fields.get("jobWarningDelay", "")
    if told.upper() == "NONE":
        return None
    limit_s = number(told) or 0.0
    if not limit_s > 0:
        limit_s = DEFAULT_LIMIT_S
    return began.at_ns + int(min(limit_s, LIMIT_MAX_S)) * NS


def judge(job: JobFold, successor: Stamp | None, now_ns: int, slack_ns: int) -> Verdict:
    """How a job is at `now_ns`. `successor` is the start of the next compute job, if there is one."""
    if job.fatal is not None:
        return Verdict(State.ERROR, None)
    if job.end is not None:
        return Verdict(State.COMPLETE, None)
    dues: list[int] = []

    def past(due_ns: int | None) -> bool:
        if due_ns is None:
            return False
        if now_ns < due_ns + slack_ns:
            dues.append(due_ns + slack_ns)
            return False
        return True

    late = past(deadline_ns(job))
    silent = past(_silence_ns(job))
    followed = past(successor.at_ns if successor is not None else None)
    due = min(dues, default=None)
    if followed or (late and silent):
        return Verdict(State.LOST_END, due)
    return Verdict(State.LATE if late else State.SILENT if silent else State.RUNNING, due)


def _silence_ns(job: JobFold) -> int | None:
    """When it must have been heard again; None of those that never gave signs of life."""
    if job.beat is None or job.last is None:
        return None
    heard = max(job.beat.stamp, job.last)
    return None if heard.suspect else heard.at_ns + job.beat.every_s * BEATS_MISSED * NS


def state_of(latest: JobFold, state: State) -> State:
    """A simulation's state, from its latest compute job and what was judged of that."""
    return State.QUEUED if state is State.COMPLETE and latest.complete is None else state


def view(fold: Fold, jobs: list[JobFold], now_ns: int, slack_ns: int) -> SimulationView:
    """A simulation as it is at `now_ns`."""
    ordered = sorted(jobs, key=order)
    compute = [job for job in ordered if job.kind is Scope.COMPUTE]
    after = {a.id: b.began for a, b in pairwise(compute)}
    verdicts = {job.id: judge(job, after.get(job.id), now_ns, slack_ns) for job in ordered}
    latest = compute[-1] if compute else None
    state = state_of(latest, verdicts[latest.id].state) if latest else State.QUEUED
    counts: dict[str, int] = {}
    for job in ordered:
        key = f"{job.kind or 'other'}.{verdicts[job.id].state}"
        counts[key] = counts.get(key, 0) + 1
    times = repeats(fold, jobs)
    return SimulationView(
        uid=fold.uid,
        state=state,
        started_ns=fold.started.at_ns if fold.started else None,
        ended_ns=ended_ns(latest, state),
        progress=fold.progress,
        repeats=times,
        stuck=times > REPEATS_MAX,
        purged=fold.purged is not None,
        suspect=fold.suspect,
        messages=fold.messages,
        types=fold.types,
        metrics={name: value.value for name, value in sorted(fold.metrics.items())},
        fields=fold.fields,
        counts=counts,
        latest=latest.id if latest else None,
        jobs=tuple(job_view(job, verdicts[job.id].state) for job in ordered),
    )


def ended_ns(latest: JobFold | None, state: State) -> int | None:
    """When a simulation ended, since 1970; None while it has not."""
    if latest is None or state not in (State.COMPLETE, State.ERROR):
        return None
    return latest.ended.at_ns if latest.ended else None


def job_view(job: JobFold, state: State) -> JobView:
    """One job, for those who look."""
    return JobView(
        id=job.id,
        kind=job.kind,
        state=state,
        began_ns=job.began.at_ns,
        ended_ns=job.ended.at_ns if job.ended else None,
        deadline_ns=deadline_ns(job),
        messages=job.messages,
        commands=job.commands,
        actions=job.actions,
    )


def learned_slack_ns(took_ms: Mapping[int, int]) -> int:
    """How much later than its own time a source's message may come: twice what 99 of 100 took.

    `took_ms[b]` is how many took less than 2^b milliseconds, and not less than half of that.
    """
    total = sum(took_ms.values())
    if total < SLACK_ENOUGH:
        return SLACK_DEFAULT_NS
    seen = 0
    for bucket in sorted(took_ms):
        seen += took_ms[bucket]
        if seen * 100 >= total * 99:
            return min(SLACK_DEFAULT_NS * 24, max(SLACK_MIN_NS, (2 << bucket) * 1_000_000))
    return SLACK_DEFAULT_NS
