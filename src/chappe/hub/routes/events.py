"""The EventLog by cursor, and live."""

from __future__ import annotations

import msgspec

from chappe.core import limits
from chappe.core.errors import Invalid, TooLarge
from chappe.core.ids import check_id
from chappe.hub.call import Call, Stream
from chappe.hub.live import position, since
from chappe.hub.routes.jobs import tags_of
from chappe.store.feed import EventFilter, begin, page
from chappe.wire.events import EventPage, cursor_of

JOBS_PER_FILTER = 100


class FeedQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which Events; all conditions must hold. `kind`, `job` (up to 100 ids) and `tag` (`key=value`) may be
    given several times; `final` takes only the Events that end a Job. `cursor` is what a page ended
    with, or `now`."""

    cursor: str | None = None
    kind: list[str] = []
    job: list[str] = []
    tag: list[str] = []
    final: bool = False


class EventsQuery(FeedQuery, frozen=True, forbid_unknown_fields=True):
    """The same, with at most `limit` Events looked at for a page."""

    limit: int = limits.PAGE_MAX


def _filter(q: FeedQuery) -> EventFilter:
    if len(q.job) > JOBS_PER_FILTER:
        raise TooLarge(f"at most {JOBS_PER_FILTER} jobs in a filter; use a tag", field="job")
    for id in q.job:
        check_id(id, "job")
    if len(q.tag) > limits.TAGS_PER_JOB:
        raise TooLarge(f"at most {limits.TAGS_PER_JOB} tags in a filter", field="tag")
    # Sorted, so that streams with the same conditions share their reads.
    return EventFilter(
        kinds=frozenset(q.kind),
        jobs=tuple(sorted(set(q.job))),
        final=q.final,
        tags=tuple(sorted(tags_of(q.tag).items())),
    )


async def index(call: Call[None, EventsQuery]) -> EventPage:
    """Read Events after a cursor (absent: from the start), oldest first.

    The page may hold fewer than `limit` also when more follow: read on until the cursor stands still.
    """
    hub, p, q = call.hub, call.principal, call.query
    if not 1 <= q.limit <= limits.EVENTS_PER_PAGE:
        raise Invalid(f"limit must be 1 to {limits.EVENTS_PER_PAGE}", field="limit")
    f = _filter(q)
    after = since(hub, p, q.cursor)
    head = hub.store.head(p.project_n)
    found, scanned = await hub.read(page, p, after, head, q.limit, f)
    return EventPage(found, cursor_of(hub.store.incarnation, scanned))


async def stream(call: Call[None, FeedQuery]) -> Stream:
    """Follow the Events as server-sent events, after `Last-Event-ID` or `cursor` (absent: now).

    Each message has the cursor as its `id` and an Event as its `data`. The first comment, `ready`, says
    that the position is fixed. Comments keep the connection alive every 15 s.
    """
    f = _filter(call.query)
    hub, p = call.hub, call.principal
    cursor = call.headers.get("last-event-id") or call.query.cursor
    if cursor:
        # What was cut is said before the stream begins.
        await hub.read(begin, p, position(hub, p, cursor), hub.store.head(p.project_n))
    return Stream(call.hub.streams.open(call.principal, f, cursor), "text/event-stream")
