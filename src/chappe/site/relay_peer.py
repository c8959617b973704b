"""One connection to the relay: heads are read and judged, bodies pass through.

Nothing is kept of a body but the piece that is on its way, so what a connection costs does not depend on
what is sent. HTTP is read by h11, which is strict; whatever it does not take ends the connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import h11
import httpx2
import msgspec

from chappe.core import limits
from chappe.core.errors import ChappeError, Unauthenticated
from chappe.link.clock import boottime
from chappe.link.transport import unreachable
from chappe.site.relay_gate import Gate, Passed
from chappe.wire.events import ErrorBody, ErrorReply

HEAD_S = 10.0
IDLE_S = 75.0
BODY_S = 120.0
CLOSE_S = 2.0

_HEAD_BYTES = 16 * limits.KIB
_READ_BYTES = 64 * limits.KIB
_ANSWER_HEADERS = ("content-type", "content-length", "retry-after", "etag", "www-authenticate")


class _Left(Exception):
    """The peer left, was too slow, or spoke no HTTP: nobody is there to be answered."""


class Peer:
    """Serves one connection. `known` is called when it has shown the token of a Session."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        gate: Gate,
        hub: httpx2.AsyncClient,
        *,
        known: Callable[[], None],
        refused: Callable[[ChappeError], None],
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._gate = gate
        self._hub = hub
        self._known = known
        self._refused = refused
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=_HEAD_BYTES)
        self._whole = asyncio.Event()
        self._until = 0.0

    async def serve(self) -> None:
        """Answer request after request, until either side has enough."""
        wait_s = HEAD_S
        try:
            while True:
                self._until = boottime() + wait_s
                request = await self._event()
                if not isinstance(request, h11.Request):
                    return
                try:
                    passed = await self._gate.check(request)
                except ChappeError as e:
                    self._refused(e)
                    await self._say(e)
                    return
                self._known()
                await self._pass_on(passed)
                if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                    return
                self._http.start_next_cycle()
                wait_s = IDLE_S
        except (_Left, OSError):
            self._writer.transport.abort()
        finally:
            self._writer.close()
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(CLOSE_S):
                    await self._writer.wait_closed()

    # --- what the peer says

    async def _event(self) -> Any:
        """The next part of a request, until `_until`. Raises _Left."""
        try:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                async with asyncio.timeout(self._until - boottime()):
                    self._http.receive_data(await self._reader.read(_READ_BYTES))
        except (TimeoutError, OSError, h11.RemoteProtocolError) as e:
            raise _Left from e
        return event

    async def _body(self) -> AsyncIterator[bytes]:
        self._until = boottime() + BODY_S
        while not isinstance(event := await self._event(), h11.EndOfMessage):
            yield bytes(event.data)
        self._whole.set()

    async def _gone(self) -> None:
        """Return when the peer has left. A request that follows is kept, if it is not too long."""
        await self._whole.wait()
        size = 0
        while size < _HEAD_BYTES:
            try:
                data = await self._reader.read(_READ_BYTES)
            except OSError:
                return
            if not data:
                return
            self._http.receive_data(data)
            size += len(data)

    # --- what the Hub says

    async def _pass_on(self, passed: Passed) -> None:
        """Ask the Hub, and let it go when the peer goes: else the Hub would hold a poll for nobody."""
        self._whole.clear()
        body = self._body()
        if not passed.size:
            async for _ in body:
                continue
        request = self._hub.build_request(
            passed.method,
            passed.target,
            content=body if passed.size else None,
            headers=passed.headers,
        )
        asking = asyncio.create_task(self._hub.send(request, stream=True))
        leaving = asyncio.create_task(self._gone())
        try:
            await asyncio.wait([asking, leaving], return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                raise _Left
            response = await asking
        except httpx2.TransportError as e:
            await self._say(unreachable(f"{self._hub.base_url}", e))
            return
        finally:
            leaving.cancel()
            asking.cancel()
            await asyncio.gather(leaving, asking, return_exceptions=True)
        try:
            await self._give(response)
        finally:
            await response.aclose()

    async def _give(self, response: httpx2.Response) -> None:
        headers = [(n, response.headers[n]) for n in _ANSWER_HEADERS if n in response.headers]
        await self._send(h11.Response(status_code=response.status_code, headers=headers))
        try:
            async for part in response.aiter_raw():
                await self._send(h11.Data(data=part))
        except httpx2.TransportError as e:
            raise _Left from e  # half an answer is none: the connection breaks
        await self._send(h11.EndOfMessage())

    async def _say(self, error: ChappeError) -> None:
        """Answer in place of the Hub, and be done: the rest of the request is not wanted."""
        told = ErrorBody(error.code, error.message, error.transient, error.field)
        body = msgspec.json.encode(ErrorReply(told))
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("connection", "close"),
        ]
        if isinstance(error, Unauthenticated):
            headers.append(("www-authenticate", "Bearer"))
        await self._send(h11.Response(status_code=error.status, headers=headers))
        await self._send(h11.Data(data=body))
        await self._send(h11.EndOfMessage())

    async def _send(self, event: h11.Event) -> None:
        try:
            data = self._http.send(event)
            if data:
                self._writer.write(data)
            async with asyncio.timeout(BODY_S):
                await self._writer.drain()
        except (TimeoutError, OSError, h11.LocalProtocolError) as e:
            raise _Left from e
