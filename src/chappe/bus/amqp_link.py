"""A connection to a RabbitMQ broker that is made again for ever, and on which nobody waits for ever.

`Link.run(work)` connects to one node after the other until one takes it, and gives `work` the connection.
`work` restores what it needs there (exchanges, queues, consumers) and then does its task; when the connection
ends, whatever `work` waited for ends with it, and all is done again. The library has robust connections
of its own: a publisher then hangs for as long as the broker is away, so they are not used.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

import aio_pika
import structlog
from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import CONNECTION_EXCEPTIONS, ChannelPreconditionFailed
from aiormq.exceptions import ChannelAccessRefused
from yarl import URL

from chappe.bus import amqp_frames, amqp_topology
from chappe.bus.amqp_config import PORTS, Amqp
from chappe.core.errors import ChappeError, Conflict, Forbidden
from chappe.link.retry import jitter_s

CONNECT_S = 15.0
#: An answer of the broker that takes longer means that the connection is lost.
ANSWER_S = 30.0
CLOSE_S = 5.0
FIRST_S = 0.2
MOST_S = 15.0

FAULTS = (*CONNECTION_EXCEPTIONS, TimeoutError, asyncio.InvalidStateError)
"""What the library raises when a connection or a channel is lost, or the broker refuses."""

log = structlog.get_logger("chappe.bus.amqp")
# The link says what happens; the library would say it again, with stacks.
for _name in ("aiormq", "aio_pika"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)


async def connect(config: Amqp, url: str, name: str) -> AbstractConnection:
    """A connection to one node. Raises FAULTS, or ChappeError for files that cannot be used."""
    amqp_frames.install()
    parts = urlsplit(url)
    port = parts.port or PORTS[parts.scheme]
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    login = ""
    if not config.external:
        login = f"{parts.username}:{quote(config.password(), safe='')}@"
    auth = "EXTERNAL" if config.external else "PLAIN"
    path = parts.path or "/"
    query = f"auth={auth}&heartbeat={config.heartbeat_s}&name={quote(name)}"
    connection = aio_pika.Connection(
        URL(f"{parts.scheme}://{login}{host}:{port}{path}?{query}", encoded=True),
        ssl_context=config.tls() if parts.scheme == "amqps" else None,
    )
    try:
        async with asyncio.timeout(CONNECT_S):
            await connection.connect()
    except BaseException:
        await (
            connection.close()
        )  # else it closes itself when it is forgotten, if there is a loop then
        raise
    return connection


async def restore(channel: AbstractChannel) -> None:
    """Declare all that amqp_topology names, as far as it is not there.

    Raises Conflict when something is there with other arguments, Forbidden when the account may not, and
    FAULTS.
    """
    declared = ""
    try:
        async with asyncio.timeout(ANSWER_S):
            for exchange in amqp_topology.EXCHANGES:
                declared = f"exchange {exchange.name}"
                await channel.declare_exchange(
                    exchange.name, exchange.kind, durable=True, arguments=exchange.arguments
                )
            for queue in amqp_topology.QUEUES:
                declared = f"queue {queue.name}"
                made = await channel.declare_queue(
                    queue.name, durable=True, arguments=queue.arguments
                )
                for key in queue.keys:
                    await made.bind(queue.exchange, key)
    except ChannelPreconditionFailed as e:
        raise Conflict(
            f"the broker has a {declared} with other arguments ({_reason(e)}): empty it, delete it, and let "
            "`chappe bus setup` make it anew",
            code="wrong_topology",
            field=declared,
        ) from e
    except ChannelAccessRefused as e:
        raise Forbidden(
            f"the account may not declare the {declared} ({_reason(e)}): give it what "
            "`chappe bus permissions` prints",
            field=declared,
        ) from e


def _reason(error: Exception) -> str:
    return str(error).removeprefix("PRECONDITION_FAILED - ").removeprefix("ACCESS_REFUSED - ")


@dataclass(slots=True)
class Standing:
    """How a link fares: for people, and for the metrics."""

    connected: bool = False
    connections: int = 0
    trouble: str = ""


class Link:
    """Connects, and connects again. `name` is shown by the broker."""

    def __init__(self, config: Amqp, name: str) -> None:
        self.standing = Standing()
        self._config = config
        self._name = name

    async def run(
        self, work: Callable[[AbstractConnection], Awaitable[None]], stopping: asyncio.Event
    ) -> None:
        """Have `work` done on one connection after the other, until `stopping`."""
        failures = 0
        while not stopping.is_set():
            began = time.monotonic()
            try:
                url = self._config.urls[self.standing.connections % len(self._config.urls)]
                await self._once(url, work, stopping)
                trouble = "the connection ended"
            except ChappeError as error:
                trouble = error.message
            except FAULTS as error:
                trouble = str(error) or type(error).__name__
            if stopping.is_set():
                break
            failures = 0 if time.monotonic() - began > MOST_S else failures + 1
            # The next node of a cluster is tried after each failure, whoever's fault it was.
            self.standing.connections += 1
            if trouble != self.standing.trouble:
                log.warning(
                    "the link to the broker failed, and is made anew",
                    link=self._name,
                    trouble=trouble,
                )
            self.standing.trouble = trouble
            await _sleep(stopping, jitter_s(failures, FIRST_S, MOST_S))

    async def _once(
        self,
        url: str,
        work: Callable[[AbstractConnection], Awaitable[None]],
        stopping: asyncio.Event,
    ) -> None:
        connection = await connect(self._config, url, self._name)
        tasks: list[asyncio.Future[object]] = []
        try:
            self.standing.connected = True
            tasks = [
                asyncio.ensure_future(work(connection)),
                asyncio.ensure_future(_lost(connection)),
                asyncio.ensure_future(stopping.wait()),
            ]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.standing.connected = False
            for task in tasks:
                task.cancel()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            with contextlib.suppress(*FAULTS):
                async with asyncio.timeout(CLOSE_S):
                    await connection.close()
        if done and isinstance(done[0], Exception):
            raise done[0]


async def _lost(connection: AbstractConnection) -> None:
    """Wait until a connection has ended. The library's own `closed` tells only of those that we close."""
    if connection.transport is not None:
        await asyncio.wait([connection.transport.connection.closing])


async def _sleep(stopping: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stopping.wait()
