"""BatchJobs (allocations that were asked for) and Sessions (the pilots in them)."""

from __future__ import annotations

from functools import partial

import msgspec

from chappe.core.ids import check_id
from chappe.hub.call import Call
from chappe.store import queries
from chappe.store import sites as store
from chappe.wire.sites import (
    BatchJobView,
    EndSession,
    Listing,
    NewBatchJob,
    NewSession,
    NewSessionReply,
)


class BatchJobsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of one Site (id or name), in one state; a Site's token sees its own."""

    site: str | None = None
    state: str | None = None


class SessionsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Dead Sessions only with `all`."""

    all: bool = False


async def create(call: Call[NewBatchJob, None]) -> BatchJobView:
    """Ask for an allocation. Repeating it is harmless."""
    return await call.hub.write(store.create_batch_job, call.principal, call.body)


async def index(call: Call[None, BatchJobsQuery]) -> Listing:
    """List BatchJobs, newest first."""
    q = call.query
    found = await call.hub.read(queries.list_batch_jobs, call.principal, q.site, q.state)
    return Listing(batch_jobs=found)


async def show(call: Call[None, None]) -> BatchJobView:
    """Show one BatchJob."""
    return await call.hub.read(queries.batch_job_view, call.principal, call.path["id"])


async def cancel(call: Call[None, None]) -> BatchJobView:
    """Give an allocation back: its pilot drains; one that was not submitted never will be."""
    return await call.hub.write(store.cancel_batch_job, call.principal, call.path["id"])


async def create_session(call: Call[NewSession, None]) -> NewSessionReply:
    """Register the pilot of a BatchJob and make its token; the same again makes a new token."""
    return await call.hub.write(store.create_session, call.principal, call.body)


async def sessions(call: Call[None, SessionsQuery]) -> Listing:
    """List Sessions, newest first."""
    hub, p = call.hub, call.principal
    wanted = partial(queries.list_sessions, all_=call.query.all)
    return Listing(sessions=await hub.read(wanted, p))


async def end_session(call: Call[EndSession, None]) -> None:
    """End a Session: its pilot's farewell, its Site's proof of death, or an operator's order.

    An operator says `may_run_twice`, because silence is not death.
    """
    id = check_id(call.path["id"], "id")
    await call.hub.write(store.end_session, call.principal, id, call.body)
