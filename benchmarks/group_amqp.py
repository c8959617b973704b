"""RabbitMQ on a disk: messages that the broker confirms, and a backlog of them that a hub works off."""

from __future__ import annotations

import asyncio
import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import aio_pika

from benchmarks.bench import Bench
from benchmarks.rig import hub
from chappe.bus import amqp_topology as topology
from chappe.bus.amqp_config import Amqp, load
from chappe.bus.amqp_envelope import LINES
from chappe.bus.amqp_link import connect
from chappe.bus.amqp_setup import setup
from chappe.testing import rabbitmq

_ENVELOPE = 100
_SIMULATIONS = 1_000
_IN_FLIGHT = 32
_PATIENCE_S = 1_800.0


def run(bench: Bench) -> None:
    """A backlog of 100 000 messages."""
    measure(bench, bench.scaled(100_000, 10_000))


def measure(bench: Bench, count: int) -> None:
    """Fill the broker while no hub is there, then start one."""
    rows = ("amqp.confirmed", "amqp.applied")
    if not rabbitmq.available():
        for row in rows:
            bench.note(row, f"not measured; {rabbitmq.HOW_TO_GET}")
        return
    with ExitStack() as stack:
        stack.enter_context(bench.attempt(*rows))
        for n in range(bench.rounds):
            with (
                bench.private(f"amqp-{n}") as place,
                rabbitmq.RabbitCluster.start(memory=False) as b,
            ):
                file = _configure(place, b.node)
                config = load(file)
                setup(config)
                bench.add("amqp.confirmed", count / asyncio.run(_publish(config, count)))
                with hub(place, amqp=file) as running:
                    bench.add("amqp.applied", count / _drained(running.running.data, count))


def _configure(place: Path, node: rabbitmq.RabbitNode) -> Path:
    password = place / "password"
    password.write_text(rabbitmq.PASSWORD)
    password.chmod(0o600)
    file = place / "amqp.toml"
    file.write_text(
        f'urls = ["amqp://{rabbitmq.ADMIN}@127.0.0.1:{node.amqp}/"]\npassword_file = "password"\n'
        f'[accounts.{rabbitmq.ADMIN}]\nproject = "default"\nproducer = "main"\n'
    )
    return file


def _messages(count: int) -> Iterator[bytes]:
    """Of 1 000 simulations in turn: each starts, and then tells of periods."""
    simulations = [str(uuid.uuid4()) for _ in range(_SIMULATIONS)]
    for n in range(count):
        period, which = divmod(n, _SIMULATIONS)
        code = "1001" if period else "0000"
        yield (
            b'{"msgApplication":"monitoring","msgProducer":"libigcm","msgProducerVersion":"2.8.1",'
            b'"simuid":"%b","jobuid":"job-%d","msgCode":"%b","msgUID":"%b",'
            b'"msgTimestamp":"2016-04-15T22:05:35.%09d+0200","CumulPeriod":"%d"}'
        ) % (
            simulations[which].encode(),
            which,
            code.encode(),
            uuid.uuid4().hex.encode(),
            n,
            period,
        )


async def _publish(config: Amqp, count: int) -> float:
    """Seconds until the broker has confirmed all."""
    raws = list(_messages(count))
    bodies = [b"\n".join(raws[at : at + _ENVELOPE]) for at in range(0, count, _ENVELOPE)]
    connection = await connect(config, config.urls[0], "bench")
    try:
        channel = await connection.channel(on_return_raises=True)
        exchange = await channel.get_exchange(topology.PRIMARY)
        key = topology.routing_key("test", rabbitmq.ADMIN, "libigcm", "monitoring", "1001")
        free = asyncio.Semaphore(_IN_FLIGHT)

        async def send(body: bytes) -> None:
            async with free:
                message = aio_pika.Message(
                    body, content_type=LINES, delivery_mode=2, user_id=rabbitmq.ADMIN
                )
                await exchange.publish(message, key, mandatory=True)

        began = time.perf_counter()
        await asyncio.gather(*map(send, bodies))
        return time.perf_counter() - began
    finally:
        await connection.close()


def _drained(data: Path, count: int) -> float:
    """Seconds from the first commit of messages that is seen until all are applied; none may be missing."""
    began = first = 0.0
    until = time.perf_counter() + _PATIENCE_S
    with closing(sqlite3.connect(f"file:{data / 'hub.sqlite'}?mode=ro", uri=True)) as conn:
        while time.perf_counter() < until:
            (found,) = conn.execute("SELECT coalesce(sum(stored), 0) FROM source").fetchone()
            if found and not began:
                began, first = time.perf_counter(), found
            if found >= count:
                (simulations,) = conn.execute("SELECT count(*) FROM simulation").fetchone()
                assert found == count, f"{found} messages are stored, {count} were sent"
                assert simulations == min(count, _SIMULATIONS), f"{simulations} simulations"
                # What was there at the first look took no time here.
                return (time.perf_counter() - began) * count / (count - first)
            time.sleep(0.02)
    raise AssertionError(f"{count} messages are not stored after {_PATIENCE_S:g} s")
