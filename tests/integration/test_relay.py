"""The agent's relay: what it passes on, whom it refuses, and what it bounds. The Hub is scripted."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
import pytest

from chappe.core import limits
from chappe.core.errors import (
    NotFound,
    SessionDead,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from chappe.link import pinned
from chappe.link.http import NO_RETRY, HubClient
from chappe.link.pinned import client_context, make_certificate, pin
from chappe.link.relayed import RelayedClient, RelayFiles, RelayPlace, read_place, write_place
from chappe.site import relay as relays
from chappe.site import relay_peer
from chappe.site.config import Hub, RelayConfig, SchedulerConfig, SiteConfig, SiteIdentity
from chappe.site.paths import SitePaths
from chappe.site.relay import Relay, listen, wanted_addresses
from tests.integration.pilot_rig import until

TOKEN = "chp_p_abc_secret"
JOB = "01890000-0000-7000-8000-000000000001"


class Upstream:
    """A Hub that remembers what it was sent, and answers what a test says."""

    def __init__(self) -> None:
        self.heads: list[str] = []
        self.bodies: list[bytes] = []
        self.status, self.headers, self.body = "200 OK", "", b'{"ok":1}'
        self.hold = asyncio.Event()
        self.hold.set()
        self.left = 0
        self.port = 0
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.heads.append(head)
            size = next((w for w in head.lower().split("\r\n") if "content-length" in w), ": 0")
            self.bodies.append(await reader.readexactly(int(size.partition(":")[2])))
            left = asyncio.create_task(reader.read(1))
            held = asyncio.create_task(self.hold.wait())
            await asyncio.wait([left, held], return_when=asyncio.FIRST_COMPLETED)
            if left.done():
                self.left += 1
            held.cancel()
            length = f"content-length: {len(self.body)}\r\n"
            writer.write(
                f"HTTP/1.1 {self.status}\r\n{length}{self.headers}\r\n".encode() + self.body
            )
            left.cancel()
            await asyncio.gather(left, held, return_exceptions=True)
        writer.close()


class Rig:
    """A Site's directory with a relay that runs, and the Hub behind it."""

    def __init__(self, root: Path) -> None:
        self.paths = SitePaths.of(root)
        for directory in (self.paths.secrets, self.paths.outbox, self.paths.sessions):
            directory.mkdir(parents=True)
        self.hub = Upstream()
        self.files = RelayFiles(str(self.paths.relay_place), str(self.paths.relay_cert))
        self._task: asyncio.Task[None] | None = None

    @property
    def config(self) -> SiteConfig:
        url = f"http://127.0.0.1:{self.hub.port}"
        return SiteConfig(
            Hub(url), SiteIdentity(JOB, "paris", JOB), relay=RelayConfig(enabled=True)
        )

    @property
    def port(self) -> int:
        place = read_place(self.paths.relay_place)
        assert place is not None
        return place.port

    def session(self, token: str = TOKEN, name: str = "one") -> Path:
        path = self.paths.session(name) / "session.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"token": token}))
        return path

    async def start(self) -> None:
        task = self._task = asyncio.create_task(Relay(self.paths, self.config).run())
        await until(lambda: self.paths.relay_place.exists() or task.done(), "it listens")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def client(self, token: str = TOKEN) -> RelayedClient:
        return RelayedClient(self.files, token, user_agent="test")

    def tls(self) -> ssl.SSLContext:
        context = client_context()
        pin(context, self.paths.relay_cert)
        return context

    @asynccontextmanager
    async def raw(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A connection for bytes of one's own."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=self.tls())
        try:
            yield reader, writer
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def say(self, data: bytes) -> bytes:
        """All that comes back for these bytes, to the end of the connection."""
        async with self.raw() as (reader, writer), asyncio.timeout(60):
            writer.write(data)
            with suppress(OSError):
                return await reader.read()
            return b""


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    rig = Rig(tmp_path / "site")
    rig.session()
    await rig.hub.start()
    await rig.start()
    try:
        yield rig
    finally:
        await rig.stop()
        await rig.hub.stop()


def head(
    target: str = "/v1/sync", method: str = "POST", token: str = TOKEN, more: str = ""
) -> bytes:
    lines = f"{method} {target} HTTP/1.1\r\nhost: relay\r\nauthorization: Bearer {token}\r\n{more}"
    return (lines + "\r\n").encode()


# --- what it passes on


async def test_requests_and_answers_pass_byte_for_byte(rig: Rig) -> None:
    rig.hub.body = os.urandom(200_000)
    body = os.urandom(300_000)
    async with rig.client() as client:
        answer = await client.fetch("POST", "/v1/sync", body, media="application/x-test")
    assert answer.data == rig.hub.body
    assert rig.hub.bodies == [body]
    assert "Bearer " + TOKEN in rig.hub.heads[0]
    assert "content-type: application/x-test" in rig.hub.heads[0].lower()
    assert "transfer-encoding" not in rig.hub.heads[0].lower()


async def test_the_hubs_refusals_are_its_own(rig: Rig) -> None:
    said = {"error": {"code": "session_dead", "message": "over", "transient": False}}
    rig.hub.status, rig.hub.body = "409 Conflict", json.dumps(said).encode()
    async with rig.client() as client:
        with pytest.raises(SessionDead, match="over"):
            await client.request("POST", "/v1/sync", b"{}")


async def test_paths_and_queries_stay_as_they_are(rig: Rig) -> None:
    async with rig.client() as client:
        await client.fetch("GET", f"/v1/jobs/{JOB}/parents", params={"cursor": "a b/c%+=="})
        await client.fetch("GET", f"/v1/jobs/{JOB}/result")
        await client.request("POST", "/v1/sync/wake")
        await client.request("POST", f"/v1/sessions/{JOB}/end", b"{}")
    async with HubClient(rig.config.hub.url, TOKEN) as direct:
        await direct.fetch("GET", f"/v1/jobs/{JOB}/parents", params={"cursor": "a b/c%+=="})
    lines = [text.split("\r\n")[0] for text in rig.hub.heads]
    assert lines[0] == lines.pop()
    assert lines[1:] == [
        f"GET /v1/jobs/{JOB}/result HTTP/1.1",
        "POST /v1/sync/wake HTTP/1.1",
        f"POST /v1/sessions/{JOB}/end HTTP/1.1",
    ]


async def test_a_poll_whose_pilot_left_is_let_go(rig: Rig) -> None:
    rig.hub.hold.clear()
    async with rig.client() as client:
        asking = asyncio.create_task(client.request("POST", "/v1/sync", b"{}"))
        await until(lambda: rig.hub.bodies, "the hub holds the poll")
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await until(lambda: rig.hub.left, "the hub's end is closed")


async def test_a_hub_that_is_away_is_said_to_be_away_and_nothing_is_made_up(rig: Rig) -> None:
    await rig.hub.stop()
    async with rig.client() as client:
        with pytest.raises(Unavailable, match="out of reach"):
            await client.request("POST", "/v1/sync", b'{"held":[]}', retry=NO_RETRY)
        await rig.hub.start()
        await client.request("POST", "/v1/sync", b'{"held":[]}')
    assert rig.hub.bodies == [b'{"held":[]}']


async def test_half_an_answer_is_none(rig: Rig) -> None:
    """The Hub dies in the middle: the pilot must not take what came for the whole."""
    rig.hub.headers = "connection: close\r\n"
    rig.hub.status = "200 OK\r\ntransfer-encoding: chunked\r\nx: y"
    rig.hub.body = b'5\r\n{"a":\r\n'
    said = await rig.say(head(more="content-length: 2\r\n") + b"{}")
    assert not said.endswith(b"0\r\n\r\n")


async def test_a_pilot_finds_an_agent_that_was_started_again_elsewhere(rig: Rig) -> None:
    async with rig.client() as client:
        await client.request("POST", "/v1/sync", b"1")
        before = rig.port
        await rig.stop()
        with pytest.raises(Unavailable):
            await client.request("POST", "/v1/sync", b"2", retry=NO_RETRY)
        with socket.create_server(("127.0.0.1", before)):
            await rig.start()
            await until(lambda: rig.port != before, "another port, since the old one is taken")
            await client.request("POST", "/v1/sync", b"3")
        await rig.stop()
        await rig.start()
        await client.request("POST", "/v1/sync", b"4")
    assert rig.hub.bodies == [b"1", b"3", b"4"]


async def test_a_pilot_takes_the_address_that_proves_to_be_the_relay(
    rig: Rig, tmp_path: Path
) -> None:
    """Something else answers at the first address, and nothing at the second."""
    other = SitePaths.of(tmp_path / "other")
    other.secrets.mkdir(parents=True)
    make_certificate(other.relay_cert, other.relay_key, "Chappe relay", 1.7e9)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(other.relay_cert, other.relay_key)
    liar = await asyncio.start_server(lambda _, w: w.close(), "127.0.0.2", rig.port, ssl=context)
    write_place(
        rig.paths.relay_place, RelayPlace(["127.0.0.2", "127.0.0.3", "127.0.0.1"], rig.port)
    )
    async with liar, rig.client() as client:
        await client.request("POST", "/v1/sync", b"{}")
        assert client.url == f"https://127.0.0.1:{rig.port}"
        write_place(rig.paths.relay_place, RelayPlace(["127.0.0.2"], rig.port))
        async with rig.client() as cheated:
            with pytest.raises(Unavailable, match=r"127\.0\.0\.2"):
                await cheated.request("POST", "/v1/sync", b"{}", retry=NO_RETRY)


async def test_without_a_place_the_message_says_what_to_do(tmp_path: Path) -> None:
    cert = tmp_path / "cert.pem"
    make_certificate(cert, tmp_path / "key.pem", "Chappe relay", 1.7e9)
    files = RelayFiles(str(tmp_path / "none.json"), str(cert))
    async with RelayedClient(files, TOKEN, user_agent="test") as client:
        with pytest.raises(Unavailable, match="enabled = true"):
            await client.request("POST", "/v1/sync", b"{}", retry=NO_RETRY)


# --- whom it refuses


@pytest.mark.parametrize("token", ["", "x", TOKEN + "x", "chp_s_site_token", "é" * 50, "a" * 9000])
async def test_a_token_of_no_session_gets_nowhere(rig: Rig, token: str) -> None:
    said = await rig.say(head(token=token, more="content-length: 1000000\r\n"))
    assert said.startswith((b"HTTP/1.1 401", b"HTTP/1.1 400")) or not said
    assert not rig.hub.heads


async def test_two_tokens_or_none_get_nowhere(rig: Rig) -> None:
    two = head(more=f"authorization: Bearer {TOKEN}\r\ncontent-length: 0\r\n")
    none = b"POST /v1/sync HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"
    basic = none.replace(b"host: x", f"host: x\r\nauthorization: Basic {TOKEN}".encode())
    for data in (two, none, basic):
        assert (await rig.say(data)).startswith(b"HTTP/1.1 401")
    assert not rig.hub.heads


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/v1/jobs"),
        ("POST", "/v1/jobs"),
        ("GET", "/metrics"),
        ("GET", "/v1/whoami"),
        ("POST", "/v1/login"),
        ("GET", "/v1/sync"),
        ("DELETE", f"/v1/jobs/{JOB}/result"),
        ("PUT", f"/v1/jobs/{JOB}/result"),
        ("POST", f"/v1/sites/{JOB}/sync"),
        ("POST", "/v1/sync/../jobs"),
        ("POST", "/v1/sync/%2e%2e/jobs"),
        ("POST", "//v1/sync"),
        ("POST", "/v1/sync#x"),
        ("POST", "http://elsewhere.example/v1/sync"),
        ("POST", "@elsewhere.example/v1/sync"),
        ("CONNECT", "elsewhere.example:443"),
        ("OPTIONS", "*"),
        ("GET", f"/v1/jobs/{JOB}/parents?" + "a" * 2000),
        ("GET", f"/v1/jobs/{JOB}/parents?a=b?c"),
    ],
)
async def test_other_paths_get_nowhere(rig: Rig, method: str, target: str) -> None:
    said = await rig.say(head(target, method, more="content-length: 0\r\n"))
    assert said.startswith((b"HTTP/1.1 404", b"HTTP/1.1 400")) or not said
    assert not rig.hub.heads


