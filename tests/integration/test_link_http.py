"""The Hub's client against a server that misbehaves on request, over TLS on the loopback."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import json
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from chappe.core import errors
from chappe.link.http import NO_RETRY, BadReply, HubClient
from chappe.wire.events import Event
from chappe.wire.sites import EndSession, Whoami

TOKEN = "chp_u_prefix_verysecret"


@dataclass
class Asked:
    """One request as the server saw it."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    connection: int


Reply = bytes | None
Handler = Callable[[Asked, asyncio.StreamWriter], Awaitable[Reply]]


def answer(status: int = 200, body: object = None, **headers: str) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} X", f"content-length: {len(data)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + data


def refusal(status: int, code: str = "x", **headers: str) -> bytes:
    return answer(status, {"error": {"code": code, "message": "words"}}, **headers)


def event(seq: int) -> bytes:
    data = msgspec.json.encode(Event(seq, "job", "some-job", 1.0, 1.0))
    return b"id: 1:%d\ndata: %s\n\n" % (seq, data)


STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"


@dataclass
class Server:
    """Answers with the scripted replies, one after the other (the last one again and again)."""

    ca_file: Path
    replies: list[Reply | Handler] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    connections: int = 0
    url: str = ""
    _writers: list[asyncio.StreamWriter] = field(default_factory=list)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            await self._requests(reader, writer, self.connections)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(OSError, ssl.SSLError):
                await writer.wait_closed()
            self._tasks.discard(task)

    async def _requests(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: int
    ) -> None:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            method, target, _ = head[0].split(" ")
            pairs = [line.split(": ", 1) for line in head[1:] if line]
            headers = {name.lower(): value for name, value in pairs}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            asked = Asked(method, target, headers, body, connection)
            self.asked.append(asked)
            reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
            data = await reply(asked, writer) if callable(reply) else reply
            if data is None:
                return
            writer.write(data)
            await writer.drain()
            if data.startswith(STREAM_HEAD):
                return

    async def stop(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def certificate(directory: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test hub")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = directory / "hub.pem"
    path.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return path


@pytest.fixture(scope="module")
def ca_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
async def server(ca_file: Path) -> AsyncIterator[Server]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ca_file)
    made = Server(ca_file)
    listener = await asyncio.start_server(made.serve, "127.0.0.1", 0, ssl=context)
    made.url = f"https://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    yield made
    listener.close()
    await made.stop()
    await listener.wait_closed()


@pytest.fixture
async def client(server: Server) -> AsyncIterator[HubClient]:
    async with HubClient(server.url, TOKEN, ca_file=server.ca_file) as made:
        yield made


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that the client makes; none of them takes time."""
    made: list[float] = []
    sleep = asyncio.sleep

    async def record(seconds: float) -> None:
        made.append(seconds)
        await sleep(0)

    monkeypatch.setattr("chappe.link.http.asyncio.sleep", record)
    return made


WHOAMI = {
    "scope": "user",
    "project": "p",
    "project_name": "n",
    "version": "9",
    "wire": 1,
    "incarnation": 3,
    "a_field_of_the_next_version": {"x": 1},
}


async def test_requests_share_a_connection_and_carry_the_token(
    server: Server, client: HubClient
) -> None:
    server.replies = [answer(200, WHOAMI), answer(204, b"")]
    who = await client.request(
        "GET", "/v1/whoami", reply=Whoami, params={"a": ["x", "y"], "b": None}
    )
    assert who.incarnation == 3
    await client.request("POST", "/v1/sessions/s/end", EndSession(may_run_twice=True))
    first, second = server.asked
    assert (first.method, first.target) == ("GET", "/v1/whoami?a=x&a=y")
    assert first.headers["authorization"] == f"Bearer {TOKEN}"
    assert "content-type" not in first.headers
    assert (second.headers["content-type"], second.body) == (
        "application/json",
        b'{"may_run_twice":true}',
    )
    assert server.connections == 1


async def test_bytes_go_and_come_as_they_are(server: Server, client: HubClient) -> None:
    server.replies = [answer(204, b""), answer(200, b"\x89PNG", content_type="image/png", etag="x")]
    await client.request("PUT", "/r", b"\0\1", params={"epoch": 3}, media="image/png")
    assert server.asked[0].headers["content-type"] == "image/png"
    assert server.asked[0].body == b"\0\1"
    got = await client.fetch("GET", "/r")
    assert (got.status, got.data, got.headers["content-type"]) == (200, b"\x89PNG", "image/png")
    assert got.headers["etag"] == "x"


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
async def test_what_may_pass_is_tried_again_with_the_same_bytes(
    server: Server, client: HubClient, pauses: list[float], status: int
) -> None:
    server.replies = [refusal(status), None, answer(200, WHOAMI)]
    await client.request("POST", "/x", EndSession(), Whoami)
    assert len(server.asked) == 3
    assert {asked.body for asked in server.asked} == {b"{}"}
    assert len(pauses) == 2


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 410, 413, 422])
async def test_what_will_not_pass_is_not_tried_again(
    server: Server, client: HubClient, pauses: list[float], status: int
) -> None:
    server.replies = [refusal(status, "some_code")]
    with pytest.raises(errors.ChappeError) as caught:
        await client.request("POST", "/x", EndSession())
    assert caught.value.code == "some_code"
    assert (len(server.asked), pauses) == (1, [])


async def test_tries_are_numbered_and_retry_after_is_honoured(
    server: Server, client: HubClient, pauses: list[float]
) -> None:
    server.replies = [refusal(429, "busy", retry_after="7")]
    with pytest.raises(errors.Busy):
        await client.request("GET", "/x")
    assert len(server.asked) == 6
    assert pauses == [7.0] * 5


async def test_without_retries_there_is_one_try(
    server: Server, client: HubClient, pauses: list[float]
) -> None:
    server.replies = [refusal(503)]
    with pytest.raises(errors.Unavailable):
        await client.request("GET", "/x", retry=NO_RETRY)
    assert (len(server.asked), pauses) == (1, [])


async def test_nobody_there_is_told_with_the_address(
    ca_file: Path, unused_tcp_port: int, pauses: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    url = f"https://127.0.0.1:{unused_tcp_port}"
    with caplog.at_level(logging.DEBUG):
        async with HubClient(url, TOKEN, ca_file=ca_file) as client:
            with pytest.raises(errors.Unavailable, match=url) as caught:
                await client.request("GET", "/x")
    assert caught.value.code == "refused"
    assert len(pauses) == 5
    assert "verysecret" not in repr(client) + str(caught.value) + caplog.text


async def test_an_untrusted_certificate_is_told_at_once(
    server: Server, pauses: list[float]
) -> None:
    async with HubClient(server.url, TOKEN) as client:
        with pytest.raises(errors.Unavailable, match="ca_file") as caught:
            await client.request("GET", "/x")
    assert caught.value.code == "tls"
    assert (server.asked, pauses) == ([], [])


async def test_a_hub_that_never_answers_is_left(server: Server, client: HubClient) -> None:
    async def never(asked: Asked, writer: asyncio.StreamWriter) -> Reply:
        await asyncio.Event().wait()
        return None

    async def half(asked: Asked, writer: asyncio.StreamWriter) -> Reply:
        writer.write(answer(200, b"x" * 100)[:-50])
        await asyncio.Event().wait()
        return None

    for handler in (never, half):
        server.replies = [handler]
        with pytest.raises(errors.Unavailable) as caught:
            await client.request("GET", "/x", timeout_s=0.2, retry=NO_RETRY)
        assert caught.value.code == "timeout"


async def test_a_hub_that_hangs_up_is_told(server: Server, client: HubClient) -> None:
    server.replies = [None]
    with pytest.raises(errors.Unavailable) as caught:
        await client.request("GET", "/x", retry=NO_RETRY)
    assert caught.value.code == "disconnected"


async def test_an_answer_without_end_is_not_kept(
    server: Server, client: HubClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chappe.link.http.REPLY_BYTES", 1_000)
    server.replies = [answer(200, b"x" * 1_001)]
    with pytest.raises(BadReply, match="longer"):
        await client.request("GET", "/x")


async def test_what_is_no_hub_is_not_understood(server: Server, client: HubClient) -> None:
    for body in (b"<html>", b"{}", b'{"scope": 3}'):
        server.replies = [answer(200, body)]
        with pytest.raises(BadReply, match=server.url):
            await client.request("GET", "/v1/whoami", reply=Whoami)


async def test_the_proxy_of_the_environment_is_used_and_no_proxy_is_heeded(
    server: Server, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    seen: list[bytes] = []

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n")
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(proxy, "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:secret@127.0.0.1:{port}")
        async with HubClient(server.url, TOKEN, ca_file=server.ca_file) as client:
            with pytest.raises(errors.Unavailable) as caught:
                await client.request("GET", "/x", retry=NO_RETRY)
        assert caught.value.code == "proxy"
        assert "secret" not in caught.value.message
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        server.replies = [answer(204, b"")]
        async with HubClient(server.url, TOKEN, ca_file=server.ca_file) as client:
            await client.request("GET", "/x")
    assert len(seen) == 1
    assert seen[0].startswith(b"CONNECT 127.0.0.1:")
    assert b"verysecret" not in seen[0]


# --- the feed ---

NOW = answer(200, {"events": [], "cursor": "1:4"})


async def first(client: HubClient, count: int, **options: object) -> list[tuple[str, int]]:
    found: list[tuple[str, int]] = []
    async with aclosing(client.stream_events(**options)) as stream:  # type: ignore[arg-type]
        async for cursor, happened in stream:
            found.append((cursor, happened.seq))
            if len(found) == count:
                break
    return found


async def test_the_feed_begins_now_and_goes_on_where_it_broke(
    server: Server, client: HubClient, pauses: list[float]
) -> None:
    ready: list[int] = []
    server.replies = [
        NOW,
        STREAM_HEAD + b": ready\n\n",
        STREAM_HEAD + b": ready\n\n" + event(5) + event(6) + b"id: 1:9\n\nid: 1:12\nda",
        None,
        refusal(503),
        STREAM_HEAD + event(10),
    ]
    found = await first(
        client, 3, params={"job": ["a", "b"]}, on_ready=lambda: ready.append(len(server.asked))
    )
    assert found == [("1:5", 5), ("1:6", 6), ("1:10", 10)]
    assert ready == [1]
    assert server.asked[0].target == "/v1/events?cursor=now"
    streams = server.asked[1:]
    assert {asked.target for asked in streams} == {"/v1/events/stream?job=a&job=b"}
    positions = [asked.headers["last-event-id"] for asked in streams]
    assert positions == ["1:4", "1:4", "1:9", "1:9", "1:9"]


async def test_the_feed_goes_on_from_a_given_cursor(server: Server, client: HubClient) -> None:
    server.replies = [STREAM_HEAD + event(8)]
    assert await first(client, 1, last_event_id="1:7") == [("1:8", 8)]
    assert server.asked[0].headers["last-event-id"] == "1:7"


async def test_a_cursor_of_an_older_incarnation_is_gone(server: Server, client: HubClient) -> None:
    server.replies = [refusal(410, "cursor_reset")]
    with pytest.raises(errors.Gone) as caught:
        await first(client, 1, last_event_id="1:7")
    assert caught.value.code == "cursor_reset"


async def test_a_feed_that_falls_silent_is_connected_anew(
    server: Server, client: HubClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def silent(asked: Asked, writer: asyncio.StreamWriter) -> Reply:
        writer.write(STREAM_HEAD + b": ready\n\n")
        await asyncio.Event().wait()
        return None

    monkeypatch.setattr("chappe.link.http.SILENCE_S", 0.1)
    server.replies = [silent, STREAM_HEAD + event(8)]
    assert await first(client, 1, last_event_id="1:7") == [("1:8", 8)]


async def test_a_feed_out_of_reach_for_too_long_ends(
    server: Server, client: HubClient, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 1_000, 10))
    monkeypatch.setattr("chappe.link.http.boottime", lambda: float(next(clock)))
    server.replies = [None]
    with pytest.raises(errors.Unavailable):
        await first(client, 1, last_event_id="1:7", patience_s=45.0)
    assert len(server.asked) == 5


async def test_what_is_no_event_ends_the_feed(server: Server, client: HubClient) -> None:
    server.replies = [STREAM_HEAD + b"data: {}\n\n"]
    with pytest.raises(BadReply, match="Event"):
        await first(client, 1, last_event_id="1:7")
