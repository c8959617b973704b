"""A real broker: its set-up, its accounts' rights, log-ins, and connections that come and go."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Generator
from pathlib import Path

import aio_pika
import pytest
from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import PublishError
from aiormq.exceptions import AMQPError, ChannelAccessRefused
from click.testing import CliRunner

from chappe.bus import amqp_topology as topology
from chappe.bus.amqp_config import Amqp
from chappe.bus.amqp_link import FAULTS, Link, connect, restore
from chappe.bus.amqp_permissions import Role
from chappe.bus.amqp_setup import setup
from chappe.cli.main import root
from chappe.core.errors import Conflict, Forbidden, Unavailable
from chappe.core.vocabulary import BY_CODE_2014, KINDS
from chappe.testing.rabbitmq import RabbitCluster
from chappe.testing.relay import Relay
from tests.amqp_rig import WITHIN_S, AmqpPlace


@pytest.fixture
def place(rabbitmq: RabbitCluster, tmp_path: Path) -> Generator[AmqpPlace, None, None]:
    made = AmqpPlace(rabbitmq, tmp_path / "amqp")
    yield made
    made.close()


async def test_setup_may_be_run_again_and_every_type_is_routed(place: AmqpPlace) -> None:
    config = place.config(place.account("hub", Role.HUB))
    first = await asyncio.to_thread(setup, config)
    assert await asyncio.to_thread(setup, config) == first
    async with place.channel() as channel:
        primary = await channel.get_exchange(topology.PRIMARY)
        secondary = await channel.get_exchange(topology.SECONDARY)
        for type in sorted({*BY_CODE_2014, *KINDS, "9876", "custom.mine"}):
            key = topology.routing_key("test", "u", "p", "a", type)
            for exchange in (primary, secondary):
                await exchange.publish(
                    aio_pika.Message(b"{}"), key, mandatory=True, timeout=WITHIN_S
                )
        lost = topology.routing_key("test", "u", "p", "a", "9876")
        queue = await channel.get_queue("live-other")
        assert queue.declaration_result.message_count
        events = await channel.get_queue("live-events")
        await events.unbind(topology.SECONDARY, "#")
        with pytest.raises(PublishError):
            await secondary.publish(aio_pika.Message(b"{}"), lost, mandatory=True, timeout=WITHIN_S)


async def test_what_is_there_with_other_arguments_is_refused_by_name(place: AmqpPlace) -> None:
    async with place.channel() as channel:
        await channel.declare_queue("live-metrics-env", durable=True)
    with pytest.raises(
        Conflict, match=r"queue live-metrics-env with other arguments.*current is none"
    ):
        await asyncio.to_thread(setup, place.config())


async def test_an_account_without_rights_is_told_what_to_do(place: AmqpPlace) -> None:
    config = place.config(place.account("tgcc", Role.PRODUCER))
    with pytest.raises(Forbidden, match="chappe bus permissions"):
        await asyncio.to_thread(setup, config)


async def test_no_broker_is_said_to_be_none(place: AmqpPlace) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        config = place.config(port=unused.getsockname()[1])
        with pytest.raises(Unavailable, match="no broker answers"):
            await asyncio.to_thread(setup, config)


async def test_a_producer_can_neither_read_nor_be_somebody_else(place: AmqpPlace) -> None:
    await asyncio.to_thread(setup, place.config())
    me = place.account("tgcc", Role.PRODUCER)
    own = topology.routing_key("prod", me, "libigcm", "monitoring", "0000")
    other = topology.routing_key("prod", "idris", "libigcm", "monitoring", "0000")

    async def publish(exchange: str, key: str, user: str | None) -> None:
        async with place.channel(me) as channel:
            target = await channel.get_exchange(exchange, ensure=False)
            message = aio_pika.Message(b"{}", user_id=user)
            await target.publish(message, key, mandatory=True, timeout=WITHIN_S)

    await publish(topology.PRIMARY, own, me)
    for exchange, key, user in (
        (topology.PRIMARY, other, me),
        (topology.PRIMARY, own, "idris"),
        (topology.SECONDARY, own, me),
        ("amq.topic", own, me),
        ("", "live-monitoring-compute", me),
    ):
        with pytest.raises((AMQPError, ChannelAccessRefused)):
            await publish(exchange, key, user)
    async with place.channel(me) as channel:
        queue = await channel.get_queue("live-monitoring-compute", ensure=False)
        with pytest.raises(ChannelAccessRefused):
            await queue.get(timeout=WITHIN_S)


async def test_an_application_binds_a_queue_of_its_own(place: AmqpPlace) -> None:
    await asyncio.to_thread(setup, place.config())
    me = place.account("esgf", Role.APPLICATION)
    async with place.channel(me) as channel:
        queue = await channel.declare_queue(f"app-{me}", durable=True)
        await queue.bind(topology.SECONDARY, "*.*.*.*.simulation")
        async with place.channel() as hub:
            exchange = await hub.get_exchange(topology.SECONDARY)
            await exchange.publish(
                aio_pika.Message(b"1"), "prod.u.p.a.simulation", timeout=WITHIN_S
            )
        message = await queue.get(timeout=WITHIN_S)
        assert message is not None
        assert message.body == b"1"
        await message.ack()
    async with place.channel(me) as channel:
        queue = await channel.declare_queue(f"app-{me}", durable=True)
        with pytest.raises(ChannelAccessRefused):
            await queue.bind(topology.PRIMARY, "#")


async def test_log_in_by_certificate_and_by_password_over_tls(place: AmqpPlace) -> None:
    node, authority = place.node, place.broker.authority
    me = place.account("centre", Role.HUB)
    mine = authority.client(me)
    name = f"amqps://localhost:{node.amqps}/{place.host}"
    external = Amqp(
        (name,), ca_file=str(authority.ca), cert_file=str(mine.cert), key_file=str(mine.key)
    )
    plain = place.config(me)
    by_password = Amqp(
        (name.replace("//", f"//{me}@"),),
        ca_file=str(authority.ca),
        password_file=plain.password_file,
    )
    for config in (external, by_password):
        connection = await connect(config, config.urls[0], "test")
        await restore(await connection.channel())
        await connection.close()
    stranger = authority.client("nobody")
    refused = Amqp(
        (name,), ca_file=str(authority.ca), cert_file=str(stranger.cert), key_file=str(stranger.key)
    )
    untrusted = Amqp((by_password.urls[0],), password_file=plain.password_file)
    for config in (refused, untrusted):
        with pytest.raises(FAULTS):
            await connect(config, config.urls[0], "test")


async def test_a_link_restores_what_was_there_and_never_hangs(place: AmqpPlace) -> None:
    """A cut that nobody is told of, and one that resets: the publisher gets an error each time, in time."""
    relay = Relay(socket.create_server(("127.0.0.1", 0)), place.node.amqp)
    link = Link(place.config(port=relay.address[1], heartbeat_s=1), "test")
    stopping, published = asyncio.Event(), asyncio.Queue[int]()
    failed = asyncio.Event()

    async def work(connection: AbstractConnection) -> None:
        channel = await connection.channel(on_return_raises=True)
        await restore(channel)
        exchange = await channel.get_exchange(topology.PRIMARY)
        try:
            while True:
                await exchange.publish(
                    aio_pika.Message(b"{}"), "a.b.c.d.0000", mandatory=True, timeout=WITHIN_S
                )
                published.put_nowait(1)
                await asyncio.sleep(0.01)
        finally:
            failed.set()

    running = asyncio.create_task(link.run(work, stopping))
    try:
        async with asyncio.timeout(3 * WITHIN_S):
            for reset in (True, False):
                await published.get()
                failed.clear()
                relay.cut(reset=reset)
                await failed.wait()
                # Meanwhile somebody deletes what was declared.
                place.node.api("DELETE", f"/queues/{place.host}/live-monitoring-compute")
                while not published.empty():
                    published.get_nowait()
                relay.restore()
            await published.get()
    finally:
        stopping.set()
        await running
        relay.close()
    assert not link.standing.connected


async def test_a_link_notices_a_loss_while_it_only_listens(place: AmqpPlace) -> None:
    """A reader says nothing, so no error tells it."""
    relay = Relay(socket.create_server(("127.0.0.1", 0)), place.node.amqp)
    link = Link(place.config(port=relay.address[1]), "test")
    stopping, begun = asyncio.Event(), asyncio.Queue[int]()

    async def work(_connection: AbstractConnection) -> None:
        begun.put_nowait(1)
        await asyncio.Event().wait()

    running = asyncio.create_task(link.run(work, stopping))
    try:
        async with asyncio.timeout(WITHIN_S):
            await begun.get()
            relay.cut(reset=True)
            relay.restore()
            await begun.get()
    finally:
        stopping.set()
        await running
        relay.close()


def test_commands(place: AmqpPlace) -> None:
    account = place.account("hub", Role.HUB)
    amqp = place.config(account)
    file = place.directory / "amqp.toml"
    file.write_text(f'urls = ["{amqp.urls[0]}"]\npassword_file = "{amqp.password_file}"\n')
    done = CliRunner().invoke(root, ["bus", "setup", str(file), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["queues"] == [queue.name for queue in topology.QUEUES]
    api = ["--api", place.node.api_url, "--password-file", str(place.admin_password)]
    where = ["--vhost", place.host, *api]
    asked = ["bus", "permissions", account, "--role", "producer", *where]
    done = CliRunner().invoke(root, asked)
    assert done.exit_code == 0, done.output
    assert "set_topic_permissions" in done.output
    found = place.node.api("GET", f"/permissions/{place.host}/{account}")
    assert (found["configure"], found["read"]) == ("^$", "^$")
    done = CliRunner().invoke(root, ["bus", "setup", str(file)])
    assert done.exit_code == 5, done.output
    done = CliRunner().invoke(root, ["bus", "permissions", "nobody", "--role", "hub", *where])
    assert done.exit_code == 3, done.output
