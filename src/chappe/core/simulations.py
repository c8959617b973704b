"""A simulation, as a fold over the *set* of its messages.

Messages arrive late, twice, in any order and by several ways, so nothing here depends on when they came.
A `Fold` (of a simulation) and a `JobFold` (of one of its jobs) keep least and greatest *stamps* and counts:
adding a message costs the same whatever was added before, and in any order gives the same. Each message is
added once; who stores them sees to that.

A stamp orders messages by time, then phase (start, progress, command, end, fatal), then uid. What is from the
future (`clock_suspect`) comes last. A job's start is its 0000 or 1000, else its earliest message. A fatal is
absorbing within its job: only a later job clears it. A purge is a tombstone: nothing resurrects.

What depends on the hour (late, silent, lost end) is no part of the fold: see `core.lateness`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import msgspec

from chappe.core import calendars
from chappe.core.calendars import Calendar, Date
from chappe.core.messages import Mark, Message
from chappe.core.vocabulary import Kind, Phase, Scope, kind_of

METRICS = 32
"""So many metrics' last values are kept with a simulation: of those that there are, the first by name."""

SIMULATION_FIELDS = (
    "activity",
    "name",
    "experiment",
    "space",
    "model",
    "startDate",
    "endDate",
    "calendar",
    "login",
    "centre",
    "machine",
    "accountingProject",
    "jobSubmissionPath",
    "archivePath",
    "storagePath",
    "storageSmallPath",
)
JOB_FIELDS = (
    "accountingProject",
    "jobWarningDelay",
    "jobSchedulerID",
    "jobSubmissionPath",
    "postProcessingName",
    "postProcessingDate",
    "postProcessingDimn",
    "postProcessingComp",
    "postProcessingFile",
)
IDENTITY = (
    "accountingProject",
    "centre",
    "login",
    "machine",
    "experiment",
    "model",
    "space",
    "name",
)
"""Simulations that agree in all of these are tries of one."""

#: Kinds without a scope that belong to a job, or to a simulation that is its own job.
_OWN_JOB = frozenset({"simulation.started", "simulation.ended", "heartbeat"})
_JOB_SCOPES = frozenset({Scope.COMPUTE, Scope.POST, Scope.CHECKER})


class Stamp(NamedTuple):
    """Where a message stands among others: later ones are greater."""

    suspect: int
    at_ns: int
    phase: int
    uid: str


class Period(NamedTuple):
    """Output is complete up to `end`."""

    end: Date
    begin: Date
    number: str


class Beat(NamedTuple):
    """A sign of life, and how far apart such signs are."""

    stamp: Stamp
    every_s: int


class Value(NamedTuple):
    """The last value of a metric."""

    stamp: Stamp
    value: float


class JobFold(msgspec.Struct, omit_defaults=True):
    """What the messages of one job come to. `id` is empty where a simulation is its own job."""

    id: str = ""
    kind: Scope = Scope.NONE
    kind_by: Stamp | None = None
    first: Stamp | None = None
    last: Stamp | None = None
    start: Stamp | None = None
    fields: dict[str, str] = {}
    end: Stamp | None = None
    complete: Stamp | None = None  # the end of the simulation
    fatal: Stamp | None = None
    period: Period | None = None
    beat: Beat | None = None
    messages: int = 0
    commands: int = 0
    actions: int = 0

    @property
    def began(self) -> Stamp:
        """Its start, or its earliest message."""
        began = self.start or self.first
        assert began is not None  # noqa: S101 - a fold without messages is none
        return began

    @property
    def ended(self) -> Stamp | None:
        """The message that ended it, if one did."""
        return self.fatal or self.end

    def add(self, message: Message, kind: Kind, at: Stamp) -> None:
        """Add one message."""
        self.messages += 1
        self.first = at if self.first is None or at < self.first else self.first
        self.last = at if self.last is None or at > self.last else self.last
        if kind.scope:
            scope = kind.scope if kind.scope in _JOB_SCOPES else Scope.COMPUTE
            if self.kind_by is None or at < self.kind_by:
                self.kind_by, self.kind = at, scope
            self._live(message, kind, at)
        elif kind.type == "io":
            self.actions += 1
        elif kind.type == "heartbeat" and (self.beat is None or at > self.beat.stamp):
            self.beat = Beat(at, _every_s(message))

    def _live(self, message: Message, kind: Kind, at: Stamp) -> None:
        phase = kind.phase
        if phase is Phase.START:
            if self.start is None or at < self.start:
                self.start, self.fields = at, picked(message, JOB_FIELDS)
        elif phase is Phase.END:
            self.end = at if self.end is None or at > self.end else self.end
            if kind.scope is Scope.SIMULATION:
                self.complete = max(self.complete or at, at)
        elif phase is Phase.FATAL:
            self.fatal = at if self.fatal is None or at < self.fatal else self.fatal
        elif phase is Phase.COMMAND:
            self.commands += 1
        elif kind.type == "job.period":
            self.period = later(self.period, period_of(message))


