"""What was done in a period."""

from __future__ import annotations

import msgspec

from chappe.hub.call import Call
from chappe.store import stats as store
from chappe.wire.stats import Stats

DEFAULT_S = 86_400.0


class StatsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """From `since` on and before `until`, seconds since 1970 (default: the last 24 hours); told apart `by`
    site and app (default), by one of them, or by `nothing`."""

    since: float | None = None
    until: float | None = None
    by: list[str] = []


async def show(call: Call[None, StatsQuery]) -> Stats:
    """Show throughput, utilisation, waiting and run times of the Jobs that ended in a period."""
    hub, q = call.hub, call.query
    now = hub.clock()
    until = now if q.until is None else q.until
    since = until - DEFAULT_S if q.since is None else q.since
    by = [] if q.by == ["nothing"] else q.by or list(store.BY)
    return await hub.read(store.stats, call.principal, since, until, by, now)
