"""A virtual host of a test's own at the broker, its accounts, and messages to publish."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import uuid
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aio_pika
import msgspec
from aio_pika.abc import AbstractChannel

from chappe.bus import amqp_topology as topology
from chappe.bus.amqp_config import Amqp
from chappe.bus.amqp_envelope import LINES
from chappe.bus.amqp_link import FAULTS, connect
from chappe.bus.amqp_permissions import Role, apply, permissions
from chappe.testing.daemons import until
from chappe.testing.hub import RunningHub, start_hub
from chappe.testing.rabbitmq import PASSWORD, RabbitCluster, RabbitNode

_numbers = itertools.count(1)
WITHIN_S = 60.0
SECRET = "correct horse"
#: What a hub's first project is called.
PROJECT = "default"


@dataclass
class AmqpPlace:
    """A virtual host, and files for those who log in there."""

    broker: RabbitCluster
    directory: Path
    host: str = field(default_factory=lambda: f"test-{next(_numbers)}")

    def __post_init__(self) -> None:
        self.directory.mkdir(exist_ok=True)
        self.node.add_host(self.host)
        self.admin_password = self._file("admin", PASSWORD)

    @property
    def node(self) -> RabbitNode:
        return self.broker.node

    def close(self) -> None:
        self.node.api("DELETE", f"/vhosts/{self.host}")

    def _file(self, name: str, password: str) -> Path:
        path = self.directory / f"{name}.password"
        path.write_text(f"{password}\n")
        path.chmod(0o600)
        return path

    def account(self, name: str, role: Role, *, queues: tuple[str, ...] = ()) -> str:
        """An account that may do what `chappe bus permissions` says; its name, unique on the broker."""
        full = f"{name}-{self.host}"
        self.node.add_user(full, SECRET)
        given = permissions(full, role, queues)
        apply(given, self.host, self.node.api_url, "admin", self.admin_password)
        return full

    def config(self, user: str = "admin", *, port: int | None = None, **more: Any) -> Amqp:
        """How an account reaches the host, on any node or over a relay, in clear text over loopback."""
        password = PASSWORD if user == "admin" else SECRET
        ports = [port] if port else [node.amqp for node in self.broker.nodes]
        urls = tuple(f"amqp://{user}@127.0.0.1:{p}/{quote(self.host)}" for p in ports)
        return Amqp(urls, password_file=str(self._file(user, password)), **more)

    @asynccontextmanager
    async def channel(
        self, user: str = "admin", *, port: int | None = None
    ) -> AsyncGenerator[AbstractChannel, None]:
        """A channel as any other program would open it; what cannot be routed raises."""
        config = self.config(user, port=port)
        connection = await connect(config, config.urls[0], "test")
        try:
            yield await connection.channel(on_return_raises=True)
        finally:
            with suppress(*FAULTS):
                async with asyncio.timeout(10.0):
                    await connection.close()

    def amqp_toml(self, config: Amqp, accounts: Iterable[str] = (), more: str = "") -> Path:
        """What links a hub to this broker, and producers of the project's own for these accounts."""
        urls = msgspec.json.encode(config.urls).decode()
        text = f'urls = {urls}\npassword_file = "{config.password_file}"\n'
        text += f"heartbeat_s = {config.heartbeat_s}\n"
        for account in accounts:
            text += f'[accounts.{account}]\nproject = "{PROJECT}"\nproducer = "main"\n'
        path = self.directory / "amqp.toml"
        path.write_text(text + more)
        return path

    def hub(
        self,
        user: str,
        *accounts: str,
        more: str = "",
        environ: Mapping[str, str] | None = None,
    ) -> RunningHub:
        """A hub that reads from this host as `user`, for messages of these accounts."""
        file = self.amqp_toml(self.config(user, heartbeat_s=2), accounts, more)
        return start_hub(self.directory / "hub", environ=environ, amqp=file)

    def shovel(self, to: str, account: str) -> None:
        """Have the broker pass on what is published here to another, as an account of that one."""
        self.node.api(
            "PUT",
            f"/parameters/shovel/{self.host}/to-the-hub",
            {
                "value": {
                    "src-protocol": "amqp091",
                    "src-uri": f"amqp:///{self.host}",
                    "src-queue": "live-metrics-env",
                    "dest-protocol": "amqp091",
                    "dest-uri": f"{to}?heartbeat=2",
                    "dest-exchange": topology.PRIMARY,
                    "dest-exchange-key": topology.routing_key(
                        "prod", account, "libigcm", "monitoring", "7000"
                    ),
                    "dest-publish-properties": {"user_id": account},
                    "ack-mode": "on-confirm",
                    "reconnect-delay": 1,
                }
            },
        )

    def await_empty(self, *queues: str) -> None:
        """Wait until the broker holds nothing of the hub's any more."""
        names = queues or topology.DOOR
        until(lambda: not any(self.node.depth(self.host, q) for q in names), "the queues are empty")


