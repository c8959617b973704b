"""uvicorn, started from code, and stopped in time.

A stop answers what waits, lets requests end, and then does not wait for clients that keep their TLS
connection open without reading: closing one politely takes the asking for up to 30 s.
"""

from __future__ import annotations

import asyncio
import resource
import signal
import socket
from collections.abc import Callable
from types import FrameType

import structlog
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from chappe.core import limits
from chappe.core.errors import Unavailable
from chappe.hub.cork import CorkedProtocol
from chappe.hub.http import closing, error_content, send_content
from chappe.hub.tls import Files

#: Requests in progress may take so long to end; then they are cancelled.
REQUESTS_S = 1.0
#: Connections may take so long to close; then they are cut.
CLOSE_S = 0.2
KEEP_ALIVE_S = 75
BACKLOG = 2_048
#: Open files that are not clients' connections: the database's, and what a reply may need.
FILES_KEPT = 100

log = structlog.get_logger("chappe.hub")


class Gate:
    """The application, which nobody reaches on a connection beyond the `most` that are served at once.

    uvicorn has a limit of its own, and answers beyond it in plain text.
    """

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app = app
        self._most = most
        #: How many connections there are.
        self.count: Callable[[], int] = lambda: 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 503 and end its connection."""
        if self.count() < self._most:
            await self._app(scope, receive, send)
            return
        error = Unavailable(
            "the hub serves as many connections as it can: try again in a moment",
            code="too_many_connections",
        )
        log.warning("a connection too many", most=self._most)
        await send_content(closing(error_content(error, "other")), send)


class Server(uvicorn.Server):
    """uvicorn's server with our ready line and our way to stop."""

    def __init__(
        self, config: uvicorn.Config, ready: Callable[[], None], stop: Callable[[], None]
    ) -> None:
        super().__init__(config)
        if isinstance(config.app, Gate):
            config.app.count = lambda: len(self.server_state.connections)
        self._ready = ready
        self._stop = stop
        self._asked = ""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, then say so."""
        await super().startup(sockets=sockets)
        if self.started:
            self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal: stop. A stop that was asked for is no failure, so the signal is not raised again.

        Nothing is logged here: this interrupts the main thread anywhere, also where it holds the log's lock.
        """
        self._asked = signal.Signals(sig).name
        self.should_exit = True

    def stop_serving(self) -> None:
        """Stop, as after a signal. Called on the event loop."""
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer, close, and cut what does not close."""
        log.info("stopping", signal=self._asked)
        for server in self.servers:
            server.close()
        self._stop()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        if self.server_state.tasks:
            _, late = await asyncio.wait(self.server_state.tasks, timeout=REQUESTS_S)
            for task in late:
                task.cancel()
        if self.server_state.connections:
            await asyncio.sleep(CLOSE_S)
        for connection in list(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()
        await self.lifespan.shutdown()


def bind(host: str, port: int) -> socket.socket:
    """A listening socket's address taken (port 0: a free one). Raises OSError."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    return sock


def allow_files() -> None:
    """Raise the number of files that this process may open as far as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def connections() -> int:
    """How many connections are served at once; requests on more are answered 503."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return limits.CONNECTIONS
    return max(1, min(limits.CONNECTIONS, soft - FILES_KEPT))


def config(app: ASGIApp, tls: Files) -> uvicorn.Config:
    """The settings of uvicorn for the Hub."""
    return uvicorn.Config(
        Gate(app, connections()),
        loop="uvloop",
        http=CorkedProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        backlog=BACKLOG,
        ssl_certfile=str(tls.cert),
        ssl_keyfile=str(tls.key),
    )
