"""The relay: how pilots on nodes without a route out speak with the Hub, through the agent.

It passes requests on to the Hub and answers back, byte for byte, and knows nothing of what is in them. It
says nothing in the Hub's name: only the Hub grants and renews, and it authenticates each Session by the
Session's own token, which the relay merely carries. It stores nothing either. A report that was taken from
its pilot before the Hub had it would have lost the Hub's verdict; and there is no need: until that verdict
comes it stands in the pilot's journal, in the Site's directory, where it outlives pilot, node and agent, and
where the undertaker finds it when the allocation ends while the Hub is away.

Other people's processes can connect. They get nowhere: TLS with the Site's own certificate, the paths that a
pilot needs and no others, and nothing is read beyond a request's head, still less passed on, without the
token of a Session of this Site. Connections, heads, bodies and times are bounded.
"""

from __future__ import annotations

import asyncio
import ipaddress
import resource
import socket
import ssl
from collections import Counter
from collections.abc import Sequence

import httpx2
import structlog

from chappe.core import limits
from chappe.core.errors import ChappeError, Unavailable
from chappe.link import pinned, relayed
from chappe.link.clock import boottime, now
from chappe.link.handshake import close_what_is_cancelled
from chappe.link.relayed import RelayPlace
from chappe.link.transport import tls_context
from chappe.site.config import SiteConfig
from chappe.site.paths import SitePaths
from chappe.site.relay_gate import Gate
from chappe.site.relay_peer import Peer

log = structlog.get_logger()

STRANGERS = 256
STRANGERS_EACH = 64
"""Connections that have not shown a Session's token yet: of all peers, and of one address."""
HANDSHAKE_S = 10.0
ANSWER_S = limits.WAIT_MAX_S + 30.0
"""How long the Hub may take to begin an answer."""
TELL_AGAIN_S = 60.0

_CONNECT_S = 10.0
_FILES_KEPT = 100
_BACKLOG = 256
_PORT_TRIES = 5


class Relay:
    """Serves the pilots of one Site, for as long as `run` runs."""

    def __init__(self, paths: SitePaths, config: SiteConfig) -> None:
        self._paths = paths
        self._config = config
        self._gate = Gate(paths.sessions)
        self._peers: set[asyncio.Task[None]] = set()
        self._strangers: Counter[str] = Counter()
        self._refusals = 0
        self._quiet_until = 0.0

    async def run(self) -> None:
        """Listen, and pass on. Raises Unavailable when no address can be had, OSError."""
        listeners = await asyncio.to_thread(listen, self._paths, self._config)
        accepting: list[asyncio.Task[None]] = []
        try:
            tls = pinned.server_context(self._paths.relay_cert, self._paths.relay_key)
            async with self._hub() as hub:
                accepting += [asyncio.create_task(self._accept(s, tls, hub)) for s in listeners]
                await asyncio.gather(*accepting)
        finally:
            for task in (*accepting, *self._peers):
                task.cancel()
            await asyncio.gather(*accepting, *self._peers, return_exceptions=True)
            for listener in listeners:
                listener.close()

    def _hub(self) -> httpx2.AsyncClient:
        hub = httpx2.AsyncClient(
            base_url=self._config.hub.url.rstrip("/"),
            headers={"accept-encoding": "identity", "user-agent": "chappe-relay"},
            verify=tls_context(self._config.ca_path(self._paths.root)),
            timeout=httpx2.Timeout(ANSWER_S, connect=_CONNECT_S),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=64),
        )
        close_what_is_cancelled(hub)
        return hub

    async def _accept(
        self, listener: socket.socket, tls: ssl.SSLContext, hub: httpx2.AsyncClient
    ) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, address = await loop.sock_accept(listener)
            except ConnectionError:
                continue  # it went before we came
            host: str = address[0]
            if self._has_room(host):
                self._strangers[host] += 1
                peer = asyncio.create_task(self._serve(sock, host, tls, hub))
                self._peers.add(peer)
                peer.add_done_callback(self._over)
            else:
                sock.close()

    def _has_room(self, host: str) -> bool:
        # Each takes two files: its own, and one to the Hub.
        return (
            len(self._peers) < (_files() - _FILES_KEPT) // 2
            and self._strangers.total() < STRANGERS
            and self._strangers[host] < STRANGERS_EACH
        )

    async def _serve(
        self, sock: socket.socket, host: str, tls: ssl.SSLContext, hub: httpx2.AsyncClient
    ) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        strange = True

        def known() -> None:
            nonlocal strange
            if strange:
                strange = False
                self._strangers[host] -= 1
                self._strangers += Counter()  # forgets whoever is at 0

        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol,
                sock,
                ssl=tls,
                ssl_handshake_timeout=HANDSHAKE_S,
                ssl_shutdown_timeout=1.0,
            )
            writer = asyncio.StreamWriter(transport, protocol, reader, loop)
            await Peer(
                reader,
                writer,
                self._gate,
                hub,
                known=known,
                refused=lambda e: self._refused(host, e),
            ).serve()
        except OSError:
            sock.close()  # it did not get through the handshake
        finally:
            known()

    def _over(self, peer: asyncio.Task[None]) -> None:
        self._peers.discard(peer)
        if not peer.cancelled() and (error := peer.exception()) is not None:
            log.error("relay: a connection failed", exc_info=error)

    def _refused(self, host: str, error: ChappeError) -> None:
        """Say it, but not as often as somebody likes to make us."""
        self._refusals += 1
        if boottime() >= self._quiet_until:
            self._quiet_until = boottime() + TELL_AGAIN_S
            log.warning("relay: refused", peer=host, why=error.message, so_far=self._refusals)


