"""From bytes to a handler and back, without a network: limits, errors, what a client is told."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncGenerator, Iterator
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
import structlog

from chappe.core.errors import Busy, ChappeError, Conflict, Unauthenticated
from chappe.hub import http
from chappe.hub.call import Call, Content, Stream
from chappe.hub.http import Endpoint
from chappe.hub.metrics import Metrics
from chappe.hub.route import Route
from chappe.hub.state import Hub
from chappe.wire.sites import EndSession

LIMIT = 1_000


def hub() -> Hub:
    """What an endpoint needs of a Hub."""
    return cast(Hub, SimpleNamespace(metrics=Metrics(), bodies_bytes=0))


class Client:
    """The other end of an ASGI connection: sends `chunks`, keeps what it is sent."""

    def __init__(self, *chunks: bytes, headers: dict[str, str] | None = None) -> None:
        self._chunks = list(chunks)
        self._headers = headers or {}
        self.taken = 0
        self.left = asyncio.Event()
        self.sent: list[dict[str, Any]] = []

    async def receive(self) -> dict[str, Any]:
        if self._chunks:
            self.taken += 1
            chunk = self._chunks.pop(0)
            return {"type": "http.request", "body": chunk, "more_body": bool(self._chunks)}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    async def call(self, endpoint: Endpoint) -> tuple[int, Any]:
        scope = {
            "type": "http",
            "headers": [(k.encode(), v.encode()) for k, v in self._headers.items()],
            "query_string": b"",
            "path_params": {},
        }
        await endpoint(scope, self.receive, cast(Any, self.send))
        body = b"".join(m.get("body", b"") for m in self.sent[1:])
        return self.sent[0]["status"], json.loads(body) if body else None


async def takes_bytes(call: Call[bytes, None]) -> Content:
    """Say how many bytes came."""
    return Content(str(len(call.body)).encode(), "application/json")


async def takes_struct(call: Call[EndSession, None]) -> EndSession:
    """Say the same back."""
    return call.body


def endpoint(handler: Any, the_hub: Hub | None = None) -> Endpoint:
    return Endpoint(the_hub or hub(), Route("GET", "/healthz", handler, limit_bytes=LIMIT))


def failing(error: BaseException) -> Endpoint:
    async def handler(call: Call[None, None]) -> None:
        raise error

    return endpoint(handler)


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What is logged, as JSON lines."""
    out = io.StringIO()
    structlog.configure(
        processors=[structlog.processors.format_exc_info, structlog.processors.JSONRenderer()],
        logger_factory=structlog.WriteLoggerFactory(out),
    )
    yield out
    structlog.reset_defaults()


async def test_a_body_up_to_the_limit_is_taken() -> None:
    assert await Client(b"x" * 600, b"x" * 400).call(endpoint(takes_bytes)) == (200, 1_000)


async def test_a_body_announced_too_long_is_refused_unread() -> None:
    client = Client(b"x" * 1_001, headers={"content-length": "1001"})
    status, reply = await client.call(endpoint(takes_bytes))
    assert (status, reply["error"]["code"], reply["error"]["field"]) == (413, "too_large", "body")
    assert client.taken == 0


async def test_a_body_that_turns_out_too_long_is_refused_before_its_end() -> None:
    client = Client(*[b"x" * 400] * 10)
    status, _ = await client.call(endpoint(takes_bytes))
    assert (status, client.taken) == (413, 3)


async def test_the_bytes_held_at_once_are_bounded_and_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http, "BODIES_BYTES", 1_500)
    the_hub = hub()
    holding, release = asyncio.Event(), asyncio.Event()

    async def slow(call: Call[bytes, None]) -> None:
        holding.set()
        await release.wait()

    first = asyncio.ensure_future(Client(b"x" * 1_000).call(endpoint(slow, the_hub)))
    await holding.wait()
    assert the_hub.bodies_bytes == 1_000
    status, reply = await Client(b"x" * 400, b"x" * 400).call(endpoint(takes_bytes, the_hub))
    assert (status, reply["error"]["transient"]) == (429, True)
    assert await Client(b"x" * 500).call(endpoint(takes_bytes, the_hub)) == (200, 500)
    release.set()
    assert (await first)[0] == 204
    assert the_hub.bodies_bytes == 0


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"may_run_twice": "yes"}', "may_run_twice"),
        (b'{"may_run_thrice": true}', "may_run_thrice"),
        (b"no json", "body"),
        (b"", "body"),
    ],
)
async def test_wrong_content_is_refused_by_field(body: bytes, field: str) -> None:
    status, reply = await Client(body).call(endpoint(takes_struct))
    assert (status, reply["error"]["field"]) == (422, field)


