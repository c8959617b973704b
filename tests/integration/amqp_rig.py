"""A virtual host of a test's own at the broker, its accounts, and messages to publish."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aio_pika
from aio_pika.abc import AbstractChannel

from chappe.bus.amqp_config import Amqp
from chappe.bus.amqp_permissions import Role, apply, permissions
from chappe.testing.rabbitmq import PASSWORD, RabbitCluster, RabbitNode

_numbers = itertools.count(1)
SECRET = "correct horse"


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
        """How an account reaches the host, in clear text over loopback."""
        password = PASSWORD if user == "admin" else SECRET
        url = f"amqp://{user}@127.0.0.1:{port or self.node.amqp}/{quote(self.host)}"
        return Amqp((url,), password_file=str(self._file(user, password)), **more)

    @asynccontextmanager
    async def channel(
        self, user: str = "admin", *, port: int | None = None
    ) -> AsyncGenerator[AbstractChannel, None]:
        """A channel as any other program would open it; what cannot be routed raises."""
        password = PASSWORD if user == "admin" else SECRET
        url = self.node.url(user, password, port, self.host)
        async with await aio_pika.connect(url) as connection:
            yield await connection.channel(on_return_raises=True)
