"""What was done in a period: `GET /v1/stats`."""

from __future__ import annotations

import msgspec


class Spread(msgspec.Struct, frozen=True):
    """How times in seconds are spread over `count` Jobs: half take no longer than `median`."""

    count: int
    median: float
    p90: float
    p99: float


class StatsGroup(msgspec.Struct, frozen=True, omit_defaults=True):
    """Jobs of one App at one Site that ended in the period; None where it was not asked to tell them apart,
    "" for no Site, and for commands.

    `wait` is from the moment a Job could run to its last start, `run` from there to its end; Jobs that never
    ran are in neither. `core_hours` are those of last attempts. Of what its pilots offered a Site used
    `utilisation`; it is told when Apps are not told apart.
    """

    site: str | None
    app: str | None
    finished: int
    failed: int
    cancelled: int
    per_hour: float
    core_hours: float
    wait: Spread | None = None
    run: Spread | None = None
    offered_core_hours: float | None = None
    utilisation: float | None = None


class Stats(msgspec.Struct, frozen=True):
    """Of the Jobs that ended in the period one in `one_in` was looked at: with more than 1, numbers are
    estimates."""

    since: float
    until: float
    jobs: int
    one_in: int
    groups: list[StatsGroup]
