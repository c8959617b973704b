"""The door: messages from a broker into the journal, acknowledged when they are committed.

What was delivered and not acknowledged is delivered again, to this hub or its successor, and is then a
duplicate: so nothing is lost and nothing counts twice, whichever of the two dies, and when. What cannot be
read is committed too, in quarantine, and acknowledged: one bad message stops no others.

Whose a message is says the broker, which has checked its property `user_id`, and the configuration, which
names a producer for each account. What comes from an account that it does not name is kept in quarantine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import NamedTuple

import structlog
from aio_pika.abc import AbstractConnection
from aiormq.abc import DeliveredMessage
from aiormq.exceptions import AMQPError

from chappe.bus import amqp_topology
from chappe.bus.amqp_config import Amqp
from chappe.bus.amqp_envelope import Delivery, items
from chappe.bus.amqp_link import restore
from chappe.core import faults
from chappe.core.errors import ChappeError
from chappe.link.retry import jitter_s
from chappe.store.journal import Arrival, Item
from chappe.store.owners import Owner
from chappe.wire.messages import Verdict

DOOR = "amqp"
#: Messages that are looked at together; the journal has a limit for those that wait.
AT_ONCE = 1_000
FIRST_S = 0.1
MOST_S = 10.0

log = structlog.get_logger("chappe.bus.amqp")


class Owners(NamedTuple):
    """Whose the messages of an account are, and whose quarantine takes those of the others."""

    of: Mapping[str, Owner]
    stranger: Owner


class Lost(AMQPError):
    """The broker delivers no more: a queue was deleted, or its node went."""


@dataclass(slots=True)
class Door:
    """Reads from one connection after the other. `owners` and `take` are the hub's."""

    config: Amqp
    owners: Callable[[], Awaitable[Owners]]
    take: Callable[[Arrival], Awaitable[list[Verdict]]]
    decode: Callable[[Sequence[DeliveredMessage]], Awaitable[list[list[Item]]]]
    #: Deliveries and messages, since the start.
    delivered: int = 0
    messages: int = 0
    _arrived: asyncio.Queue[DeliveredMessage | None] = field(default_factory=asyncio.Queue)

    async def work(self, connection: AbstractConnection) -> None:
        """Read until the connection ends."""
        owners = await self.owners()
        channel = await connection.channel()
        await restore(channel)
        await channel.set_qos(prefetch_count=self.config.prefetch)
        under = await channel.get_underlay_channel()
        arrived: asyncio.Queue[DeliveredMessage | None] = asyncio.Queue()
        self._arrived = arrived

        async def deliver(message: DeliveredMessage) -> None:
            arrived.put_nowait(message)

        async def cancelled(_frame: object) -> None:
            arrived.put_nowait(None)

        under.on_consumer_cancel_callbacks.add(cancelled)
        for queue in amqp_topology.DOOR:
            await under.basic_consume(queue, deliver)
        log.info("reading from the broker", queues=len(amqp_topology.DOOR))
        while True:
            batch = await self._next()
            await self._keep(batch, owners)
            faults.reach("hub.amqp_kept")
            # All that was delivered before the last of these is committed as well.
            await under.basic_ack(batch[-1].delivery_tag or 0, multiple=True)

    async def _next(self) -> list[DeliveredMessage]:
        """What has arrived, at least one. Raises Lost."""
        batch = [await self._arrived.get()]
        while len(batch) < AT_ONCE and not self._arrived.empty():
            batch.append(self._arrived.get_nowait())
        if None in batch:
            raise Lost("the broker ended the reading of a queue")
        return [message for message in batch if message is not None]

    async def _keep(self, batch: Sequence[DeliveredMessage], owners: Owners) -> None:
        """Have all of it committed, in the order of its arrival."""
        decoded = await self.decode(batch)
        whose = [message.header.properties.user_id or "" for message in batch]
        for user, group in groupby(zip(whose, decoded, strict=True), key=lambda pair: pair[0]):
            owner = owners.of.get(user)
            found = [item for _, some in group for item in some]
            if owner is None:
                owner, found = owners.stranger, [_strange(user, item) for item in found]
            for at in range(0, len(found), AT_ONCE):
                part = found[at : at + AT_ONCE]
                await self._commit(Arrival(*owner, DOOR, user or "unnamed", 0.0, part))
        self.delivered += len(batch)
        self.messages += sum(map(len, decoded))

    async def _commit(self, arrival: Arrival) -> None:
        """Have an arrival committed, however long the database is away. What it refuses for good, as no
        other message, goes into quarantine."""
        failures = 0
        while True:
            try:
                await self.take(arrival)
                return
            except ChappeError as error:
                if not error.transient:
                    await self._refused(arrival, error.message)
                    return
                trouble = error.message
            except Exception as error:
                log.exception("the journal refused messages")
                await self._refused(arrival, type(error).__name__)
                return
            log.warning("the journal takes nothing now", trouble=trouble)
            await asyncio.sleep(jitter_s(failures, FIRST_S, MOST_S))
            failures += 1

    async def _refused(self, arrival: Arrival, words: str) -> None:
        """Commit one by one what was refused together, and the one that is refused alone as unreadable."""
        if len(arrival.items) > 1:
            for item in arrival.items:
                await self._commit(replace(arrival, items=[item]))
            return
        (item,) = arrival.items
        if item.undecodable == "refused":
            raise Lost(f"the journal refuses a message even as unreadable: {words}")
        await self._commit(replace(arrival, items=[Item(item.raw, None, "refused", words)]))


def _strange(user: str, item: Item) -> Item:
    name = f"the account {user}" if user else "an account that the message does not name (user_id)"
    words = f"{name} is not in the hub's configuration"
    uid = item.uid_hint if item.message is None else item.message.uid
    return Item(item.raw, None, "unknown_account", words, uid)


def decode(batch: Sequence[DeliveredMessage]) -> list[list[Item]]:
    """The messages of each delivery. Takes time, and needs no loop."""
    return [items(_delivery(message)) for message in batch]


def _delivery(message: DeliveredMessage) -> Delivery:
    p = message.header.properties
    return Delivery(
        bytes(message.body),
        p.content_type or "",
        p.message_id or "",
        p.message_type or "",
        p.app_id or "",
        p.user_id or "",
        p.timestamp,
        p.headers or {},
    )
