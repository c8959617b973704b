"""The outlet: Events published at a broker, for applications that bind queues of their own.

Each project's place in the EventLog moves when the broker has confirmed all up to there, so an Event may be
published twice and is never left out; its `id` is the same each time. A message holds up to 100 Events of
one kind, one a line, in their order: applications ask for kinds by the last word of the routing key. An Event
that no queue takes is an error: what is bound was deleted, and is declared again before the next try.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import aio_pika
import msgspec
import structlog
from aio_pika.abc import AbstractConnection, AbstractExchange

import chappe
from chappe.bus import amqp_topology
from chappe.bus.amqp_config import Outlet
from chappe.bus.amqp_envelope import LINES
from chappe.bus.amqp_link import ANSWER_S, restore
from chappe.core import faults
from chappe.store.outlet import Due, Project
from chappe.wire.events import Event

#: Events in a message, and Events that are on their way at once.
ENVELOPE = 100
AT_ONCE = 2_000
#: After a commit, more are waited for so long.
GATHER_S = 0.02
#: Commits are told; should one not be, the log is looked at after so long.
LOOK_S = 30.0
PRIORITY = 4

_NAMESPACE = uuid.UUID("4c8b6f1e-6a0f-5c1f-9d8e-6d1f1f6f0c11")

log = structlog.get_logger("chappe.bus.amqp")


class EventLog(Protocol):
    """What the outlet needs of the hub."""

    async def projects(self) -> list[Project]:
        """Those whose Events are published. Raises Invalid for a name that is none."""

    async def place(self, project: int) -> int:
        """The last seq that was published."""

    async def due(self, project: int, after: int, most: int) -> Due:
        """The next Events."""

    async def move(self, project: int, seq: int) -> None:
        """All up to `seq` is published: say so durably."""

    def told(self, projects: Sequence[int]) -> AbstractContextManager[asyncio.Event]:
        """What is set whenever one of them has new Events."""


@dataclass(slots=True)
class Publisher:
    """Publishes on one connection after the other, as the broker's account `user`."""

    settings: Outlet
    events: EventLog
    user: str
    #: Events published and confirmed, since the start.
    published: int = 0

    async def work(self, connection: AbstractConnection) -> None:
        """Publish until the connection ends."""
        projects = await self.events.projects()
        channel = await connection.channel(on_return_raises=True)
        await restore(channel)
        exchange = await channel.get_exchange(amqp_topology.SECONDARY, ensure=False)
        places = {p: await self.events.place(p.n) for p in projects}
        log.info("publishing at the broker", projects=[p.name for p in projects])
        with self.events.told([p.n for p in projects]) as more:
            while True:
                more.clear()
                last = [await self._some(exchange, p, places) for p in projects]
                if any(last):
                    continue
                # Not wait_for, which forgets to be cancelled when what it waits for happens as well.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_S):
                        await more.wait()
                await asyncio.sleep(GATHER_S)

    async def _some(
        self, exchange: AbstractExchange, project: Project, places: dict[Project, int]
    ) -> bool:
        """Publish some Events of a project; whether there were any."""
        due = await self.events.due(project.n, places[project], AT_ONCE)
        if due.missed:
            log.error("events were cut before they were published", n=due.missed, of=project.name)
        if not due.events:
            return False
        kinds: defaultdict[str, list[Event]] = defaultdict(list)
        for event in due.events:
            kinds[event.kind].append(event)
        sent = [
            self._publish(exchange, project, kind, all_[at : at + ENVELOPE])
            for kind, all_ in kinds.items()
            for at in range(0, len(all_), ENVELOPE)
        ]
        for outcome in await asyncio.gather(*sent, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome
        faults.reach("hub.amqp_published")
        places[project] = due.events[-1].seq
        await self.events.move(project.n, places[project])
        self.published += len(due.events)
        return True

    async def _publish(
        self, exchange: AbstractExchange, project: Project, kind: str, events: list[Event]
    ) -> None:
        """Publish an envelope, and wait for its confirmation. Raises FAULTS."""
        app = "monitoring" if kind == "simulation" else "internal"
        ids = [event_id(project, event) for event in events]
        message = aio_pika.Message(
            b"\n".join(line(project, id, e) for id, e in zip(ids, events, strict=True)),
            content_type=LINES,
            content_encoding="utf-8",
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            priority=PRIORITY,
            message_id=ids[0] if len(ids) == 1 else str(uuid.uuid5(_NAMESPACE, "\n".join(ids))),
            timestamp=time.time(),
            type=kind,
            app_id=app,
            user_id=self.user or None,
            headers={
                "producer_id": "chappe",
                "producer_version": chappe.__version__,
                "project": project.name,
                "events": len(events),
                "first_seq": events[0].seq,
                "last_seq": events[-1].seq,
            },
        )
        key = amqp_topology.routing_key(self.settings.mode, self.user or "hub", "chappe", app, kind)
        await exchange.publish(message, key, mandatory=True, timeout=ANSWER_S)


def event_id(project: Project, event: Event) -> str:
    """The same for an Event whenever it is published, and another for every other Event: also for one that
    took its number after a restore."""
    return str(uuid.uuid5(_NAMESPACE, f"{project.id}/{event.seq}/{event.received_at!r}"))


def line(project: Project, id: str, event: Event) -> bytes:
    """An Event as it is published: as on the feed, with its id and its project."""
    head = msgspec.json.encode({"id": id, "project": project.name})
    return head[:-1] + b"," + msgspec.json.encode(event)[1:]