@pytest.mark.parametrize(
    ("target", "size", "error"),
    [
        ("/v1/sync", limits.BODY_BYTES, b"413"),
        ("/v1/sync/wake", 0, b"413"),
        ("/v1/results", limits.RESULTS_BYTES, b"413"),
        ("/v1/logs", limits.MIB, b"413"),
    ],
)
async def test_a_body_that_is_too_long_is_not_read(
    rig: Rig, target: str, size: int, error: bytes
) -> None:
    said = await rig.say(head(target, more=f"content-length: {size + 1}\r\n"))
    assert said.startswith(b"HTTP/1.1 " + error)
    assert not rig.hub.heads


@pytest.mark.parametrize(
    "more",
    [
        "transfer-encoding: chunked\r\n",
        "content-length: 5\r\ncontent-length: 6\r\n",
        "content-length: -5\r\n",
        "content-length: 5\r\ntransfer-encoding: chunked\r\n",
        "content-length: 9999999999999999999999999999\r\n",
        "a: b\r\n c: d\r\n" + "x" * 30_000,
    ],
)
async def test_odd_framing_ends_the_connection(rig: Rig, more: str) -> None:
    said = await rig.say(head(more=more) + b"5\r\nhello\r\n0\r\n\r\n")
    assert b" 200 " not in said
    assert not any(rig.hub.bodies)


