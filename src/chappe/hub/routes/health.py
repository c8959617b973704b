"""Whether the process lives, whether it can work, and its metrics. No token is needed."""

from __future__ import annotations

import asyncio

from sqlalchemy import Connection, text

from chappe.core.errors import Unavailable
from chappe.hub import metrics
from chappe.hub.call import Call, Content
from chappe.store import messages
from chappe.store.queue_views import DESK
from chappe.store.tx import Tx
from chappe.wire.jobs import Counts

READY_WITHIN_S = 5.0

COUNTS = text("""
    SELECT '', '', state, CAST(sum(count) AS bigint) FROM counter GROUP BY state
    HAVING sum(count) <> 0""")
SESSIONS = text("SELECT state, count(*) FROM session GROUP BY state")


async def healthz(call: Call[None, None]) -> Content:
    """Answer 200 while the process lives."""
    return Content(b"ok\n", "text/plain; charset=utf-8")


async def readyz(call: Call[None, None]) -> Content:
    """Answer 200 when the Hub can write and read, else 503 and why not."""
    if call.hub.stopping.is_set():
        raise Unavailable("the hub is stopping")
    try:
        async with asyncio.timeout(READY_WITHIN_S):
            # A commit costs an fsync, and anybody may ask: only after one has failed it is tried.
            await call.hub.write(_touch if call.hub.in_trouble else _nothing)
            call.hub.in_trouble = False
            await call.hub.read(_count, call.hub.clock())
    except TimeoutError:
        raise Unavailable(f"the store did not answer within {READY_WITHIN_S:.0f} s") from None
    return Content(b"ready\n", "text/plain; charset=utf-8")


def _nothing(tx: Tx) -> None:
    """A command that changes nothing: that it is answered says that the writer lives."""


def _touch(tx: Tx) -> None:
    """A command that is committed: that it is answered says that there is room on the disk."""
    tx.dirty = True


async def prometheus(call: Call[None, None]) -> Content:
    """Metrics in Prometheus' text format."""
    found = await call.hub.read(_count, call.hub.clock())
    return Content(metrics.render(call.hub, found), metrics.CONTENT_TYPE)


def _count(conn: Connection, now: float) -> metrics.Found:
    jobs = [(row[0], row[1], row[2], row[3]) for row in conn.execute(COUNTS)]
    sessions = [(row[0], row[1]) for row in conn.execute(SESSIONS)]
    doors = [(row[0], row[1], row[2], row[3]) for row in conn.execute(messages.COUNTED)]
    queues = DESK.queues(conn, now).queues
    return metrics.Found(Counts(jobs), sessions, doors, queues)
