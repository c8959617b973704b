"""Simulations as people see them. Times are seconds since 1970."""

from __future__ import annotations

from typing import Any

import msgspec


class SimulationView(msgspec.Struct, frozen=True, omit_defaults=True):
    """A simulation. `id` is its simuid; `producer` is who told of it, `main` the project itself.

    `state` is that of its latest compute job: running, late (past its deadline), silent (no sign of life),
    lost_end (over, and nobody said so), complete, error; or queued, between two jobs. `jobs` counts its jobs
    by kind and state, as `compute.running`. Of several tries of one simulation the last is `active`.
    """

    id: str
    producer: str
    name: str
    state: str
    active: bool
    purged: bool
    try_number: int
    changed_at: float
    messages: int
    jobs: dict[str, int]
    experiment: str = ""
    model: str = ""
    space: str = ""
    machine: str = ""
    login: str = ""
    centre: str = ""
    account: str = ""
    started_at: float | None = None
    ended_at: float | None = None
    progress: float | None = None


class SimulationPage(msgspec.Struct, frozen=True):
    """Simulations, the last heard of for the first time first. `cursor` gives the next page; None: that was
    the last."""

    simulations: list[SimulationView]
    cursor: str | None = None


class TryView(msgspec.Struct, frozen=True):
    """One of several tries of a simulation."""

    number: int
    id: str
    state: str
    active: bool
    purged: bool
    started_at: float | None = None


class SimulationDetail(SimulationView, frozen=True, omit_defaults=True):
    """All of a simulation but its jobs. `fields` are as its start told; `types` counts its messages.

    `reached` is the end of the latest period, in the model's calendar; so many jobs (`repeats`) reached it
    and did not pass it, and when they are too many it is `stuck`: a person must look. `suspect` messages came
    from the future. `slack_s` is how much later than its deadline a job may be heard before it is late.
    """

    fields: dict[str, str] = {}
    types: dict[str, int] = {}
    metrics: dict[str, float] = {}
    tries: list[TryView] = []
    latest_job: str | None = None
    calendar: str | None = None
    reached: str | None = None
    repeats: int = 0
    stuck: bool = False
    suspect: int = 0
    slack_s: float = 0.0
    has_card: bool = False


class SimulationJobView(msgspec.Struct, frozen=True, omit_defaults=True):
    """A job of a simulation: `compute`, `post` or `checker`. `job` is the Chappe Job of that id, if there is
    one.

    `messages`, `commands` (that failed) and `actions` (of input and output) are counted.
    """

    id: str
    kind: str
    state: str
    messages: int
    commands: int
    actions: int
    started_at: float | None = None
    ended_at: float | None = None
    deadline_at: float | None = None
    scheduler_id: str = ""
    reached: str | None = None
    job: str | None = None
    fields: dict[str, str] = {}


class SimulationJobs(msgspec.Struct, frozen=True):
    """Jobs by id. `cursor` gives the next page; None: that was the last."""

    jobs: list[SimulationJobView]
    cursor: str | None = None


class FactView(msgspec.Struct, frozen=True):
    """What one message told: a period, a failed command, an action of input or output. `n` is its position in
    the journal."""

    n: int
    uid: str
    job: str
    at: float
    fields: dict[str, Any]


class FactPage(msgspec.Struct, frozen=True):
    """In the order of arrival. `cursor` gives the next page; None: that was the last."""

    facts: list[FactView]
    cursor: int | None = None


class CardView(msgspec.Struct, frozen=True):
    """The configuration card of a simulation, as text."""

    id: str
    text: str