async def test_what_is_no_http_or_no_tls_ends_the_connection(rig: Rig) -> None:
    assert b" 200 " not in await rig.say(b"\x16\x03\x01 hello\r\n\r\n")
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
    writer.write(head())
    with suppress(OSError):
        assert await reader.read() == b""
    writer.close()


async def test_a_session_that_is_over_gets_nowhere_and_a_new_one_does(rig: Rig) -> None:
    async with rig.client("chp_p_new_secret") as client:
        with pytest.raises(Unauthenticated, match="pilots"):
            await client.request("POST", "/v1/sync", b"{}")
        rig.session("chp_p_new_secret", "two")
        await client.request("POST", "/v1/sync", b"{}")
    rig.session().unlink()
    async with rig.client("chp_p_third") as other, rig.client() as ended:
        with pytest.raises(Unauthenticated):
            await other.request("POST", "/v1/sync", b"{}")
        with pytest.raises(Unauthenticated):
            await ended.request("POST", "/v1/sync", b"{}")


async def test_the_client_hears_what_was_wrong(rig: Rig) -> None:
    async with rig.client() as client:
        with pytest.raises(NotFound, match="pilots"):
            await client.request("GET", "/v1/whoami")
        with pytest.raises(TooLarge):
            await client.request("POST", "/v1/sync/wake", b"{}")