def sql(hub: RunningHub, statement: str, *values: Any) -> list[tuple[Any, ...]]:
    """Rows of a hub's database, read beside it."""
    with closing(sqlite3.connect(f"file:{hub.data / 'hub.sqlite'}?mode=ro", uri=True)) as conn:
        return conn.execute(statement, values).fetchall()


def message(uid: str, **fields: Any) -> bytes:
    """A message of libIGCM."""
    said = {
        "msgApplication": "monitoring",
        "msgProducer": "libigcm",
        "msgProducerVersion": "2.8.1",
        "simuid": "7c1d5a52-90f4-4d0b-9a51-0c8e2f4be001",
        "jobuid": "5f0a9f5e-2c3d-4be8-8a4d-9d1f6a7cb002",
        "msgCode": "7000",
        "msgUID": uid,
        "msgTimestamp": "2016-04-15T22:05:35.960533073+0200",
    }
    return msgspec.json.encode(said | fields)


def start(uid: str) -> bytes:
    """A message that a simulation of its own starts."""
    ids = {"simuid": str(uuid.uuid5(uuid.NAMESPACE_OID, uid)), "jobuid": f"job-{uid}"}
    return message(uid, msgCode="0000", name=uid, **ids)


class Producer:
    """A program that keeps what it says until the broker has confirmed it, and then says it no more."""

    def __init__(
        self, place: AmqpPlace, account: str, said: Callable[[str], bytes] | None = None
    ) -> None:
        self._said = said or message
        self._place = place
        self._account = account
        self._numbers = itertools.count(1)
        self.confirmed: set[str] = set()

    async def publish(self, count: int, *, envelope: int = 1, pause_s: float = 0.0) -> None:
        """Say `count` more things, until all are confirmed."""
        uids = [f"{self._account}-{next(self._numbers)}" for _ in range(count)]
        spool = [uids[at : at + envelope] for at in range(0, count, envelope)]
        nodes = itertools.cycle(self._place.broker.nodes)
        while spool:
            with suppress(*FAULTS):
                async with self._place.channel(self._account, port=next(nodes).amqp) as channel:
                    await self._drain(channel, spool, pause_s)
            if spool:
                await asyncio.sleep(0.1)

    def await_stored(self, hub: RunningHub) -> None:
        """Wait until the journal has what was confirmed; then check that it has each message once."""

        def uids() -> list[str]:
            return [row[0] for row in sql(hub, "SELECT uid FROM message ORDER BY n")]

        until(lambda: self.confirmed <= set(uids()), "what was confirmed is stored", 90.0)
        assert len(uids()) == len(set(uids()))
        numbers = [n for (n,) in sql(hub, "SELECT n FROM message ORDER BY n")]
        assert numbers == [*range(1, len(numbers) + 1)]
        assert sql(hub, "SELECT count(*) FROM quarantine") == [(0,)]

    async def _drain(
        self, channel: AbstractChannel, spool: list[list[str]], pause_s: float
    ) -> None:
        exchange = await channel.get_exchange(topology.PRIMARY, ensure=False)
        key = topology.routing_key("prod", self._account, "libigcm", "monitoring", "7000")
        while spool:
            body = b"\n".join(self._said(uid) for uid in spool[0])
            properties: dict[str, Any] = {
                "user_id": self._account,
                "content_type": LINES,
                "delivery_mode": 2,
            }
            said = aio_pika.Message(body, **properties)
            await exchange.publish(said, key, mandatory=True, timeout=10.0)
            self.confirmed.update(spool.pop(0))
            if pause_s:
                await asyncio.sleep(pause_s)
