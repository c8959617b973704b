"""The hub's consumers of the bus, and how they are run beside the event loop (`chappe hub start --workers`).

One consumer is always there: that of `hub-check`, by which an operator sees that the whole way works.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from chappe.bus.workers import Consumer, Workers
from chappe.core.errors import Unavailable
from chappe.hub.state import Hub
from chappe.link.clock import new_id
from chappe.store import queues
from chappe.store.queues import Message
from chappe.store.tx import Tx
from chappe.wire.bus import CheckReply

#: How long a check waits for its message.
CHECK_S = 10.0


def loop(threads: int) -> Callable[[Hub], Awaitable[None]]:
    """The supervised loop that runs so many workers."""

    async def bus(hub: Hub) -> None:
        """Consume until the Hub stops."""
        workers = Workers(hub.write, consumers(hub), threads)
        hub.workers = workers
        stopping = asyncio.ensure_future(hub.stopping.wait())
        stopping.add_done_callback(lambda _done: workers.stop())
        try:
            await workers.run()
        finally:
            stopping.cancel()
            hub.workers = None

    return bus


def consumers(hub: Hub) -> list[Consumer]:
    """What the hub does with its queues."""

    def checked(message: Message) -> None:
        waiting = hub.checks.get(message.decode()["id"])
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    return [Consumer("hub-check", told=checked)]


async def check(hub: Hub) -> CheckReply:
    """Send a message through the bus: published, taken by a worker, acknowledged. Raises Unavailable when no
    worker runs."""
    if hub.workers is None:
        raise Unavailable(
            "no worker runs: this hub was started with --workers 0", code="no_workers"
        )
    id, began = new_id(), time.perf_counter()
    done = hub.checks[id] = asyncio.get_running_loop().create_future()
    try:
        position = await hub.write(_publish, id)
        async with asyncio.timeout(CHECK_S):
            await done
        outcome = True
    except TimeoutError:
        outcome = False
    finally:
        del hub.checks[id]
    return CheckReply("ok" if outcome else "waiting", position, time.perf_counter() - began)


def _publish(tx: Tx, id: str) -> int:
    return queues.publish(tx, "hub.check", {"id": id})
