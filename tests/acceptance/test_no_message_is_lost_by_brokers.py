"""A message that a broker confirmed is stored and applied once, whoever is away or dies in between.

L8 is a hole of the system before this one; for its L7, types without a queue, see test_amqp_topology.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from pathlib import Path

import pytest

from chappe.bus.amqp_permissions import Role
from chappe.bus.amqp_setup import setup
from chappe.testing.rabbitmq import RabbitCluster
from tests.amqp_rig import AmqpPlace, Producer


@pytest.fixture
def place(rabbitmq: RabbitCluster, tmp_path: Path) -> Generator[AmqpPlace, None, None]:
    made = AmqpPlace(rabbitmq, tmp_path / "amqp")
    yield made
    made.close()


@pytest.mark.parametrize("at", ["hub.message_stored", "hub.amqp_kept"])
async def test_l8_a_killed_hub_had_acknowledged_only_what_it_stored(
    place: AmqpPlace, at: str
) -> None:
    reader, me = place.account("hub", Role.HUB), place.account("tgcc", Role.PRODUCER)
    await asyncio.to_thread(setup, place.config())
    producer = Producer(place, me)
    await producer.publish(20)
    with place.hub(reader, me, environ={"CHAPPE_CRASH_AT": at}) as hub:
        await producer.publish(20)
        await asyncio.to_thread(hub.wait_dead, 60.0)
        await producer.publish(20)
        hub.restart({"CHAPPE_CRASH_AT": ""})
        await asyncio.to_thread(producer.await_stored, hub)


async def test_either_end_may_be_away(place: AmqpPlace) -> None:
    """The hub is down while the broker fills; the broker is down while producers keep what they have."""
    reader, me = place.account("hub", Role.HUB), place.account("tgcc", Role.PRODUCER)
    await asyncio.to_thread(setup, place.config())
    producer = Producer(place, me)
    with place.hub(reader, me) as hub:
        await producer.publish(100)
        await asyncio.to_thread(producer.await_stored, hub)
        hub.stop()
        await producer.publish(1_000, envelope=50)
        await asyncio.to_thread(place.node.stop)
        hub.start()
        spooling = asyncio.create_task(producer.publish(200))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(spooling), 0.5)
        await asyncio.to_thread(place.node.restart)
        await spooling
        assert len(producer.confirmed) == 1_300
        await asyncio.to_thread(producer.await_stored, hub)
        assert hub.stop() == 0
