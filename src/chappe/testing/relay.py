"""A TCP relay that can be cut: the only road from a sandboxed Site to its Hub.

The listening socket may live in another network namespace (a socket keeps the namespace it was
made in, whoever holds it), while the relay connects from the namespace of its own process. So two
worlds are joined at exactly one address, without a virtual network, routes or rules.
It runs on a thread of its own, because its owner may be a command, a test or an asyncio program.
"""

import asyncio
import socket
import struct
import threading
from collections.abc import Callable

MAX_CONNECTIONS = 256
_CHUNK_BYTES = 64 * 1024
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_CLOSE_IN_PEACE = struct.pack("ii", 0, 0)


class Relay:
    """Carry every connection made to `listener` to 127.0.0.1:`hub_port`.

    Takes ownership of `listener`. Beyond MAX_CONNECTIONS at once, new ones wait in the listen
    queue. Back-pressure and half-close are those of TCP; when one end fails, both are reset.
    """

    def __init__(self, listener: socket.socket, hub_port: int) -> None:
        listener.setblocking(False)
        self._listener = listener
        self._hub_port = hub_port
        self.address: tuple[str, int] = listener.getsockname()
        self._loop = asyncio.new_event_loop()
        self._connected = asyncio.Event()
        self._connected.set()
        self._answering = asyncio.Event()
        self._answering.set()
        self._resetting = False
        self._slots = asyncio.Semaphore(MAX_CONNECTIONS)
        self._connections: set[asyncio.Task[None]] = set()
        self._accepting = self._loop.create_task(self._accept())
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="chappe-relay", daemon=True
        )
        self._thread.start()

    def cut(self, *, reset: bool = False, answers_only: bool = False) -> None:
        """Cut the network, as a pulled cable does: bytes stop, and nobody is told.

        With `reset`, open and new connections are reset instead, as by a firewall that rejects. With
        `answers_only`, what is said to the hub still arrives; a reset after it loses the answers.
        """

        def change() -> None:
            self._answering.clear()
            if answers_only:
                return
            self._connected.clear()
            self._resetting = reset
            if reset:
                for connection in self._connections:
                    connection.cancel()

        self._in_loop(change)

    def restore(self) -> None:
        """Let bytes flow again; what was held since `cut()` arrives now."""

        def change() -> None:
            self._resetting = False
            self._connected.set()
            self._answering.set()

        self._in_loop(change)

    def close(self) -> None:
        """Reset every connection and stop. Idempotent. Raises what made accepting fail, if any."""
        if self._loop.is_closed():
            return

        async def stop() -> None:
            # First nothing new, then the rest; return_exceptions only for our own cancellations.
            self._accepting.cancel()
            await asyncio.wait([self._accepting])
            for connection in self._connections:
                connection.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._listener.close()
        if not self._accepting.cancelled():
            self._accepting.result()

    def _in_loop(self, change: Callable[[], None]) -> None:
        """Apply a change on the relay's thread and return when it is done."""

        async def apply() -> None:
            change()

        asyncio.run_coroutine_threadsafe(apply(), self._loop).result()

    async def _accept(self) -> None:
        while True:
            await self._slots.acquire()
            end, _ = await self._loop.sock_accept(self._listener)
            connection = self._loop.create_task(self._carry(end))
            self._connections.add(connection)
            connection.add_done_callback(self._forget)

    def _forget(self, connection: asyncio.Task[None]) -> None:
        self._connections.discard(connection)
        self._slots.release()

    async def _carry(self, site_end: socket.socket) -> None:
        """Carry one connection until both directions have ended, or either end fails."""
        with site_end, socket.socket() as hub_end:
            hub_end.setblocking(False)
            for end in (site_end, hub_end):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                # Until both sides have said all they had to say, closing means resetting.
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            if self._resetting:
                return
            try:
                await self._connected.wait()
                await self._loop.sock_connect(hub_end, ("127.0.0.1", self._hub_port))
                async with asyncio.TaskGroup() as directions:
                    directions.create_task(self._pump(site_end, hub_end, self._connected))
                    directions.create_task(self._pump(hub_end, site_end, self._answering))
            except* OSError:
                pass  # no hub, or an end is gone: the other end learns it by the reset
            else:
                for end in (site_end, hub_end):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _CLOSE_IN_PEACE)

    async def _pump(
        self, source: socket.socket, target: socket.socket, flowing: asyncio.Event
    ) -> None:
        while data := await self._loop.sock_recv(source, _CHUNK_BYTES):
            await flowing.wait()
            await self._loop.sock_sendall(target, data)
        await flowing.wait()
        target.shutdown(socket.SHUT_WR)
