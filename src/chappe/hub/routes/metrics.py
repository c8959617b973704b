"""Scalar time series of simulations."""

from __future__ import annotations

from typing import Annotated

import msgspec

from chappe.core import limits
from chappe.hub.call import Call
from chappe.store import series_queries as store
from chappe.wire.metrics import SeriesList


class MetricsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of a `simulation` or a `job`; of these `name`s (repeat it) or of all; sent from `since` on and before
    `until` (seconds since 1970). `buckets` is the most points of each series; 0: only what there is."""

    simulation: str | None = None
    job: str | None = None
    name: list[str] = []
    producer: str | None = None
    since: float | None = None
    until: float | None = None
    buckets: Annotated[int, msgspec.Meta(ge=0, le=limits.POINTS_PER_REQUEST)] = 500


async def show(call: Call[None, MetricsQuery]) -> SeriesList:
    """Show time series, down-sampled to least, greatest and mean values."""
    q = call.query
    return await call.hub.read(
        store.read,
        call.principal,
        q.simulation,
        q.job,
        q.name,
        q.producer,
        q.since,
        q.until,
        q.buckets,
    )
