"""Mail in the Hub's process: servers that take it, readers of mailboxes, and the way to the journal.

A mail is taken apart beside the loop and given to the journal; only then is its server told 250, or its
place in a mailbox remembered. A crash before that has the mail sent or read again, one after it makes
duplicates; neither loses or doubles a message.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import structlog

from chappe.core import faults
from chappe.core.errors import Unavailable
from chappe.hub.serve import bind
from chappe.hub.state import Hub
from chappe.ingest import imap, mail_config, smtp
from chappe.ingest.mail import Letter, parse, whole
from chappe.ingest.mail_config import Listen, MailConfig, Source
from chappe.ingest.sources import arrivals, credited
from chappe.store import mail as store
from chappe.store import owners
from chappe.store.mail import Place
from chappe.store.owners import Owner
from chappe.wire.messages import Verdict

CRASH_POINTS = ("hub.message_kept", "hub.message_remembered")

#: A reader waits at most so long for its mail to be kept, and may take so long to end.
KEPT_WITHIN_S = 300.0
ENDS_WITHIN_S = 5.0

log = structlog.get_logger("chappe.mail")


class Configured(NamedTuple):
    """mail.toml, and the directory that its paths are relative to."""

    config: MailConfig
    directory: Path

    async def begin(self, hub: Hub) -> Mail:
        """Start it. Raises Invalid or Unavailable."""
        mail = Mail(hub, self.config, self.directory)
        try:
            await mail.start()
        except BaseException:
            await mail.stop()
            raise
        return mail


class _Known(NamedTuple):
    """A source, and whose messages it brings."""

    source: Source
    owner: Owner


class Mail:
    """All mail of a Hub. `start` and `stop` it on the Hub's event loop."""

    def __init__(self, hub: Hub, config: MailConfig, directory: Path) -> None:
        self._hub = hub
        self._config = config
        self._directory = directory
        self._known: dict[str, _Known] = {}
        self._doors: list[smtp.Door] = []
        self._readers: list[imap.Reader] = []

    async def start(self) -> None:
        """Listen, and begin to read. Raises Invalid or Unavailable for what the configuration got wrong."""
        for source in self._config.source:
            owner = await self._hub.read(owners.owner, source.project, source.producer)
            self._known[source.name] = _Known(source, owner)
        for listen in self._config.listen:
            await self._listen(listen)
        shelf = _Shelf(self, asyncio.get_running_loop())
        for config in self._config.imap:
            for folder in config.folders:
                reader = imap.Reader(config, folder, self._directory, shelf)
                self._readers.append(reader)
                reader.start()

    async def stop(self) -> None:
        """Take no more. What is on its way is sent or read again."""
        for door in self._doors:
            await door.stop()
        for reader in self._readers:
            reader.stop()
        for reader in self._readers:
            await asyncio.to_thread(reader.join, ENDS_WITHIN_S)

    async def _listen(self, listen: Listen) -> None:
        tls = None
        try:
            if listen.tls_cert:
                tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                tls.load_cert_chain(
                    self._directory / listen.tls_cert, self._directory / listen.tls_key
                )
            listener = bind(listen.host, listen.port)
        except OSError as e:
            raise Unavailable(
                f"cannot take mail on {listen.host} port {listen.port}: {e.strerror or e}",
                field="mail",
            ) from None
        door = smtp.Door(self, lmtp=listen.kind == "lmtp", size_max=listen.size_bytes_max, tls=tls)
        await door.start(listener)
        self._doors.append(door)
        host, port = listener.getsockname()[:2]
        log.info("taking mail", kind=listen.kind, host=host, port=port)

    # -- what the servers ask (smtp.Post) ----------------------------------------------------------

    def check(self, recipient: str, sender: str) -> None:
        """Raises Refused unless a source takes this mail."""
        if self._config.find(recipient, sender) is None:
            raise smtp.Refused("no mail from this sender to this recipient is taken here")

    async def keep(self, raw: bytes, recipient: str, sender: str) -> str:
        """Keep a mail; how many messages it held, in words."""
        source = self._config.find(recipient, sender)
        if source is None:
            raise smtp.Refused("no mail from this sender to this recipient is taken here")
        verdicts = Counter(v.verdict for v in await self.take(raw, "smtp", source.name))
        return ", ".join(f"{count} {word}" for word, count in sorted(verdicts.items()))

    # -- the way to the journal --------------------------------------------------------------------

    async def take(self, raw: bytes, door: str, name: str, reason: str = "") -> list[Verdict]:
        """The verdicts on a mail's messages, once they are in the journal.

        With a `reason` the mail is kept as it is, and not taken apart.
        """
        known = self._known[name]
        letter = await self._read(raw, reason)
        owner, items = known.owner, list(letter.items)
        if door == "imap" and not known.source.sends(letter.sender):
            items = [whole(raw, "sender", f"mail of {letter.sender} is not of the source {name}")]
        elif not reason:
            signer = None
            if letter.signature is not None:
                prefix, now = letter.signature.prefix, self._hub.clock()
                signer = await self._hub.read(store.signer, prefix, now)
            unsigned = known.source.unsigned
            owner, items = credited(raw, letter, known.owner, unsigned, signer)
        verdicts: list[Verdict] = []
        for arrival in arrivals(raw, items, owner, door, name):
            verdicts += await self._hub.intake.take(arrival)
        faults.reach("hub.message_kept")
        return verdicts

    async def _read(self, raw: bytes, reason: str) -> Letter:
        if not reason:
            try:
                return await self._hub.prepare(parse, raw)
            except Exception:
                # A mail that the reader of mails fails on is kept, and stands in no other's way.
                log.exception("a mail could not be taken apart")
                reason = "failed"
        words = "the mail is kept as it came; it was not taken apart"
        return Letter("", "", None, b"", (whole(raw, reason, words),))


class _Shelf:
    """What readers of mailboxes ask, from their threads (imap.Shelf)."""

    def __init__(self, mail: Mail, loop: asyncio.AbstractEventLoop) -> None:
        self._mail = mail
        self._loop = loop

    def keep(self, source: str, raw: bytes, whole_reason: str) -> bool:
        """Keep a mail; whether all of it could be read."""
        taking = self._mail.take(raw, "imap", source, whole_reason)
        verdicts = asyncio.run_coroutine_threadsafe(taking, self._loop).result(KEPT_WITHIN_S)
        return all(v.verdict in ("stored", "duplicate") and not v.reason for v in verdicts)

    def read_up_to(self, place: Place) -> int:
        """The uid that was read last."""
        reading = self._mail._hub.read(store.read_up_to, place)
        return asyncio.run_coroutine_threadsafe(reading, self._loop).result(KEPT_WITHIN_S)

    def remember(self, place: Place, uid: int) -> None:
        """Everything up to this uid is kept."""
        writing = self._mail._hub.write(store.remember, place, uid)
        asyncio.run_coroutine_threadsafe(writing, self._loop).result(KEPT_WITHIN_S)
        faults.reach("hub.message_remembered")


def load(path: Path) -> Configured:
    """What mail.toml says. Raises Invalid."""
    return Configured(mail_config.load(path), path.absolute().parent)
