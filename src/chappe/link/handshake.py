"""A connection that is given up during its TLS handshake is closed.

httpcore2 (2.16) closes it after an error and forgets it after a cancellation, which is how a time-out and
Ctrl-C arrive: the socket stays open until the garbage collector comes by.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from typing import Any

import anyio
import httpcore2
import httpx2


def close_what_is_cancelled(client: httpx2.AsyncClient) -> None:
    """Have all connections that `client` makes from now on closed when their handshake is cancelled."""
    # The library offers no way to say which backend a client's pools use, its proxies' among them.
    for transport in (client._transport, *client._mounts.values()):
        if isinstance(transport, httpx2.AsyncHTTPTransport):
            transport._pool._network_backend = _Backend()


class _Backend(httpcore2.AnyIOBackend):
    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - as the library calls it
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        return _Plain(await super().connect_tcp(host, port, timeout, local_address, socket_options))


class _Plain(httpcore2.AsyncNetworkStream):
    """A connection before its handshake; after it, the library's own stream goes on."""

    def __init__(self, stream: httpcore2.AsyncNetworkStream) -> None:
        self._stream = stream
        self.read = stream.read  # type: ignore[method-assign]
        self.write = stream.write  # type: ignore[method-assign]
        self.aclose = stream.aclose  # type: ignore[method-assign]
        self.get_extra_info = stream.get_extra_info  # type: ignore[method-assign]

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - as the library calls it
    ) -> httpcore2.AsyncNetworkStream:
        try:
            return await self._stream.start_tls(ssl_context, server_hostname, timeout)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._stream.aclose()
            raise
