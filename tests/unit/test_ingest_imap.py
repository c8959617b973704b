"""The reader of mailboxes against servers that say unusual things at unusual moments."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chappe.core import limits
from chappe.core.errors import Unavailable
from chappe.ingest import imap
from chappe.ingest.mail_config import Imap
from chappe.store.mail import Place
from chappe.testing.daemons import until

MAIL = b"Subject: x\r\n\r\nx\r\n"


class Server:
    """An IMAP server of one folder, for one client at a time, that a test makes say what it wants."""

    def __init__(self, capabilities: str = "IMAP4rev1 IDLE") -> None:
        self.capabilities = capabilities
        self.mails: list[bytes] = []
        self.said: list[str] = []
        #: Called when the client begins to wait; what it gives is sent with the consent.
        self.on_idle: Callable[[], bytes] = lambda: b""
        self.validity = b"UIDVALIDITY 1"
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._client: socket.socket | None = None
        self._idle = b""
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                self._client, _ = self._listener.accept()
            except OSError:
                return
            with self._client, self._client.makefile("rb") as file:
                try:
                    self._send(b"* OK ready\r\n")
                    for line in file:
                        self._answer(line.decode().strip())
                except OSError:
                    continue

    def _send(self, data: bytes) -> None:
        assert self._client is not None
        self._client.sendall(data)

    def _answer(self, line: str) -> None:
        self.said.append(line)
        if line == "DONE":
            self._send(self._idle + b" OK done\r\n")
            return
        tag, _, command = line.partition(" ")
        told = b""
        if command.startswith("CAPABILITY"):
            told = f"* CAPABILITY {self.capabilities}\r\n".encode()
        elif command.startswith("SELECT"):
            told = b"* %d EXISTS\r\n* OK [%b] so\r\n" % (len(self.mails), self.validity)
        elif command.startswith("UID SEARCH"):
            uids = " ".join(str(n + 1) for n in range(len(self.mails)))
            told = f"* SEARCH {uids}\r\n".encode()
        elif found := re.match(r"UID FETCH (\d+) \(RFC822", command):
            n = int(found[1])
            told = b"* %d FETCH (UID %d RFC822.SIZE %d)\r\n" % (n, n, len(self.mails[n - 1]))
        elif found := re.match(r"UID FETCH (\d+) \(BODY.PEEK\[\](?:<0.(\d+)>)?", command):
            n = int(found[1])
            raw = self.mails[n - 1][: int(found[2]) if found[2] else None]
            told = b"* %d FETCH (UID %d BODY[] {%d}\r\n%b)\r\n" % (n, n, len(raw), raw)
        elif command == "IDLE":
            self._idle = tag.encode()
            self._send(b"+ idling\r\n" + self.on_idle())
            return
        self._send(told + tag.encode() + b" OK done\r\n")

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)


class Shelf:
    """Where mails go, in memory."""

    def __init__(self) -> None:
        self.kept: list[tuple[bytes, str]] = []
        self.position = 0
        self.fail = 0

    def keep(self, _source: str, raw: bytes, whole_reason: str) -> bool:
        if self.fail:
            self.fail -= 1
            raise Unavailable("the disk is full")
        self.kept.append((raw, whole_reason))
        return True

    def read_up_to(self, _place: Place) -> int:
        return self.position

    def remember(self, _place: Place, uid: int) -> None:
        self.position = uid


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def read(server: Server, shelf: Shelf, tmp_path: Path) -> Iterator[Callable[[], None]]:
    """Begins to read."""
    (tmp_path / "password").write_text("secret\n")
    config = Imap("s", "127.0.0.1", "u", "password", port=server.port, tls="none")
    reader = imap.Reader(config, "INBOX", tmp_path, shelf)
    yield reader.start
    reader.stop()
    reader.join(30)


def test_news_in_one_breath_with_the_consent_to_idle_is_heard(
    server: Server, shelf: Shelf, read: Callable[[], None]
) -> None:
    """Both stand in one buffer: who waits for the socket then sleeps through the news."""

    def one_more() -> bytes:
        if len(server.mails) >= 3:
            return b""
        server.mails.append(MAIL)
        return b"* %d EXISTS\r\n" % len(server.mails)

    server.on_idle = one_more
    read()
    until(lambda: shelf.position == 3, "three mails, each told of at the beginning of a wait")
    assert shelf.kept == [(MAIL, "")] * 3


def test_what_the_hub_does_not_take_now_is_read_again(
    server: Server, shelf: Shelf, read: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imap, "RETRY_FIRST_S", 0.01)
    server.mails = [MAIL, MAIL]
    shelf.fail = 3
    read()
    until(lambda: shelf.position == 2, "both mails")
    assert len(shelf.kept) == 2


def test_a_mail_that_is_too_large_is_not_fetched_whole(
    server: Server, shelf: Shelf, read: Callable[[], None]
) -> None:
    server.mails = [b"Subject: x\r\n\r\n" + b"x" * limits.MAIL_BYTES, MAIL]
    read()
    until(lambda: shelf.position == 2, "both mails")
    ((head, reason), second) = shelf.kept
    assert (len(head), reason) == (limits.MAIL_HEADER_BYTES, "too_large")
    assert second == (MAIL, "")


def test_a_server_without_idle_is_asked_again_and_again(
    server: Server, shelf: Shelf, read: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imap, "ASK_S", 0.01)
    server.capabilities = "IMAP4rev1"
    read()
    until(lambda: any("NOOP" in line for line in server.said), "a question")
    server.mails = [MAIL]
    until(lambda: shelf.position == 1, "the mail")
    assert not any("IDLE" in line for line in server.said)


def test_a_server_whose_numbers_mean_nothing_is_not_read(
    server: Server, shelf: Shelf, read: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imap, "RETRY_FIRST_S", 0.01)
    server.mails, server.validity = [MAIL], b"READ-WRITE"
    read()
    until(lambda: sum("SELECT" in line for line in server.said) >= 2, "a second try")
    assert shelf.kept == []
