"""What a handler gets, and what it may answer besides a wire type."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from chappe.core.access import Reach
from chappe.hub.state import Hub
from chappe.store.principal import Principal

B = TypeVar("B")
Q = TypeVar("Q")

Receive = Callable[[], Awaitable[Mapping[str, Any]]]


@dataclass(slots=True, frozen=True)
class Content:
    """Bytes to answer with."""

    body: bytes
    media: str
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True, frozen=True)
class Stream:
    """Chunks to answer with, until they end or the client leaves."""

    chunks: AsyncGenerator[bytes, None]
    media: str


@dataclass(slots=True, frozen=True)
class Call(Generic[B, Q]):
    """One request, checked: who and how far they see, the decoded body (None: there is none) and query, the
    path's parameters, and the address that it came from."""

    hub: Hub
    who: Principal | None
    reach: Reach
    body: B
    query: Q
    path: Mapping[str, str]
    headers: Mapping[str, str]
    address: str
    receive: Receive

    @property
    def principal(self) -> Principal:
        """Who calls. Only routes that need no token have nobody, and they do not ask."""
        if self.who is None:
            raise RuntimeError("a route that needs no token asked who calls")
        return self.who

    @property
    def actor(self) -> Principal:
        """Who calls, and from where: for acts that leave an audit row."""
        return replace(self.principal, address=self.address)

    async def left(self) -> None:
        """Return when the client has closed the connection."""
        while (await self.receive())["type"] != "http.disconnect":
            pass
