"""Messages from a real broker into a real hub's journal."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import Generator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import aio_pika
import pytest

from chappe.bus import amqp_topology as topology
from chappe.bus.amqp_envelope import LINES
from chappe.bus.amqp_permissions import Role
from chappe.bus.amqp_setup import setup
from chappe.testing.daemons import until
from chappe.testing.rabbitmq import RabbitCluster
from tests.amqp_rig import WITHIN_S, AmqpPlace, message, sql

SECONDS = 1_460_750_735


class Micro(datetime):
    """A time that is written in microseconds, as old producers do."""

    def timestamp(self) -> float:
        return super().timestamp() * 1e6


@pytest.fixture
def place(rabbitmq: RabbitCluster, tmp_path: Path) -> Generator[AmqpPlace, None, None]:
    made = AmqpPlace(rabbitmq, tmp_path / "amqp")
    yield made
    made.close()


async def test_every_form_of_a_message_is_taken_once_and_acknowledged(place: AmqpPlace) -> None:
    reader, me = place.account("hub", Role.HUB), place.account("tgcc", Role.PRODUCER)
    other = place.account("idris", Role.PRODUCER)
    with place.hub(reader, me) as hub:
        await asyncio.to_thread(setup, place.config())
        foreign = {
            "producer_id": "libigcm",
            "correlation_id_1": "7c1d5a52-90f4-4d0b-9a51-0c8e2f4be001",
            "correlation_id_2": "5f0a9f5e-2c3d-4be8-8a4d-9d1f6a7cb002",
        }
        envelope = b"\n".join(message(f"n{n}") for n in range(100))
        micro = Micro(2016, 4, 15, 20, 5, 35, tzinfo=UTC)
        sent: list[tuple[bytes, str, dict[str, Any]]] = [
            (message("plain"), "7000", {}),
            (message("plain"), "7000", {}),
            (base64.b64encode(message("based")), "7000", {"content_type": "application/base64"}),
            (
                b'{"actionName":"x"}',
                "7000",
                {
                    "message_id": "foreign",
                    "type": "7000",
                    "headers": foreign,
                    "timestamp": micro,
                },
            ),
            (message("unknown", msgCode="9876"), "9876", {}),
            (envelope, "7000", {"content_type": LINES}),
            (b"{broken", "1000", {"message_id": "broken"}),
            (message("strange"), "7000", {"user_id": None}),
        ]
        async with place.channel(me) as channel:
            exchange = await channel.get_exchange(topology.PRIMARY, ensure=False)
            for body, type, properties in sent:
                key = topology.routing_key("prod", me, "libigcm", "monitoring", type)
                await exchange.publish(
                    aio_pika.Message(body, **({"user_id": me} | properties)),
                    key,
                    mandatory=True,
                    timeout=WITHIN_S,
                )
        async with place.channel(other) as channel:
            exchange = await channel.get_exchange(topology.PRIMARY, ensure=False)
            key = topology.routing_key("prod", other, "libigcm", "monitoring", "7000")
            await exchange.publish(
                aio_pika.Message(message("plain", forged="1"), user_id=other), key, timeout=WITHIN_S
            )
        counted = "SELECT received, stored, duplicate, quarantined FROM source WHERE name = ?"
        await asyncio.to_thread(
            until, lambda: sum(r[0] for r in sql(hub, counted, me)) == 106, "all arrive"
        )
        await asyncio.to_thread(until, lambda: sql(hub, counted, other), "the other's arrives")
        assert sql(hub, counted, me) == [(106, 104, 1, 1)]
        reasons = dict(sql(hub, "SELECT reason, raw FROM quarantine"))
        assert set(reasons) == {"not_json", "unknown_account"}
        (kept,) = sql(hub, "SELECT raw, sha256, at_ns FROM message WHERE uid = 'foreign'")
        assert b'"actionName":"x"' in kept[0]
        assert kept[2] == SECONDS * 10**9
        context = ssl.create_default_context(cafile=hub.ca_file)
        shown = (
            await asyncio.to_thread(urlopen, f"{hub.url}/metrics", None, 30, context=context)
        ).read()
        assert b'chappe_broker_connected{link="door"} 1.0' in shown
        await asyncio.to_thread(place.await_empty)
        assert hub.stop() == 0
