"""A reader of mailboxes: a thread for each folder, that waits with IDLE and hands over what came.

How far a folder was read is remembered by (source, server, user, folder, UIDVALIDITY), and only after what
was read is in the journal: a crash reads some mails again, and their messages are duplicates. A server that
numbers its mails anew says so by another UIDVALIDITY, and the folder is read from its beginning, which is as
harmless. With a folder for processed mail, the folder that is read holds what is still to do.

The reader trusts neither the network nor the server's patience: each wait is bounded, and whatever fails is
begun again with a new connection, later and later.
"""

from __future__ import annotations

import contextlib
import imaplib
import re
import socket
import ssl
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import structlog
from imap_tools import BaseMailBox, MailBox, MailBoxStartTls, MailBoxUnencrypted
from imap_tools.errors import ImapToolsError

from chappe.core import limits
from chappe.core.errors import ChappeError
from chappe.ingest.mail_config import Imap
from chappe.store.mail import Place

#: An answer of the server, and a wait with IDLE, last at most so long.
ANSWER_S = 60.0
IDLE_S = 240.0
#: Servers without IDLE are asked as often.
ASK_S = 5.0
RETRY_FIRST_S = 1.0
RETRY_MOST_S = 60.0
#: Mails after which it is remembered how far they were read.
BATCH = 50

_SIZE = re.compile(rb"RFC822\.SIZE (\d+)")

log = structlog.get_logger("chappe.mail")


class Shelf(Protocol):
    """Where mails go, and where it is remembered how far they were read. Called on the reader's thread."""

    def keep(self, source: str, raw: bytes, whole_reason: str) -> bool:
        """Keep a mail, as one item for a reason unless that is empty; whether all of it could be read.

        Raises ChappeError, and then it is not kept.
        """

    def read_up_to(self, place: Place) -> int:
        """The uid that was read last; 0 when none was."""

    def remember(self, place: Place, uid: int) -> None:
        """Everything up to this uid is kept."""


class Reader:
    """Reads one folder of one server until it is stopped."""

    def __init__(self, config: Imap, folder: str, directory: Path, shelf: Shelf) -> None:
        self._config = config
        self._folder = folder
        self._directory = directory
        self._shelf = shelf
        self._stopping = threading.Event()
        self._box: BaseMailBox | None = None
        self._thread = threading.Thread(
            target=self._run, name=f"chappe-imap-{config.source}", daemon=True
        )
        self._log = log.bind(source=config.source, server=config.host, folder=folder)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End soon. What is not in the journal stays in the folder."""
        self._stopping.set()
        box: BaseMailBox | None = self._box
        if box is not None:
            with contextlib.suppress(OSError):  # it was ending by itself
                box.client.sock.shutdown(socket.SHUT_RDWR)

    def join(self, within_s: float) -> None:
        """Wait for the end."""
        self._thread.join(within_s)

    def _run(self) -> None:
        wait_s = RETRY_FIRST_S
        while not self._stopping.is_set():
            try:
                with self._connected() as box:
                    self._select(box)
                    self._log.info("reading mail")
                    wait_s = RETRY_FIRST_S
                    self._read(box)
            except (OSError, ImapToolsError, imaplib.IMAP4.error, ChappeError) as error:
                if not self._stopping.is_set():
                    self._log.warning("mail is not read for now", error=str(error), again_s=wait_s)
            except Exception:
                log.exception("reading mail failed, and is begun again", source=self._config.source)
            self._stopping.wait(wait_s)
            wait_s = min(2 * wait_s, RETRY_MOST_S)

    @contextlib.contextmanager
    def _connected(self) -> Iterator[BaseMailBox]:
        box = connect(self._config, self._directory)
        self._box = box
        try:
            yield box
        finally:
            self._box = None
            with contextlib.suppress(OSError, ImapToolsError, imaplib.IMAP4.error):
                box.client.shutdown()

    def _select(self, box: BaseMailBox) -> None:
        for name in {self._config.processed, self._config.rejected} - {""}:
            if not box.folder.exists(name):
                box.folder.create(name)
        box.folder.set(self._folder)
        _, found = box.client.response("UIDVALIDITY")
        if not found or found[0] is None:
            raise imaplib.IMAP4.error("the server gives no UIDVALIDITY: its uids mean nothing")
        config = self._config
        mailbox = f"{config.user}@{config.host}"
        self._place = Place(config.source, mailbox, self._folder, int(found[0]))

    def _read(self, box: BaseMailBox) -> None:
        idle = "IDLE" in box.client.capabilities
        while not self._stopping.is_set():
            self._take_all(box)
            if idle:
                wait(box, IDLE_S)
            else:
                self._stopping.wait(ASK_S)
                box.client.noop()

    def _take_all(self, box: BaseMailBox) -> None:
        """Hand over what is new, some mails at a time."""
        after = 0 if self._config.processed else self._shelf.read_up_to(self._place)
        while not self._stopping.is_set():
            # `n:*` names the last mail in any case, also one that was read.
            uids = sorted(u for u in map(int, box.uids(f"UID {after + 1}:*")) if u > after)
            if not uids:
                return
            after = self._take(box, uids[:BATCH])

    def _take(self, box: BaseMailBox, uids: Sequence[int]) -> int:
        """Hand these over, then move them and remember it; the last of them."""
        good: list[str] = []
        bad: list[str] = []
        for uid in uids:
            if self._stopping.is_set():
                raise ConnectionAbortedError("the reader was stopped")
            found = self._fetch(box, uid)
            if found is None:
                continue  # somebody removed it meanwhile
            raw, whole_reason = found
            readable = self._shelf.keep(self._config.source, raw, whole_reason)
            (good if readable else bad).append(str(uid))
        self._move(box, good, self._config.processed)
        self._move(box, bad, self._config.rejected or self._config.processed)
        self._shelf.remember(self._place, uids[-1])
        return uids[-1]

    def _move(self, box: BaseMailBox, uids: Sequence[str], folder: str) -> None:
        if uids and folder:
            box.move(uids, folder)

    def _fetch(self, box: BaseMailBox, uid: int) -> tuple[bytes, str] | None:
        """A mail's bytes, and an empty reason; the beginning of one that is too large, and why."""
        size = _SIZE.search(b" ".join(_flat(box.client.uid("FETCH", str(uid), "(RFC822.SIZE)")[1])))
        if size is None:
            return None
        if int(size.group(1)) > limits.MAIL_BYTES:
            part, reason = f"(BODY.PEEK[]<0.{limits.MAIL_HEADER_BYTES}>)", "too_large"
        else:
            part, reason = "(BODY.PEEK[])", ""
        answer = box.client.uid("FETCH", str(uid), part)[1]
        for piece in answer:
            if isinstance(piece, tuple):
                return piece[1], reason
        return None