# --- what it bounds


@asynccontextmanager
async def stranger(rig: Rig) -> AsyncIterator[asyncio.StreamReader]:
    """A connection that says nothing."""
    async with rig.raw() as (reader, _):
        yield reader


async def hears_nothing(reader: asyncio.StreamReader) -> None:
    """Wait for the end of a connection."""
    with suppress(OSError):
        async with asyncio.timeout(60):
            assert await reader.read() == b""


async def test_strangers_are_few(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relays, "STRANGERS_EACH", 2)
    monkeypatch.setattr(relay_peer, "HEAD_S", 600.0)
    async with rig.client() as client, stranger(rig):
        # It has shown its token, and is no stranger from then on.
        await client.request("POST", "/v1/sync", b"{}")
        async with stranger(rig):
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
            await hears_nothing(reader)
            writer.close()
            await client.request("POST", "/v1/sync", b"{}")
        # One left: there is room, once that was noticed.
        async with rig.client() as other:
            await other.request("POST", "/v1/sync", b"{}")
    assert len(rig.hub.bodies) == 3


async def test_strangers_do_not_stay(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_peer, "HEAD_S", 0.1)
    async with stranger(rig) as reader:
        await hears_nothing(reader)


async def test_who_sends_slowly_is_cut_off(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_peer, "BODY_S", 0.3)
    said = await rig.say(head(more="content-length: 10\r\n") + b"12345")
    assert b" 200 " not in said


# --- where it listens


def configured(relay: RelayConfig, kind: str = "slurm") -> SiteConfig:
    hub, site = Hub("https://hub.example"), SiteIdentity(JOB, "paris", JOB)
    return SiteConfig(hub, site, scheduler=SchedulerConfig(kind), relay=relay)


def test_it_listens_where_compute_nodes_reach_it_and_the_internet_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    all_of_it = {"": ["193.0.0.1", "10.1.2.3", "172.16.0.9"], "eth0": ["193.0.0.1"], "ib7": []}
    monkeypatch.setattr(pinned, "addresses", all_of_it.__getitem__)
    assert wanted_addresses(configured(RelayConfig(True))) == ["10.1.2.3", "172.16.0.9"]
    assert wanted_addresses(configured(RelayConfig(True, interface="eth0"))) == ["193.0.0.1"]
    assert wanted_addresses(configured(RelayConfig(True, address="1.2.3.4"))) == ["1.2.3.4"]
    assert wanted_addresses(configured(RelayConfig(True), "local")) == ["127.0.0.1"]
    with pytest.raises(Unavailable, match="ib7"):
        wanted_addresses(configured(RelayConfig(True, interface="ib7")))
    all_of_it[""] = ["193.0.0.1"]
    with pytest.raises(Unavailable, match="no interface has a private"):
        wanted_addresses(configured(RelayConfig(True)))


def test_one_port_for_all_addresses_kept_and_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relays, "wanted_addresses", lambda _: ["127.0.0.1", "127.0.0.2", "::1"])
    rig = Rig(tmp_path / "site")
    ports = set()
    for _ in range(2):
        sockets = listen(rig.paths, configured(RelayConfig(True)))
        ports |= {sock.getsockname()[1] for sock in sockets}
        for sock in sockets:
            sock.close()
    assert len(ports) == 1
    for path in (rig.paths.relay_key, rig.paths.relay_cert, rig.paths.relay_place):
        assert path.stat().st_mode & 0o077 == 0
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        listen(rig.paths, configured(RelayConfig(True, port=taken.getsockname()[1])))


def test_the_place_reads_as_it_was_written(tmp_path: Path) -> None:
    place = RelayPlace(["10.0.0.1"], 4711)
    write_place(tmp_path / "relay.json", place)
    assert read_place(tmp_path / "relay.json") == place
    assert msgspec.json.decode((tmp_path / "relay.json").read_bytes()) == {
        "addresses": ["10.0.0.1"],
        "port": 4711,
    }