@pytest.mark.parametrize(
    ("error", "status", "code", "header"),
    [
        (Conflict("no", code="stale_lease", field="epoch"), 409, "stale_lease", None),
        (Unauthenticated("who?"), 401, "unauthenticated", (b"www-authenticate", b"Bearer")),
        (Busy("later"), 429, "busy", (b"retry-after", b"1")),
        (OverflowError("Python int too large"), 422, "invalid", None),
        (RecursionError(), 422, "malformed", None),
    ],
)
async def test_errors_have_one_form(
    error: Exception, status: int, code: str, header: tuple[bytes, bytes] | None
) -> None:
    client = Client(b"")
    got, reply = await client.call(failing(error))
    assert (got, reply["error"]["code"]) == (status, code)
    if isinstance(error, ChappeError):
        assert reply["error"]["message"] == error.message
    assert header is None or header in client.sent[0]["headers"]


async def test_the_unexpected_is_logged_and_not_told(log: io.StringIO) -> None:
    status, reply = await Client(b"").call(failing(KeyError("/secret/path")))
    assert (status, reply["error"]["code"]) == (500, "internal")
    entry = json.loads(log.getvalue().splitlines()[0])
    assert entry["error_id"] in reply["error"]["message"]
    assert "KeyError" in entry["exception"]
    assert "secret" not in json.dumps(reply)
    assert "Traceback" not in json.dumps(reply)


async def test_requests_are_logged_without_their_bodies(log: io.StringIO) -> None:
    await Client(b'{"may_run_twice": true}').call(
        Endpoint(hub(), Route("GET", "/healthz", takes_struct))
    )
    assert "may_run_twice" not in log.getvalue()


async def test_a_stream_ends_when_its_client_leaves() -> None:
    waiting, ended = asyncio.Event(), asyncio.Event()

    async def chunks() -> AsyncGenerator[bytes, None]:
        try:
            yield b"1"
            waiting.set()
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def handler(call: Call[None, None]) -> Stream:
        return Stream(chunks(), "text/event-stream")

    client = Client()
    running = asyncio.ensure_future(client.call(endpoint(handler)))
    await waiting.wait()
    assert not running.done()
    client.left.set()
    await running
    assert ended.is_set()
    assert client.sent[1]["body"] == b"1"


async def test_a_stream_that_fails_breaks_off() -> None:
    async def chunks() -> AsyncGenerator[bytes, None]:
        yield b"1"
        raise OSError("disk")

    async def handler(call: Call[None, None]) -> Stream:
        return Stream(chunks(), "text/event-stream")

    client = Client()
    with pytest.raises(OSError, match="disk"):
        await client.call(endpoint(handler))
    assert all(m.get("more_body", True) for m in client.sent[1:])


def test_metrics_have_bounded_labels() -> None:
    metrics = Metrics()
    for status in (200, 422):
        metrics.request("GET", "/v1/jobs/{id}", status, 0.01)
    samples = {
        tuple(sorted(sample.labels.items()))
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "chappe_requests_total"
    }
    assert samples == {
        (("method", "GET"), ("route", "/v1/jobs/{id}"), ("status", str(s))) for s in (200, 422)
    }


def test_an_error_reply_is_what_the_document_says() -> None:
    content = http.error_content(Conflict("no", details=[1]), "/x")
    assert msgspec.json.decode(content.body) == {
        "error": {"code": "conflict", "message": "no", "details": [1]}
    }
