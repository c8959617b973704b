"""The Hub's links to a RabbitMQ broker: loops beside its own, each on a connection of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager

from aiormq.abc import DeliveredMessage

from chappe.bus import amqp_door
from chappe.bus.amqp_config import Amqp
from chappe.bus.amqp_door import Door, Owners
from chappe.bus.amqp_link import Link
from chappe.bus.amqp_outlet import Publisher
from chappe.hub.state import Hub
from chappe.store import outlet, owners
from chappe.store.journal import MAIN, Item
from chappe.store.outlet import Due, Project


def loops(config: Amqp) -> list[Callable[[Hub], Awaitable[None]]]:
    """What the configuration wants to run."""
    wanted: list[Callable[[Hub], Awaitable[None]]] = []
    if config.accounts:

        async def amqp_door(hub: Hub) -> None:
            await _door(hub, config)

        wanted.append(amqp_door)
    if (told := config.outlet) is not None:

        async def amqp_outlet(hub: Hub) -> None:
            publisher = Publisher(told, _Log(hub, told.projects), config.user)
            link = Link(config, "chappe outlet")
            hub.links["outlet"] = link.standing
            await link.run(publisher.work, hub.stopping)

        wanted.append(amqp_outlet)
    return wanted


async def _door(hub: Hub, config: Amqp) -> None:
    """Read from the broker until the Hub stops."""

    async def whose() -> Owners:
        names = [(account.project, account.producer) for account in config.accounts.values()]
        found = await hub.read(owners.owners, names)
        return Owners(
            dict(zip(config.accounts, found, strict=True)), found[0]._replace(producer=MAIN)
        )

    async def decode(batch: Sequence[DeliveredMessage]) -> list[list[Item]]:
        return await hub.prepare(amqp_door.decode, batch)

    door = Door(config, whose, hub.intake.take, decode)
    link = Link(config, "chappe door")
    hub.links["door"] = link.standing
    await link.run(door.work, hub.stopping)


class _Log:
    """The Hub's EventLog, as the outlet reads it (EventLog)."""

    def __init__(self, hub: Hub, names: Sequence[str]) -> None:
        self._hub = hub
        self._names = names

    async def projects(self) -> list[Project]:
        return await self._hub.read(outlet.projects, self._names)

    async def place(self, project: int) -> int:
        return await self._hub.read(outlet.place, project)

    async def due(self, project: int, after: int, most: int) -> Due:
        head = self._hub.store.head(project)
        return await self._hub.read(outlet.due, project, after, head, most)

    async def move(self, project: int, seq: int) -> None:
        await self._hub.write(outlet.move, project, seq)

    def told(self, projects: Sequence[int]) -> AbstractContextManager[asyncio.Event]:
        return self._hub.streams.listen(projects)
