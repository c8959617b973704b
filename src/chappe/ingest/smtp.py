"""A server for SMTP or LMTP that says 250 when what it was given is in the journal, and not before.

It stands behind a mail server (LMTP or SMTP on loopback), or alone. It relays nothing: there are only the
recipients that are configured. One mail is of one recipient, so one answer is about one source.

Bounded are: connections, the bytes of one mail, the bytes of all mails on their way, lines, and the time that
a connection may be silent or a mail may take. SMTP smuggling lives on servers that disagree about where a
mail ends: here it ends at CR LF . CR LF, and a CR or LF by itself anywhere in a mail has it refused.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from typing import Any, Protocol

import structlog
from aiosmtpd.lmtp import LMTP
from aiosmtpd.smtp import SMTP, Envelope, Session

from chappe.core.errors import ChappeError

#: Connections at once; each further one is told to come later.
CONNECTIONS = 100
#: Bytes of mails on their way, of all connections together.
HELD_BYTES = 64 << 20
#: Between two commands, and for all of one mail.
SILENT_S = 300.0
#: Of what may come in one transaction beside the mail: commands, and dots that were doubled.
_BESIDE_BYTES = 256 << 10
_BARE = re.compile(rb"\r(?!\n)|(?<!\r)\n")

log = structlog.get_logger("chappe.mail")


class Refused(ChappeError):
    """This recipient or sender is not known here."""

    status = 403
    default_code = "refused"


class Post(Protocol):
    """Where mails go."""

    def check(self, recipient: str, sender: str) -> None:
        """Raises Refused unless mail from this sender to this recipient is taken."""

    async def keep(self, raw: bytes, recipient: str, sender: str) -> str:
        """Keep a mail; how many messages it held, in words. Raises ChappeError, and nothing is kept."""


class Handler:
    """What the server asks while a mail comes in."""

    def __init__(self, post: Post) -> None:
        self._post = post

    async def handle_RCPT(
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        """RCPT: only one, and only whom a source takes mail for."""
        if envelope.rcpt_tos:
            return "452 4.5.3 one recipient at a time"
        try:
            self._post.check(address, envelope.mail_from or "")
        except Refused as error:
            return f"550 5.7.1 {error.message}"
        envelope.rcpt_tos.append(address)
        envelope.rcpt_options.extend(options)
        return "250 2.1.5 OK"

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:
        """DATA: answered when it is kept."""
        raw = envelope.original_content or b""
        if _BARE.search(raw):
            log.warning("a mail with a bare CR or LF was refused", sender=envelope.mail_from)
            return "554 5.6.0 a CR or LF by itself is not taken: send lines that end with CR LF"
        try:
            kept = await self._post.keep(raw, envelope.rcpt_tos[0], envelope.mail_from or "")
        except ChappeError as error:
            code = "451 4.3.0" if error.transient else "554 5.6.0"
            return f"{code} {error.message.encode('ascii', 'replace').decode()}"
        return f"250 2.0.0 {kept}"

    async def handle_exception(self, error: Exception) -> str:
        """Anything that was not foreseen: nothing is kept, and the sender tries again."""
        log.error("a mail was not kept", error=repr(error), exc_info=error)
        return "451 4.3.0 not now: try again later"


class _Bounded:
    """Mixed into the library's servers: the bytes of a connection are counted until its mail is done with."""

    door: Door
    transport: Any
    _taken = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[misc]
        self.door.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self.door.remove(self)
        self._release()
        super().connection_lost(error)  # type: ignore[misc]

    def data_received(self, data: bytes) -> None:
        self._taken += len(data)
        self.door.held_bytes += len(data)
        if self._taken > self.door.size_max + _BESIDE_BYTES:
            self._cut(b"552 5.3.4 this mail is too large")
        elif self.door.held_bytes > HELD_BYTES:
            self._cut(b"421 4.3.2 too much at once: try again later")
        else:
            super().data_received(data)  # type: ignore[misc]

    def _set_post_data_state(self) -> None:
        super()._set_post_data_state()  # type: ignore[misc]
        self._release()

    def _release(self) -> None:
        self.door.held_bytes -= self._taken
        self._taken = 0

    def _cut(self, words: bytes) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(words + b"\r\n")
            self.transport.close()


class _Smtp(_Bounded, SMTP):
    """SMTP."""


class _Lmtp(_Bounded, LMTP):
    """LMTP: what a mail server on the same machine speaks."""


class Door:
    """One listening address. `start` and `stop` it on the event loop."""

    def __init__(
        self, post: Post, *, lmtp: bool, size_max: int, tls: ssl.SSLContext | None = None
    ) -> None:
        self.size_max = size_max
        self.held_bytes = 0
        self._kind = _Lmtp if lmtp else _Smtp
        self._handler = Handler(post)
        self._tls = tls
        self._open: set[_Bounded] = set()
        self._server: asyncio.Server | None = None

    async def start(self, listener: socket.socket) -> None:
        """Begin to listen."""
        self._server = await asyncio.get_running_loop().create_server(self._protocol, sock=listener)

    async def stop(self) -> None:
        """Listen no more, and cut what is open: a mail that is not answered is sent again."""
        if self._server is None:
            return
        self._server.close()
        for connection in list(self._open):
            if connection.transport is not None:
                connection.transport.abort()
        await self._server.wait_closed()

    def _protocol(self) -> SMTP:
        protocol = self._kind(
            self._handler,
            data_size_limit=self.size_max,
            hostname=socket.gethostname(),
            ident="chappe",
            tls_context=self._tls,
            timeout=SILENT_S,
            command_call_limit={"*": 10_000, "NOOP": 100, "VRFY": 10, "HELP": 10, "AUTH": 1},
            loop=asyncio.get_running_loop(),
        )
        protocol.door = self
        return protocol

    def add(self, connection: _Bounded) -> None:
        """Count a connection; end it when there are too many."""
        self._open.add(connection)
        if len(self._open) > CONNECTIONS:
            connection.transport.write(b"421 4.3.2 too many connections: try again later\r\n")
            connection.transport.close()

    def remove(self, connection: _Bounded) -> None:
        """A connection is over."""
        self._open.discard(connection)