class Fold(msgspec.Struct, omit_defaults=True):
    """What the messages of one simulation come to, beside its jobs."""

    uid: str = ""
    first: Stamp | None = None
    last: Stamp | None = None
    started: Stamp | None = None
    fields: dict[str, str] = {}
    purged: Stamp | None = None
    period: Period | None = None
    card_by: Stamp | None = None
    card_calendar: Calendar | None = None
    metrics: dict[str, Value] = {}
    types: dict[str, int] = {}
    messages: int = 0
    suspect: int = 0

    def add(self, message: Message) -> tuple[Kind, Stamp]:
        """Add one message; its kind and stamp, with which its job's fold wants it, too (`job_of`)."""
        kind, at = kind_of(message.type), stamp(message)
        self.messages += 1
        self.suspect += at.suspect
        name = message.type or message.code
        self.types[name] = self.types.get(name, 0) + 1
        self.first = at if self.first is None or at < self.first else self.first
        self.last = at if self.last is None or at > self.last else self.last
        if kind.type == "simulation.started":
            if self.started is None or at < self.started:
                self.started, self.fields = at, picked(message, SIMULATION_FIELDS)
        elif kind.type == "job.period":
            self.period = later(self.period, period_of(message))
        elif kind.type == "metric":
            self._measure(message, at)
        elif kind.type == "simulation.card":
            if self.card_by is None or at > self.card_by:
                self.card_by = at
                self.card_calendar = calendars.of_card(str(message.fields.get("card", "")))
        elif kind.type == "simulation.purged":
            self.purged = at if self.purged is None or at > self.purged else self.purged
        return kind, at

    def _measure(self, message: Message, at: Stamp) -> None:
        name, value = message.text("name"), number(message.fields.get("value"))
        if name is None or value is None:
            return
        before = self.metrics.get(name)
        if before is None or at > before.stamp:
            self.metrics[name] = Value(at, value)
        if len(self.metrics) > METRICS:
            del self.metrics[max(self.metrics)]

    @property
    def identity(self) -> tuple[str, ...] | None:
        """What its tries have in common; None until its start is known."""
        return None if self.started is None else tuple(self.fields.get(f, "") for f in IDENTITY)

    @property
    def calendar(self) -> Calendar | None:
        """The calendar that it declared, or its card."""
        return calendars.named(self.fields.get("calendar")) or self.card_calendar

    @property
    def progress(self) -> float | None:
        """How much of its output is complete, from 0 to 1; None where it cannot be told."""
        begin, end = (calendars.date(self.fields.get(f)) for f in ("startDate", "endDate"))
        if begin is None or end is None or self.period is None:
            return None
        return calendars.progress(begin, end, self.period.end, self.calendar)


def stamp(message: Message) -> Stamp:
    """Where a message stands among others."""
    suspect = 1 if Mark.CLOCK_SUSPECT in message.marks else 0
    return Stamp(suspect, message.at_ns, int(kind_of(message.type).phase), message.uid)


def job_of(message: Message, kind: Kind) -> str | None:
    """The id of the job that a message belongs to, empty for that which a simulation itself is; or None."""
    own = kind.scope in _JOB_SCOPES or kind.type in _OWN_JOB
    return message.job if message.job or own else None


def picked(message: Message, names: tuple[str, ...]) -> dict[str, str]:
    """Those payload fields of a message that say something, cut to a bounded length."""
    found = ((name, message.text(name)) for name in names)
    return {name: text[:500] for name, text in found if text is not None}


def period_of(message: Message) -> Period | None:
    """The period that a message tells of; None when its dates are none."""
    begin = calendars.date(message.text("PeriodDateBegin"))
    end = calendars.date(message.text("PeriodDateEnd"))
    if end is None:
        return None
    return Period(end, begin or end, (message.text("CumulPeriod") or "")[:20])


def later(a: Period | None, b: Period | None) -> Period | None:
    """The later of two periods."""
    return a if b is None or (a is not None and a >= b) else b


def number(value: Any) -> float | None:
    """A finite number, also one written as `.008789`; None for anything else."""
    try:
        found = float(value) if isinstance(value, (str, int, float)) else float("nan")
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def latest(jobs: list[JobFold]) -> JobFold | None:
    """The compute job that decides a simulation's state: that which began last."""
    compute = [job for job in jobs if job.kind is Scope.COMPUTE]
    return max(compute, key=order, default=None)


def order(job: JobFold) -> tuple[Stamp, str]:
    """Jobs sort by when they began."""
    return job.began, job.id


def repeats(fold: Fold, jobs: list[JobFold]) -> int:
    """How many jobs reached the simulation's latest period and did not pass it. More than 3: a person must
    look."""
    if fold.period is None:
        return 0
    return sum(1 for job in jobs if job.period and job.period.end == fold.period.end)


class Try(NamedTuple):
    """Which of several tries a simulation is, whether it is the last of them, and whether it is purged."""

    number: int
    active: bool
    purged: bool


def tries(folds: list[Fold]) -> dict[str, Try]:
    """Number the simulations of one identity, by start. The last is active.

    The latest purge among them takes those with it that started before.
    """
    known = sorted((f for f in folds if f.started), key=lambda f: (f.started, f.uid))
    purge = max((f.purged for f in known if f.purged), default=None)
    gone = [f.purged is not None or (purge is not None and f.started < purge) for f in known]  # type: ignore[operator]
    last = max((i for i, g in enumerate(gone) if not g), default=-1)
    return {f.uid: Try(i + 1, i == last, gone[i]) for i, f in enumerate(known)}


def _every_s(message: Message) -> int:
    every_s = number(message.fields.get("every_s"))
    return min(86_400, max(1, int(every_s))) if every_s is not None else 60
