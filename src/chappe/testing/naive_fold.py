"""What a set of messages says of simulations, by brute force: sort it, and look at all of it.

Written apart from `core.simulations`, and slow on purpose: no running minima, no counts, nothing kept.
`verify` and the tests hold the real fold against it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from chappe.core import calendars
from chappe.core.lateness import JobView, SimulationView, State
from chappe.core.messages import Message
from chappe.core.simulations import (
    IDENTITY,
    METRICS,
    SIMULATION_FIELDS,
    number,
    period_of,
    picked,
)
from chappe.core.vocabulary import Scope, kind_of

NS = 1_000_000_000
SIMULATION = Scope.SIMULATION
COMPUTE = Scope.COMPUTE


def place(m: Message) -> tuple[bool, int, int, str]:
    """Where a message stands in the order of the specification."""
    return "clock_suspect" in m.marks, m.at_ns, int(kind_of(m.type).phase), m.uid


def naive_views(messages: Iterable[Message], now_ns: int, slack_ns: int) -> list[SimulationView]:
    """All simulations of a set of messages, sorted by uid."""
    once = {m.uid: m for m in messages}
    ordered = sorted(once.values(), key=place)
    uids = sorted({m.simulation for m in ordered if m.simulation})
    return [
        _view(uid, [m for m in ordered if m.simulation == uid], now_ns, slack_ns) for uid in uids
    ]


def naive_tries(messages: Iterable[Message]) -> dict[str, tuple[int, bool, bool]]:
    """Number of the try, whether it is active, and whether it is purged, by simulation that has a start."""
    once = sorted({m.uid: m for m in messages}.values(), key=place)
    starts: dict[str, Message] = {}
    for m in once:
        if m.type == "simulation.started" and m.simulation:
            starts.setdefault(m.simulation, m)
    found: dict[str, tuple[int, bool, bool]] = {}
    for uid, start in starts.items():
        same = [s for s in starts.values() if _identity(s) == _identity(start)]
        names = [s.simulation for s in sorted(same, key=place)]
        purges = [m for m in once if m.type == "simulation.purged" and m.simulation in names]
        gone = {
            s.simulation
            for s in same
            if any(p.simulation == s.simulation or place(s) < place(p) for p in purges)
        }
        left = [name for name in names if name not in gone]
        found[uid] = (names.index(uid) + 1, left[-1:] == [uid], uid in gone)
    return found


def _identity(start: Message) -> list[str]:
    fields = picked(start, SIMULATION_FIELDS)
    return [fields.get(name, "") for name in IDENTITY]


def _view(uid: str, mine: Sequence[Message], now_ns: int, slack_ns: int) -> SimulationView:
    jobs: dict[str, list[Message]] = {}
    for m in mine:
        scope, type = kind_of(m.type)[2], m.type
        own = scope in (COMPUTE, Scope.POST, Scope.CHECKER) or type in (
            "simulation.started",
            "simulation.ended",
            "heartbeat",
        )
        if m.job or own:
            jobs.setdefault(m.job, []).append(m)
    ids = sorted(jobs, key=lambda id: place(_began(jobs[id])))
    compute = [id for id in ids if _kind(jobs[id]) is COMPUTE]
    states = {}
    for id in ids:
        rest = compute[compute.index(id) + 1 :] if id in compute else []
        states[id] = _state(jobs[id], jobs[rest[0]] if rest else None, now_ns, slack_ns)
    state, ended_ns, latest = State.QUEUED, None, compute[-1] if compute else None
    if latest is not None:
        state = states[latest]
        if state is State.COMPLETE and not any(m.type == "simulation.ended" for m in jobs[latest]):
            state = State.QUEUED
        if state in (State.COMPLETE, State.ERROR):
            ended_ns = _ended_ns(jobs[latest])
    starts = [m for m in mine if m.type == "simulation.started"]
    fields = picked(starts[0], SIMULATION_FIELDS) if starts else {}
    periods = [p for m in mine if m.type == "job.period" and (p := period_of(m))]
    reached = max(periods).end if periods else None
    repeats = sum(
        1
        for of in jobs.values()
        if reached
        and max((p.end for m in of if m.type == "job.period" and (p := period_of(m))), default=None)
        == reached
    )
    values: dict[str, float] = {}
    for m in mine:
        name, value = m.text("name"), number(m.fields.get("value"))
        if m.type == "metric" and name is not None and value is not None:
            values[name] = value
    return SimulationView(
        uid=uid,
        state=state,
        started_ns=starts[0].at_ns if starts else None,
        ended_ns=ended_ns,
        progress=_progress(fields, mine, reached),
        repeats=repeats,
        stuck=repeats > 3,
        purged=any(m.type == "simulation.purged" for m in mine),
        suspect=sum("clock_suspect" in m.marks for m in mine),
        messages=len(mine),
        types=Counter(m.type or m.code for m in mine),
        metrics=dict(sorted(values.items())[:METRICS]),
        fields=fields,
        counts=Counter(f"{_kind(jobs[id]) or 'other'}.{states[id]}" for id in ids),
        latest=latest,
        jobs=tuple(_job(id, jobs[id], states[id]) for id in ids),
    )


def _kind(of: Sequence[Message]) -> Scope:
    for m in of:
        scope = kind_of(m.type).scope
        if scope:
            return COMPUTE if scope is SIMULATION else scope
    return Scope.NONE


def _began(of: Sequence[Message]) -> Message:
    starts = [m for m in of if _is(m, 0)]
    return (starts or of)[0]


def _is(m: Message, phase: int) -> bool:
    kind = kind_of(m.type)
    return bool(kind.scope) and kind.phase == phase


def _ended_ns(of: Sequence[Message]) -> int | None:
    fatal, ends = [m for m in of if _is(m, 4)], [m for m in of if _is(m, 3)]
    return fatal[0].at_ns if fatal else ends[-1].at_ns if ends else None


def _deadline_ns(of: Sequence[Message]) -> int | None:
    began = _began(of)
    if not _kind(of) or "clock_suspect" in began.marks or not began.at_ns:
        return None
    told = began.text("jobWarningDelay") if _is(began, 0) else None
    if told is not None and told.upper() == "NONE":
        return None
    limit_s = number(told) or 0
    return began.at_ns + int(min(limit_s, 366 * 86_400) if limit_s > 0 else 86_400) * NS


def _state(
    of: Sequence[Message], following: Sequence[Message] | None, now_ns: int, slack_ns: int
) -> State:
    if any(_is(m, 4) for m in of):
        return State.ERROR
    if any(_is(m, 3) for m in of):
        return State.COMPLETE
    deadline_ns = _deadline_ns(of)
    late = deadline_ns is not None and now_ns >= deadline_ns + slack_ns
    silent = False
    beats = [m for m in of if m.type == "heartbeat"]
    if beats and "clock_suspect" not in of[-1].marks:
        every_s = number(beats[-1].fields.get("every_s"))
        every_s = 60 if every_s is None else min(86_400, max(1, int(every_s)))
        silent = now_ns >= of[-1].at_ns + 5 * every_s * NS + slack_ns
    if following is not None and now_ns >= _began(following).at_ns + slack_ns:
        return State.LOST_END
    if late and silent:
        return State.LOST_END
    return State.LATE if late else State.SILENT if silent else State.RUNNING


def _progress(
    fields: dict[str, str], mine: Sequence[Message], reached: calendars.Date | None
) -> float | None:
    begin, end = calendars.date(fields.get("startDate")), calendars.date(fields.get("endDate"))
    if begin is None or end is None or reached is None:
        return None
    cards = [m for m in mine if m.type == "simulation.card"]
    of_card = calendars.of_card(str(cards[-1].fields.get("card", ""))) if cards else None
    declared = calendars.named(fields.get("calendar")) or of_card
    return calendars.progress(begin, end, reached, declared)


def _job(id: str, of: Sequence[Message], state: State) -> JobView:
    return JobView(
        id=id,
        kind=_kind(of),
        state=state,
        began_ns=_began(of).at_ns,
        ended_ns=_ended_ns(of),
        deadline_ns=_deadline_ns(of),
        messages=len(of),
        commands=sum(_is(m, 2) for m in of),
        actions=sum(m.type == "io" for m in of),
    )
