"""Simulations: list and show them, their jobs, and what their messages told; purge them."""

from __future__ import annotations

import json
import secrets
from datetime import UTC, datetime
from typing import Annotated

import msgspec

from chappe.core import limits
from chappe.core.ids import uuid7
from chappe.hub.call import Call
from chappe.store import simulation_queries as store
from chappe.store.journal import Arrival, item
from chappe.store.simulation_queries import SimulationFilter
from chappe.wire.simulations import (
    CardView,
    FactPage,
    SimulationDetail,
    SimulationJobs,
    SimulationPage,
)

Limit = Annotated[int, msgspec.Meta(ge=1, le=limits.PAGE_MAX)]


class SimulationsQuery(SimulationFilter, frozen=True, forbid_unknown_fields=True):
    """Which simulations, and where the page begins."""

    cursor: str | None = None
    limit: Limit = limits.PAGE_DEFAULT


class OneQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of which producer, where several tell of simulations with the same id: `main` for the project's own."""

    producer: str | None = None


class JobsQuery(OneQuery, frozen=True, forbid_unknown_fields=True):
    """A page of jobs."""

    cursor: str = ""
    limit: Limit = limits.PAGE_DEFAULT


class FactsQuery(OneQuery, frozen=True, forbid_unknown_fields=True):
    """A page of what messages told."""

    cursor: Annotated[int, msgspec.Meta(ge=0)] = 0
    limit: Limit = limits.PAGE_DEFAULT


async def index(call: Call[None, SimulationsQuery]) -> SimulationPage:
    """List simulations, the last heard of for the first time first; only active tries, unless `all`."""
    q = call.query
    return await call.hub.read(store.page, call.principal, q, q.cursor, q.limit)


async def show(call: Call[None, OneQuery]) -> SimulationDetail:
    """Show one simulation, with its tries."""
    return await call.hub.read(store.show, call.principal, call.path["id"], call.query.producer)


async def jobs(call: Call[None, JobsQuery]) -> SimulationJobs:
    """List the jobs of a simulation, by id."""
    q, id = call.query, call.path["id"]
    return await call.hub.read(store.jobs, call.principal, id, q.producer, q.cursor, q.limit)


async def periods(call: Call[None, FactsQuery]) -> FactPage:
    """List the periods that a simulation's jobs reached, in the order of arrival."""
    return await _facts(call, "period")


async def commands(call: Call[None, FactsQuery]) -> FactPage:
    """List the commands that failed in a simulation's jobs, in the order of arrival."""
    return await _facts(call, "command")


async def actions(call: Call[None, FactsQuery]) -> FactPage:
    """List what a simulation's jobs read and wrote, in the order of arrival."""
    return await _facts(call, "action")


async def _facts(call: Call[None, FactsQuery], family: str) -> FactPage:
    q, id = call.query, call.path["id"]
    return await call.hub.read(
        store.facts, call.principal, id, q.producer, family, q.cursor, q.limit
    )


async def card(call: Call[None, OneQuery]) -> CardView:
    """Show a simulation's configuration card."""
    return await call.hub.read(store.card, call.principal, call.path["id"], call.query.producer)


async def purge(call: Call[None, OneQuery]) -> SimulationDetail:
    """Hide a simulation for ever, with the tries before it; its messages stay. Repeating it is harmless.

    The purge is a message of its producer's, as if that had sent it: so what is made again from the journal
    knows of it.
    """
    p, id, producer = call.principal, call.path["id"], call.query.producer
    shown = await call.hub.read(store.show, p, id, producer)
    if not shown.purged:
        row = await call.hub.read(store.find, p, id, producer)
        now = call.hub.clock()
        said = {
            "msgProducer": "chappe",
            "msgProducerVersion": "1",
            "msgType": "simulation.purged",
            "msgCode": "8888",
            "msgUID": uuid7(int(now * 1000), secrets.token_bytes(10)),
            "msgTimestamp": datetime.fromtimestamp(now, UTC).isoformat(timespec="microseconds"),
            "simuid": row.uid,
        }
        raw = json.dumps(said, separators=(",", ":")).encode()
        arrival = Arrival(p.project_n, row.producer, "hub", "purge", 0.0, [item(raw)])
        await call.hub.intake.take(arrival)
    return await call.hub.read(store.show, p, id, producer)
