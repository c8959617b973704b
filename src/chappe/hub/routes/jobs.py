"""Jobs: create, list, show, act on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import msgspec

from chappe.core import limits
from chappe.core.errors import Invalid
from chappe.hub.call import Call
from chappe.hub.live import since
from chappe.store import acts, edits, queries, why
from chappe.store.create import create_jobs
from chappe.store.feed import EventFilter, page
from chappe.store.listing import count_jobs, matching
from chappe.store.prepare import prepare
from chappe.store.principal import Principal
from chappe.store.tx import Tx
from chappe.wire.bulk import JobCount
from chappe.wire.events import EventPage, cursor_of
from chappe.wire.jobs import (
    ActOnJobs,
    ActReply,
    Counts,
    CreateJobs,
    CreateReply,
    JobFilter,
    JobPage,
    JobView,
    ParentPage,
    QueryJobs,
    SignedSpec,
    Why,
)

#: Requests with more Jobs than this are prepared beside the loop, and wait in the writer's bulk lane.
SMALL = 100

Act = Callable[[Tx, Principal, ActOnJobs, acts.Numbers], ActReply]


class JobsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which Jobs; all conditions must hold. `tag` is `key=value`, and may be given several times."""

    phase: str | None = None
    state: str | None = None
    site: str | None = None
    app: str | None = None
    name: str | None = None
    parent: str | None = None
    id_prefix: str | None = None
    tag: list[str] = []
    name_prefix: str | None = None
    held: bool | None = None
    created_since: float | None = None
    created_until: float | None = None
    ended_since: float | None = None
    ended_until: float | None = None
    session: str | None = None
    batch_job: str | None = None
    limit: int = limits.PAGE_DEFAULT
    cursor: str | None = None


class PageQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the page before this one ended."""

    cursor: str | None = None


def tags_of(pairs: list[str]) -> dict[str, str]:
    """`key=value` texts as a mapping. Raises Invalid."""
    tags = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise Invalid(f"a tag is written key=value, not {pair[:60]!r}", field="tag")
        tags[key] = value
    return tags


async def create(call: Call[CreateJobs, None]) -> CreateReply:
    """Create up to 10 000 Jobs, all or none. Repeating a request is harmless.

    An error about single Jobs brings their verdicts in `details`.
    """
    hub, p, body = call.hub, call.principal, call.body
    catalog, now = hub.store.writer.catalog, hub.clock()
    bulk = len(body.jobs) > SMALL
    if bulk:
        prepared = await hub.prepare(prepare, catalog, p, body, now)
    else:
        prepared = prepare(catalog, p, body, now)
    return await hub.write(create_jobs, p, prepared, bulk=bulk)


async def index(call: Call[None, JobsQuery]) -> JobPage:
    """List Jobs, newest first."""
    q = call.query
    filter_ = JobFilter(
        phase=q.phase,
        state=q.state,
        site=q.site,
        app=q.app,
        name=q.name,
        parent=q.parent,
        id_prefix=q.id_prefix,
        tags=tags_of(q.tag),
        name_prefix=q.name_prefix,
        held=q.held,
        created_since=q.created_since,
        created_until=q.created_until,
        ended_since=q.ended_since,
        ended_until=q.ended_until,
        session=q.session,
        batch_job=q.batch_job,
    )
    return await call.hub.read(queries.list_jobs, call.principal, filter_, q.limit, q.cursor)


async def query(call: Call[QueryJobs, None]) -> JobPage:
    """List Jobs by a filter that is too long for a URL."""
    q = call.body
    return await call.hub.read(queries.list_jobs, call.principal, q.filter, q.limit, q.cursor)


async def counts(call: Call[None, None]) -> Counts:
    """Count Jobs by Site, App and state."""
    return await call.hub.read(queries.counts, call.principal)


async def count(call: Call[JobFilter, None]) -> JobCount:
    """Count the Jobs that match: exact for sites, apps, states and phases, otherwise to 10 000."""
    return await call.hub.read(count_jobs, call.principal, call.body)


async def show(call: Call[None, None]) -> JobView:
    """Show one Job with its spec."""
    return await call.hub.read(queries.get_job, call.principal, call.path["id"])


async def events(call: Call[None, PageQuery]) -> EventPage:
    """List the Events of one Job, oldest first."""
    hub, p, id = call.hub, call.principal, call.path["id"]
    after = since(hub, p, call.query.cursor)
    head = hub.store.head(p.project_n)
    await hub.read(queries.job_n, p, id)
    f = EventFilter(jobs=(id,))
    found, scanned = await hub.read(page, p, after, head, limits.PAGE_MAX, f)
    return EventPage(found, cursor_of(hub.store.incarnation, scanned))


async def explain(call: Call[None, None]) -> Why:
    """Say what a Job waits for."""
    hub, id = call.hub, call.path["id"]
    shared = hub.store.writer.catalog.shared
    return await hub.read(why.why, call.principal, id, hub.clock(), shared)


async def signed(call: Call[None, None]) -> SignedSpec:
    """Show the bytes of a Job that were signed, and by what: whoever signs them again looks first."""
    return await call.hub.read(queries.signed, call.principal, call.path["id"])


async def parents(call: Call[None, PageQuery]) -> ParentPage:
    """List a Job's parents in the order of its spec."""
    return await call.hub.read(queries.parents, call.principal, call.path["id"], call.query.cursor)


async def cancel(call: Call[ActOnJobs, None]) -> ActReply:
    """Cancel Jobs by ids or by filter."""
    return await _act(call, acts.cancel)


async def retry(call: Call[ActOnJobs, None]) -> ActReply:
    """Start Jobs again that failed or were cancelled."""
    return await _act(call, acts.retry)


async def delete(call: Call[ActOnJobs, None]) -> ActReply:
    """Delete final Jobs by ids or by filter; others are skipped and counted."""
    return await _act(call, acts.delete)


async def hold(call: Call[ActOnJobs, None]) -> ActReply:
    """Grant Jobs to nobody until they are released; what a pilot has is left there."""
    return await _act(call, edits.hold)


async def release(call: Call[ActOnJobs, None]) -> ActReply:
    """Let held Jobs be granted again."""
    return await _act(call, edits.release)


async def update(call: Call[ActOnJobs, None]) -> ActReply:
    """Change the tags, data or priority of Jobs."""
    return await _act(call, edits.update)


async def _act(call: Call[ActOnJobs, None], act: Act) -> ActReply:
    """Act in chunks on what matches now, each a transaction of its own."""
    hub, p, body = call.hub, call.principal, call.body
    if body.filter.ids is not None:
        return await hub.write(act, p, body, None, bulk=True)
    jobs = await hub.read(matching, p, body.filter)
    total: Counter[str] = Counter()
    # An act on none still has its request checked.
    for at in range(0, max(len(jobs), 1), limits.ACT_CHUNK):
        some = jobs[at : at + limits.ACT_CHUNK]
        total.update((await hub.write(act, p, body, some, bulk=True)).counts)
    return ActReply(dict(total))
