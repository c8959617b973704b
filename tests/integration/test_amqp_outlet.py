"""Events of a real hub at a real broker: each at least once, whoever dies, under the same id."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from aio_pika.abc import AbstractQueue

from chappe.bus import amqp_topology as topology
from chappe.bus.amqp_envelope import LINES
from chappe.bus.amqp_permissions import Role
from chappe.bus.amqp_setup import setup
from chappe.testing.daemons import until
from chappe.testing.hub import RunningHub
from chappe.testing.rabbitmq import RabbitCluster
from tests.amqp_rig import PROJECT, AmqpPlace, Producer, sql, start

OUTLET = f'[outlet]\nprojects = ["{PROJECT}"]\nmode = "test"\n'


@pytest.fixture
def place(rabbitmq: RabbitCluster, tmp_path: Path) -> Generator[AmqpPlace, None, None]:
    made = AmqpPlace(rabbitmq, tmp_path / "amqp")
    yield made
    made.close()


async def read_all(queue: AbstractQueue, hub: RunningHub, told: dict[int, list[Any]]) -> None:
    """Read what is published until it is all that the hub concluded."""
    async with asyncio.timeout(90.0):
        while True:
            message = await queue.get(fail=False, timeout=30.0)
            if message is None:
                seqs = {row[0] for row in sql(hub, "SELECT seq FROM event")}
                if seqs and seqs <= told.keys():
                    return
                await asyncio.sleep(0.05)
                continue
            assert message.content_type == LINES
            assert (message.routing_key or "").split(".")[0] == "test"
            events = [json.loads(line) for line in message.body.splitlines()]
            assert 1 <= len(events) <= 100
            assert {event["kind"] for event in events} == {message.type}
            for event in events:
                told[event["seq"]].append(event)
            await message.ack()


def behind(hub: RunningHub) -> int:
    (found,) = sql(hub, "SELECT max(e.seq) - o.seq FROM event e JOIN outlet o USING (project)")
    return int(found[0])


async def test_every_event_is_published_under_one_id(place: AmqpPlace) -> None:
    own, me = place.account("hub", Role.HUB), place.account("tgcc", Role.PRODUCER)
    reader = place.account("metrics", Role.APPLICATION)
    await asyncio.to_thread(setup, place.config())
    producer = Producer(place, me, start)
    told: dict[int, list[Any]] = defaultdict(list)
    crash = {"CHAPPE_CRASH_AT": "hub.amqp_published:2"}
    async with place.channel(reader) as channel:
        queue = await channel.declare_queue(f"app-{reader}", durable=True)
        await queue.bind(topology.SECONDARY, "*.*.chappe.*.#")
        with place.hub(own, me, more=OUTLET, environ=crash) as hub:
            # Each is a simulation of its own, so that there is an Event of each.
            while hub.process.poll() is None:
                await producer.publish(20)
            hub.restart({"CHAPPE_CRASH_AT": ""})
            await producer.publish(20)
            await asyncio.to_thread(producer.await_stored, hub)
            await read_all(queue, hub, told)
            # Somebody deletes what was bound: nothing that is published may be dropped for it.
            await queue.unbind(topology.SECONDARY, "*.*.chappe.*.#")
            async with place.channel() as admin:
                events = await admin.get_queue("live-events")
                await events.unbind(topology.SECONDARY, "#")
            await producer.publish(20)
            await asyncio.to_thread(producer.await_stored, hub)
            await asyncio.to_thread(until, lambda: behind(hub) == 0, "all is published")
            assert hub.stop() == 0
    copies = [len(same) for same in told.values()]
    assert max(copies) == 2  # what was published and not yet written down when the hub was killed
    assert all(event == same[0] for same in told.values() for event in same)
    ids = {same[0]["id"] for same in told.values()}
    assert len(ids) == len(told)
