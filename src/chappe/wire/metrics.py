"""Scalar time series of simulations: `GET /v1/metrics`."""

from __future__ import annotations

import msgspec


class Point(msgspec.Struct, frozen=True, array_like=True):
    """One value, or a bucket of `count` of them, in this order in a list.

    `at` is when the first was sent (seconds since 1970); least, greatest and mean are null where no
    value is a finite number; `step` and `time` are those of the model, where they were told, the greatest in
    the bucket.
    """

    at: float
    min: float | None
    max: float | None
    mean: float | None
    count: int
    step: float | None = None
    time: str | None = None


class SeriesView(msgspec.Struct, frozen=True):
    """One name of one job of a simulation. `count`, `first_at` and `last_at` are of the range that was asked
    for; each value is in one of the `points`."""

    name: str
    simulation: str
    job: str
    producer: str
    count: int
    first_at: float | None
    last_at: float | None
    points: list[Point]


class SeriesList(msgspec.Struct, frozen=True):
    """Series by name."""

    series: list[SeriesView]
