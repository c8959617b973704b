"""The Hub's client: one connection pool, JSON by msgspec, typed errors, bounded retries, the live feed.

Every request of Chappe may be repeated: ids are made by the client, and the Hub recognises what it has. So
a request is tried again after transport errors, 408, 429 and 5xx, with jitter and a budget, and after
nothing else. TLS only (plain http is possible to this machine itself); proxies come from the environment.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, TypeVar, overload

import httpx2
import msgspec

from chappe.core import limits
from chappe.core.errors import ChappeError, Invalid, Unavailable
from chappe.link.clock import boottime
from chappe.link.handshake import close_what_is_cancelled
from chappe.link.retry import NO_RETRY, RETRY, RetryPolicy, jitter_s
from chappe.link.sse import Parser
from chappe.link.transport import (
    UNREADABLE,
    BadReply,
    checked_url,
    error_of,
    retry_after_s,
    tls_context,
    unreachable,
)
from chappe.wire.events import Event, EventPage

__all__ = [
    "NO_RETRY",
    "RETRY",
    "Answer",
    "BadReply",
    "HubClient",
    "Params",
    "Request",
    "RetryPolicy",
]

T = TypeVar("T")
Params = Mapping[str, str | int | float | bool | Sequence[str] | None]
"""Query parameters; a sequence repeats its name, None leaves it out."""

REPLY_BYTES = 2 * limits.BODY_BYTES
"""Longest reply that is read."""
SILENCE_S = 45.0
"""The feed sends something every 15 s; after so long without a byte it is connected anew."""

_CONNECT_S = 10.0
_JSON = "application/json"


class Answer(msgspec.Struct, frozen=True):
    """A reply as it came: header names are lower case."""

    status: int
    headers: Mapping[str, str]
    data: bytes


class HubClient:
    """Speaks with one Hub under one token. For one event loop; use it as an async context manager.

    `ca_file` is trusted beside the system's CAs. `timeout_s` bounds one try as a whole; a long poll needs
    its `wait_s` and some more. With `pinned` only that counts for whom to trust, and no proxy stands in
    between. Raises Invalid for a url or a file that cannot be used.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        ca_file: str | Path | None = None,
        user_agent: str = "chappe",
        timeout_s: float = 60.0,
        pinned: ssl.SSLContext | None = None,
    ) -> None:
        self.url = checked_url(url)
        self._timeout_s = timeout_s
        headers = {"accept": _JSON, "accept-encoding": "identity", "user-agent": user_agent}
        if token is not None:
            headers["authorization"] = f"Bearer {token}"
        try:
            self._http = httpx2.AsyncClient(
                headers=headers,
                verify=pinned or tls_context(ca_file),
                trust_env=pinned is None,
                # The whole try is bounded in `_try`: a timeout per read would cost CPU on each call.
                timeout=httpx2.Timeout(None, connect=_CONNECT_S),
                limits=httpx2.Limits(
                    max_connections=64, max_keepalive_connections=64, keepalive_expiry=30.0
                ),
            )
        except (httpx2.InvalidURL, ValueError, ImportError) as e:
            # Not the value: a proxy's URL may hold a password.
            raise Invalid(
                "a proxy variable of the environment cannot be used (HTTPS_PROXY, ALL_PROXY, "
                f"NO_PROXY): {type(e).__name__}",
                field="HTTPS_PROXY",
            ) from None
        close_what_is_cancelled(self._http)

    def __repr__(self) -> str:
        return f"HubClient({self.url!r})"

    async def __aenter__(self) -> HubClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections; requests in flight fail."""
        await self._http.aclose()

    @overload
    async def request(
        self,
        method: str,
        path: str,
        body: msgspec.Struct | bytes | None = None,
        reply: None = None,
        *,
        params: Params | None = None,
        timeout_s: float | None = None,
        retry: RetryPolicy = RETRY,
        media: str = _JSON,
    ) -> None: ...

    @overload
    async def request(
        self,
        method: str,
        path: str,
        body: msgspec.Struct | bytes | None = None,
        reply: type[T] = ...,
        *,
        params: Params | None = None,
        timeout_s: float | None = None,
        retry: RetryPolicy = RETRY,
        media: str = _JSON,
    ) -> T: ...

    async def request(
        self,
        method: str,
        path: str,
        body: msgspec.Struct | bytes | None = None,
        reply: type[T] | None = None,
        *,
        params: Params | None = None,
        timeout_s: float | None = None,
        retry: RetryPolicy = RETRY,
        media: str = _JSON,
    ) -> T | None:
        """Send `body` (a Struct as JSON; bytes as they are, of type `media`) and decode the reply.

        Raises the error of core.errors that the Hub answered; Unavailable when it could not be reached
        (its code is refused | unknown_host | tls | timeout | disconnected | proxy); BadReply.
        """
        answer = await self.fetch(
            method, path, body, params=params, timeout_s=timeout_s, retry=retry, media=media
        )
        if reply is None:
            return None
        try:
            return msgspec.json.decode(answer.data, type=reply)
        except UNREADABLE as e:
            raise BadReply(
                f"{self.url}{path} answered what this version does not understand: {e}"
            ) from None

    async def fetch(
        self,
        method: str,
        path: str,
        body: msgspec.Struct | bytes | None = None,
        *,
        params: Params | None = None,
        timeout_s: float | None = None,
        retry: RetryPolicy = RETRY,
        media: str = _JSON,
    ) -> Answer:
        """Like `request`, and the reply comes back as it is."""
        content = msgspec.json.encode(body) if isinstance(body, msgspec.Struct) else body
        request = Request(method, path, content, _query(params), media)
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        began = boottime()
        failures = 0
        while True:
            after_s = None
            try:
                answer = await self._try(request, limit_s)
            except Unavailable as e:
                if e.code == _HOPELESS:
                    raise
                error: ChappeError = e
            else:
                if 200 <= answer.status < 300:
                    return answer
                error = error_of(self.url + request.path, answer.status, answer.data)
                if not error.transient:
                    raise error
                after_s = retry_after_s(answer.headers)
            failures += 1
            pause_s = retry.pause_s(failures, boottime() - began, after_s)
            if pause_s is None:
                raise error
            await asyncio.sleep(pause_s)

    async def _try(self, request: Request, limit_s: float) -> Answer:
        """One request and its whole answer within `limit_s`. Raises Unavailable, BadReply."""
        parts: list[bytes] = []
        size = 0
        headers = {"content-type": request.media} if request.content is not None else None
        try:
            async with (
                asyncio.timeout(limit_s),
                self._http.stream(
                    request.method,
                    self.url + request.path,
                    content=request.content,
                    params=request.query,
                    headers=headers,
                ) as response,
            ):
                async for part in response.aiter_raw():
                    size += len(part)
                    if size > REPLY_BYTES:
                        raise BadReply(
                            f"{self.url}{request.path}: the answer is longer than {REPLY_BYTES}"
                        )
                    parts.append(part)
                return Answer(response.status_code, response.headers, b"".join(parts))
        except TimeoutError as e:
            raise Unavailable(
                f"the hub at {self.url} gave no complete answer within {limit_s:g} s",
                code="timeout",
            ) from e
        except httpx2.TransportError as e:
            raise unreachable(self.url, e) from e

    async def stream_events(
        self,
        path: str = "/v1/events/stream",
        params: Params | None = None,
        last_event_id: str | None = None,
        *,
        on_ready: Callable[[], None] | None = None,
        patience_s: float | None = None,
    ) -> AsyncGenerator[tuple[str, Event], None]:
        """Events as they happen, each with the cursor after it; it reconnects, and misses none.

        Without `last_event_id` it begins now: the position is asked for first, so that a connection that
        breaks before the first Event leaves no gap. `on_ready` is called once the position is fixed:
        whatever happens from then on will come. Raises the Hub's refusals (Gone for a cursor of an older
        incarnation), and Unavailable after `patience_s` seconds out of reach (None: never).
        """
        cursor = last_event_id
        if cursor is None:
            page = await self.request(
                "GET", path.removesuffix("/stream"), reply=EventPage, params={"cursor": "now"}
            )
            cursor = page.cursor
        if on_ready is not None:
            on_ready()
        heard, failures = boottime(), 0
        while True:
            try:
                async with aclosing(self._connection(path, params, cursor)) as messages:
                    async for position, event in messages:
                        heard, failures = boottime(), 0
                        if position is not None:
                            cursor = position
                        if event is not None:
                            yield cursor, event
            except Unavailable as e:
                impatient = patience_s is not None and boottime() - heard > patience_s
                if impatient or e.code == _HOPELESS:
                    raise
            failures += 1
            await asyncio.sleep(jitter_s(failures, 0.1, 10.0))

    async def _connection(
        self, path: str, params: Params | None, cursor: str
    ) -> AsyncGenerator[tuple[str | None, Event | None], None]:
        """One connection of the feed: (position, Event) for messages, (None, None) for signs of life."""
        parser = Parser()
        url = self.url + path
        try:
            async with self._http.stream(
                "GET",
                url,
                params=_query(params),
                headers={"accept": "text/event-stream", "last-event-id": cursor},
                timeout=httpx2.Timeout(SILENCE_S, connect=_CONNECT_S),
            ) as response:
                if response.status_code != 200:
                    data = await response.aread()
                    error = error_of(url, response.status_code, data)
                    if error.transient:
                        raise Unavailable(error.message, code=error.code)
                    raise error
                async for chunk in response.aiter_raw():
                    yield None, None
                    for message in parser.feed(chunk):
                        yield message.id, _event(url, message.data) if message.data else None
        except httpx2.TransportError as e:
            raise unreachable(self.url, e) from e


class Request(NamedTuple):
    """One request, as it is tried again and again."""

    method: str
    path: str
    content: bytes | None
    query: dict[str, Any] | None
    media: str


_HOPELESS = "tls"  # an untrusted certificate stays so until somebody does something about it
_event_decoder = msgspec.json.Decoder(Event)


def _query(params: Params | None) -> dict[str, Any] | None:
    if not params:
        return None
    return {name: value for name, value in params.items() if value is not None} or None


def _event(url: str, data: bytes) -> Event:
    try:
        return _event_decoder.decode(data)
    except UNREADABLE as e:
        raise BadReply(f"{url} sent an Event that this version does not understand: {e}") from None
