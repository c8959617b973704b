"""The Hub's links to a RabbitMQ broker: loops beside its own, each on a connection of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from aiormq.abc import DeliveredMessage

from chappe.bus import amqp_door
from chappe.bus.amqp_config import Amqp
from chappe.bus.amqp_door import Door, Owners
from chappe.bus.amqp_link import Link
from chappe.hub.state import Hub
from chappe.store import owners
from chappe.store.journal import MAIN, Item


def loops(config: Amqp) -> list[Callable[[Hub], Awaitable[None]]]:
    """What the configuration wants to run."""

    async def amqp_door(hub: Hub) -> None:
        await _door(hub, config)

    return [amqp_door] if config.accounts else []


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
    await Link(config, "chappe door").run(door.work, hub.stopping)