def connect(config: Imap, directory: Path) -> BaseMailBox:
    """A connection that is logged in. Raises OSError, ImapToolsError or IMAP4.error."""
    password = (directory / config.password_file).read_text().strip()
    box: BaseMailBox = _open(config, directory)
    try:
        box.login(config.user, password, initial_folder=None)
        # What a server can do may be more once it knows for whom.
        box.client._get_capabilities()
    except BaseException:
        box.client.shutdown()
        raise
    return box


def _open(config: Imap, directory: Path) -> BaseMailBox:
    if config.tls == "none":
        return MailBoxUnencrypted(config.host, config.port or 143, timeout=ANSWER_S)
    trusted = str(directory / config.ca_file) if config.ca_file else None
    context = ssl.create_default_context(cafile=trusted)
    if config.tls == "starttls":
        return MailBoxStartTls(
            config.host, config.port or 143, timeout=ANSWER_S, ssl_context=context
        )
    return MailBox(config.host, config.port or 993, timeout=ANSWER_S, ssl_context=context)


def wait(box: BaseMailBox, within_s: float) -> None:
    """Wait until the server tells of something, or for so long."""
    idle: Any = box.idle
    idle.start()
    try:
        if not _told(box.client):
            idle.poll(timeout=within_s)
    finally:
        idle.stop()


def _told(client: imaplib.IMAP4) -> bool:
    """Whether the server has told something already, in one breath with its consent to IDLE: that is in a
    buffer, where waiting for the socket would not see it."""
    client.sock.settimeout(0)
    try:
        client._get_line()
    except OSError:  # there is nothing yet
        return False
    except imaplib.IMAP4.abort as error:
        if "EOF" in str(error):  # what a buffer without bytes says too; the next command tells
            return False
        raise
    finally:
        client.sock.settimeout(ANSWER_S)
    return True


def _flat(answer: Iterable[bytes | tuple[bytes, ...] | None]) -> Iterable[bytes]:
    for piece in answer:
        if isinstance(piece, tuple):
            yield from piece
        elif piece is not None:
            yield piece
