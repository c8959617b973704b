"""What a centre's own broker took is not lost on its way to the hub's, over a network that is cut."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Generator
from pathlib import Path

import pytest

from chappe.bus.amqp_permissions import Role
from chappe.bus.amqp_setup import setup
from chappe.testing.rabbitmq import RabbitCluster
from chappe.testing.relay import Relay
from tests.amqp_rig import SECRET, AmqpPlace, Producer, sql


@pytest.fixture
def place(rabbitmq: RabbitCluster, tmp_path: Path) -> Generator[AmqpPlace, None, None]:
    made = AmqpPlace(rabbitmq, tmp_path / "amqp")
    yield made
    made.close()


@pytest.mark.timeout(240)
async def test_a_shovel_from_a_centre_across_a_cut(place: AmqpPlace, tmp_path: Path) -> None:
    """The centre's broker keeps what it cannot pass on; what may have arrived twice counts once."""
    centre = await asyncio.to_thread(RabbitCluster.start, "centre")
    there = AmqpPlace(centre, tmp_path / "there")
    me = there.account("oasis", Role.PRODUCER)
    reader, centres = place.account("hub", Role.HUB), place.account("tgcc", Role.PRODUCER)
    for each in (place, there):
        await asyncio.to_thread(setup, each.config())
    relay = Relay(socket.create_server(("127.0.0.1", 0)), place.node.amqp)
    there.shovel(place.node.url(centres, SECRET, relay.address[1], place.host), centres)
    producer = Producer(there, me)
    try:
        with place.hub(reader, centres) as hub:
            await producer.publish(100)
            await asyncio.to_thread(producer.await_stored, hub)
            relay.cut(reset=True)
            await producer.publish(200)
            relay.restore()
            await asyncio.to_thread(producer.await_stored, hub)
            assert sql(hub, "SELECT name FROM source") == [(centres,)]
    finally:
        relay.close()
        await asyncio.to_thread(centre.close)