def listen(paths: SitePaths, config: SiteConfig) -> list[socket.socket]:
    """Listen where the configuration says, or where other machines can reach us, and write down where.

    The port is the one of last time, if it is free: pilots know it. Raises Unavailable, OSError.
    """
    pinned.make_certificate(paths.relay_cert, paths.relay_key, "Chappe relay", now())
    addresses = wanted_addresses(config)
    before = relayed.read_place(paths.relay_place)
    port = config.relay.port or (before.port if before else 0)
    try:
        listeners = _bind(addresses, port)
    except OSError:
        if config.relay.port or not port:
            raise
        listeners = _bind(addresses, 0)
    place = RelayPlace(addresses, listeners[0].getsockname()[1])
    if place != before:
        relayed.write_place(paths.relay_place, place)
    log.info("relay listens", addresses=addresses, port=place.port)
    return listeners


def wanted_addresses(config: SiteConfig) -> list[str]:
    """Where to listen. Without a word about it: where compute nodes can reach us, and the Internet cannot.
    Raises Unavailable."""
    given = config.relay
    if given.address:
        return [given.address]
    if config.scheduler.kind == "local" and not given.interface:
        return ["127.0.0.1"]
    found = pinned.addresses(given.interface)
    if not given.interface:
        found = [a for a in found if not ipaddress.ip_address(a).is_global]
    if not found:
        which = f"the interface {given.interface!r}" if given.interface else "no interface"
        has = "has no IPv4 address" if given.interface else "has a private IPv4 address"
        raise Unavailable(
            f"{which} {has}, where the relay could listen: set [relay] address or interface in site.toml",
            code="no_address",
        )
    return found


def _bind(addresses: Sequence[str], port: int) -> list[socket.socket]:
    """One socket for each, all with one port; 0: one that is free on all."""
    for tries_left in reversed(range(_PORT_TRIES)):
        sockets: list[socket.socket] = []
        try:
            for address in addresses:
                number = sockets[0].getsockname()[1] if sockets else port
                family, _, _, _, where = socket.getaddrinfo(
                    address, number, type=socket.SOCK_STREAM
                )[0]
                sockets.append(socket.create_server(where[:2], family=family, backlog=_BACKLOG))
                sockets[-1].setblocking(False)
        except OSError:
            for bound in sockets:
                bound.close()
            if port or not tries_left:
                raise
        else:
            return sockets
    raise AssertionError("unreachable")


def _files() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1_000_000 if soft == resource.RLIM_INFINITY else soft
