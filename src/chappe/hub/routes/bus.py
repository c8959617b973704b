"""The bus: its queues, dead letters, and having messages tried again."""

from __future__ import annotations

from typing import Annotated

import msgspec

from chappe.core import limits
from chappe.hub import workers
from chappe.hub.call import Call
from chappe.store.queue_views import DESK
from chappe.wire.bus import (
    CheckReply,
    DeadLetters,
    QueueDetail,
    QueueList,
    Replay,
    ReplayReply,
    Revive,
    ReviveReply,
)

Limit = Annotated[int, msgspec.Meta(ge=1, le=limits.PAGE_MAX)]


class DeadQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of one queue (by any of its names), and where the page before this one ended."""

    queue: str | None = None
    limit: Limit = limits.PAGE_DEFAULT
    cursor: str | None = None


async def index(call: Call[None, None]) -> QueueList:
    """List the queues: what is in them, and what was done with them."""
    return await call.hub.read(DESK.queues, call.hub.clock())


async def show(call: Call[None, None]) -> QueueDetail:
    """Show a queue and the oldest messages in it."""
    return await call.hub.read(DESK.queue, call.path["name"], call.hub.clock())


async def replay(call: Call[Replay, None]) -> ReplayReply:
    """Put what was published since a position into a queue once more, some at a time."""
    return await call.hub.write(DESK.replay, call.actor, call.path["name"], call.body, bulk=True)


async def dead(call: Call[None, DeadQuery]) -> DeadLetters:
    """List dead letters: for an owner those of the project, for an administrator all."""
    q = call.query
    return await call.hub.read(DESK.dead, call.principal, call.reach, q.queue, q.limit, q.cursor)


async def revive(call: Call[Revive, None]) -> ReviveReply:
    """Have dead letters tried anew: for an owner those of the project, for an administrator all."""
    return await call.hub.write(DESK.revive, call.actor, call.reach, call.body, bulk=True)


async def check(call: Call[None, None]) -> CheckReply:
    """Send a message through the bus, and say how long it took."""
    return await workers.check(call.hub)
