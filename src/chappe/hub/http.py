"""From a request to a handler and back: token, body, query, errors. The one place that speaks HTTP.

Bodies are read up to their limit and no further, decoded by msgspec straight into wire types, and
replies are encoded once. FastAPI's own way (pydantic, dependency solving) costs three times as much on
bulk routes, so the application is FastAPI's and the endpoints are ours.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import replace
from typing import Any

import msgspec
import structlog
from starlette.types import Message, Receive, Scope, Send

from chappe.core import faults, limits
from chappe.core.access import Reach
from chappe.core.errors import Busy, ChappeError, Invalid, TooLarge, Unauthenticated
from chappe.hub.call import Call, Content, Stream
from chappe.hub.route import Query, Route, decode
from chappe.hub.state import BODIES_BYTES, Hub
from chappe.wire.events import ErrorBody, ErrorReply

CRASH_POINTS = ("hub.before_answer",)

JSON = "application/json"
log = structlog.get_logger("chappe.hub")
_encode = msgspec.json.Encoder().encode


class Endpoint:
    """A route as an ASGI application."""

    def __init__(self, hub: Hub, route: Route) -> None:
        self._hub = hub
        self._route = route
        self._rule = route.rule
        signature = route.signature
        self._is_json = signature.is_json
        self._raw = signature.body is bytes
        self._decoder = (
            None if signature.body is None or self._raw else msgspec.json.Decoder(signature.body)
        )
        self._query = None if signature.query is None else Query(signature.query)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        began = time.perf_counter()
        held = _Held(self._hub)
        who = ""
        try:
            headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
            call = await self._call(scope, receive, headers, held)
            who = call.who.token_prefix if call.who else ""
            answer = await self._route.handler(call)
        except Exception as error:  # noqa: BLE001 - the last line: nothing leaves without an answer
            answer = error_content(error, self._route.path)
            if not held.whole and has_body(scope):
                answer = closing(answer)
        finally:
            held.release()
        if isinstance(answer, Stream):
            status = 200
            await _send_stream(answer, receive, send)
        else:
            content = self._content(answer)
            status = content.status
            if self._route.method != "GET":
                faults.reach("hub.before_answer")
            await send_content(content, send)
        took_s = time.perf_counter() - began
        self._hub.metrics.request(self._route.method, self._route.path, status, took_s)
        tell = log.info if self._rule else log.debug
        tell(
            "request",
            method=self._route.method,
            route=self._route.path,
            status=status,
            ms=round(took_s * 1000, 2),
            token=who,
            body_bytes=held.most,
        )

    async def _call(
        self, scope: Scope, receive: Receive, headers: dict[str, str], held: _Held
    ) -> Call[Any, Any]:
        route, who, reach = self._route, None, Reach.OWN
        if self._rule:
            who, reach = await self._hub.auth.check(_authorization(scope), self._rule)
        query = None
        if self._query is not None:
            query = self._query.decode(scope["query_string"])
        body: Any = None
        if self._raw or self._decoder is not None:
            body = await _read_body(headers, receive, route.limit_bytes, held)
            if self._decoder is not None:
                body = decode(self._decoder, body)
        address = (scope.get("client") or ("",))[0]
        return Call(
            self._hub, who, reach, body, query, scope["path_params"], headers, address, receive
        )

    def _content(self, answer: Any) -> Content:
        if isinstance(answer, Content):
            return answer
        if answer is None:
            return Content(b"", JSON, 204)
        return Content(_encode(answer), JSON, self._route.status)


def _authorization(scope: Scope) -> str | None:
    """The one header that names the token. Of two, each proxy and server might heed another."""
    found = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(found) > 1:
        raise Unauthenticated("send one Authorization header, not several")
    return found[0].decode("latin-1") if found else None


class _Held:
    """The bytes of one body, while they count against what the Hub holds at once; `whole` once all came."""

    __slots__ = ("_hub", "most", "size", "whole")

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self.size = 0
        self.most = 0
        self.whole = False

    def add(self, size: int) -> None:
        """Take `size` more bytes, or raise Busy."""
        if self._hub.bodies_bytes + size > BODIES_BYTES:
            raise Busy("the hub holds too many large requests; try again in a moment")
        self._hub.bodies_bytes += size
        self.size += size
        self.most = self.size

    def release(self) -> None:
        """Give all of them back."""
        self._hub.bodies_bytes -= self.size
        self.size = 0


async def _read_body(headers: dict[str, str], receive: Receive, limit: int, held: _Held) -> bytes:
    """The whole body. Raises TooLarge as soon as it is known to be longer than `limit`."""
    announced = headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit:
        raise _too_large(limit)
    chunks: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Invalid("the client left before its request was complete")
        chunk = message.get("body", b"")
        if chunk:
            if held.size + len(chunk) > limit:
                raise _too_large(limit)
            held.add(len(chunk))
            chunks.append(chunk)
        if not message.get("more_body", False):
            held.whole = True
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _too_large(limit: int) -> TooLarge:
    size = f"{limit // limits.MIB} MiB" if limit >= limits.MIB else f"{limit} bytes"
    return TooLarge(f"a request is at most {size} here: send less at a time", field="body")


def error_content(error: Exception, where: str) -> Content:
    """The answer to an error. One that nobody expected gets an id, under which the log has it."""
    headers: dict[str, str] = {}
    if isinstance(error, RecursionError):
        error = Invalid("the request is nested too deeply", code="malformed")
    elif isinstance(error, OverflowError):
        error = Invalid("a number in the request is larger than any that is stored")
    if isinstance(error, ChappeError):
        body = ErrorBody(error.code, error.message, error.transient, error.field, error.details)
        status = error.status
        if isinstance(error, Unauthenticated):
            headers["www-authenticate"] = "Bearer"
        elif error.transient:
            details = error.details if isinstance(error.details, dict) else {}
            headers["retry-after"] = str(details.get("retry_after_s", 1))
    else:
        id = secrets.token_hex(6)
        log.error("unexpected error", error_id=id, route=where, exc_info=error)
        status = 500
        body = ErrorBody("internal", f"the hub failed; its log has the reason under {id}")
    return Content(_encode(ErrorReply(body)), JSON, status, headers)


def has_body(scope: Scope) -> bool:
    """Whether the client announced a body."""
    names = {b"content-length", b"transfer-encoding"}
    return any(name in names and value != b"0" for name, value in scope["headers"])


def closing(content: Content) -> Content:
    """The same answer, after which the connection ends: else the server would go on to take in a body
    that nobody wants, as long as the client likes to send it."""
    return replace(content, headers={**content.headers, "connection": "close"})


async def send_content(content: Content, send: Send) -> None:
    """Send a whole answer."""
    headers = [(k.encode("latin-1"), v.encode("latin-1")) for k, v in content.headers.items()]
    if content.status != 204:
        headers.append((b"content-type", content.media.encode("latin-1")))
        headers.append((b"content-length", str(len(content.body)).encode()))
    start: Message = {
        "type": "http.response.start",
        "status": content.status,
        "headers": headers,
    }
    await send(start)
    await send({"type": "http.response.body", "body": content.body})


async def _send_stream(stream: Stream, receive: Receive, send: Send) -> None:
    """Send chunks until they end or the client leaves; `send` waits for a slow client."""
    await send(
        {
            "type": "http.response.start",
            "status": 200,
            "headers": [
                (b"content-type", stream.media.encode()),
                (b"cache-control", b"no-store"),
            ],
        }
    )

    async def pump() -> None:
        async for chunk in stream.chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(pump()), asyncio.ensure_future(watch())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        await stream.chunks.aclose()
    failure = ended[0]
    if isinstance(failure, Exception):
        # The status is sent; all that is left is to end the connection without a proper end.
        raise failure
    await send({"type": "http.response.body", "body": b"", "more_body": False})
