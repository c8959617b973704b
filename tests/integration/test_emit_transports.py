"""How the producer sends: HTTPS, mail and AMQP, to small stand-ins, and what it does when none answers."""

from __future__ import annotations

import base64
import email
import hashlib
import hmac
import json
import os
import quopri
import socketserver
import subprocess
import sys
import threading
import time
import types
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from chappe.emit import chappe_emit as emit
from chappe.link import emitted
from tests.integration.site_rig import wait_until

SCRIPT = str(Path(emit.__file__))
TOKEN = "chp_u_abcdefgh2345_" + "s" * 43


class Hub(ThreadingHTTPServer):
    """Takes messages, or answers as it is told; keeps what it was sent."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.answers: list[int] = []
        self.hang = threading.Event()
        self.hang.set()
        self.lines: list[bytes] = []
        self.requests: list[tuple[str, str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def values(self) -> list[Any]:
        return [json.loads(line).get("n") for line in self.lines]


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.hang.wait(60)
        status = self.server.answers.pop(0) if self.server.answers else 202
        header = self.headers
        self.server.requests.append((self.path, header["authorization"], header["content-type"]))
        if status == 202:
            self.server.lines += body.splitlines()
        self.send_response(status)
        if status == 302:
            self.send_header("location", f"{self.server.url}/elsewhere")
        self.send_header("content-length", "0")
        self.end_headers()

    do_GET = do_POST

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def hub() -> Generator[Hub]:
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.hang.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    for name in [name for name in os.environ if name.startswith("CHAPPE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CHAPPE_EMIT_CONFIG", str(tmp_path / "none"))
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    return {
        "spool": str(tmp_path / "spool"),
        "token_file": str(tmp_path / "token"),
        "limit_s": "30",
    }


def command(settings: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    given = {f"CHAPPE_EMIT_{name.upper()}": value for name, value in settings.items()}
    return subprocess.run(
        [sys.executable, SCRIPT, *words],
        env={**os.environ, **given},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def spools(settings: dict[str, str]) -> list[Path]:
    return sorted(Path(settings["spool"]).glob("*.spool"))


def test_https_sends_the_bytes_of_the_spool(hub: Hub, settings: dict[str, str]) -> None:
    emitter = emit.Emitter(emit.Settings(url=hub.url, **settings))
    for n in range(20):
        emitter.message("log", n=n)
    (file,) = spools(settings)
    stored = emitted.read(str(file), 0).messages
    emitter.flush()
    assert hub.lines == stored
    assert set(hub.requests) == {("/v1/messages", f"Bearer {TOKEN}", "application/x-ndjson")}
    emitter.close()
    assert list(Path(settings["spool"]).iterdir()) == []  # nothing is left to do, for nobody


def test_messages_go_by_themselves(hub: Hub, settings: dict[str, str]) -> None:
    emitter = emit.Emitter(emit.Settings(url=hub.url, **settings))
    emitter.message("log", n=1)
    wait_until(lambda: hub.values == [1], "a message arrives, and nobody flushed")
    emitter.message("simulation.started", "s", n=2)
    wait_until(lambda: hub.values == [1, 2], "the next one too")
    emitter.close()


def test_what_is_not_confirmed_is_tried_three_times_and_kept(
    hub: Hub, settings: dict[str, str]
) -> None:
    hub.answers = [503, 500, 429]
    done = command({**settings, "url": hub.url}, "log", "n=1")
    assert (done.returncode, hub.answers, hub.lines) == (0, [], [])
    assert "1 messages wait in the spool" in done.stderr
    assert command({**settings, "url": hub.url}, "log", "n=2").stderr == ""
    assert hub.values == ["1", "2"]  # one file, for they have one parent


def test_any_later_call_drains_what_the_dead_left(hub: Hub, settings: dict[str, str]) -> None:
    nobody = {**settings, "url": "http://127.0.0.1:9", "limit_s": "0.3"}
    script = f"{sys.executable} {SCRIPT} log n=1; {sys.executable} {SCRIPT} log n=2"
    given = {f"CHAPPE_EMIT_{name.upper()}": value for name, value in nobody.items()}
    done = subprocess.run(
        ["sh", "-c", script], env={**os.environ, **given}, capture_output=True, check=False
    )
    assert done.returncode == 0
    assert len(spools(settings)) == 1
    assert command({**settings, "url": hub.url}, "log", "n=3").returncode == 0
    assert sorted(hub.values) == ["1", "2", "3"]
    assert len(spools(settings)) == 1  # that of the last, whose parent is alive: this process


def test_drain_sends_what_the_shell_script_wrote(hub: Hub, settings: dict[str, str]) -> None:
    given = {**os.environ, "CHAPPE_EMIT_SPOOL": settings["spool"]}
    shell = str(Path(SCRIPT).with_name("chappe-emit.sh"))
    for n in range(3):
        subprocess.run(["sh", shell, "log", f"n={n}"], env=given, check=True)
    assert command({**settings, "url": hub.url}, "drain").stderr == ""
    assert hub.values == ["0", "1", "2"]
    command({**settings, "url": hub.url}, "drain")
    assert len(hub.values) == 3


def test_a_hub_that_hangs_holds_nobody(hub: Hub, settings: dict[str, str]) -> None:
    hub.hang.clear()
    began = time.monotonic()
    done = command({**settings, "url": hub.url, "limit_s": "0.5"}, "simulation.started")
    assert done.returncode == 0
    assert time.monotonic() - began < 20
    emitter = emit.Emitter(emit.Settings(url=hub.url, **{**settings, "limit_s": "0.5"}))
    emitter.message("simulation.ended", "s")
    emitter.close()
    assert time.monotonic() - began < 40
    assert len(spools(settings)) == 2


def test_a_token_follows_no_redirection_and_no_plain_http(
    hub: Hub, settings: dict[str, str]
) -> None:
    hub.answers = [302, 302, 302]
    assert "302" in command({**settings, "url": hub.url}, "log", "n=1").stderr
    assert {path for path, _, _ in hub.requests} == {"/v1/messages"}
    done = command({**settings, "url": "http://hub.example.org"}, "log", "n=1")
    assert "is not https" in done.stderr
    assert TOKEN not in done.stderr


def test_a_full_disk_does_not_keep_https_from_sending(
    hub: Hub, settings: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    settings["spool"] = str(tmp_path / "file" / "spool")
    emitter = emit.Emitter(emit.Settings(url=hub.url, **settings))
    for n in range(5):
        emitter.message("log", n=n)
    emitter.flush()
    assert sorted(hub.values) == [0, 1, 2, 3, 4]
    emitter.close()


def test_l14_a_missing_message_shows(hub: Hub, settings: dict[str, str]) -> None:
    """With Prodiguer, nobody could know that a message was missing."""
    emitter = emit.Emitter(emit.Settings(url=hub.url, **settings))
    for n in range(10):
        emitter.message("log", n=n)
    emitter.flush()
    emitter.close()
    found = [json.loads(line) for line in hub.lines]
    lost = found.pop(4)
    missing = set(range(1, 11)) - {m["msgSeq"] for m in found}
    assert missing == {lost["msgSeq"]}
    digests = {hashlib.sha256(line).hexdigest() for line in hub.lines if b'"n":4' not in line}
    assert [m["msgSeq"] for m in found if m["msgPrev"] and m["msgPrev"] not in digests] == [6]


class Mailbox(socketserver.ThreadingTCPServer):
    """As much of SMTP as a client wants."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Conversation)
        self.mails: list[bytes] = []


class Conversation(socketserver.StreamRequestHandler):
    server: Mailbox

    def handle(self) -> None:
        self.wfile.write(b"220 here\r\n")
        while line := self.rfile.readline():
            word = line[:4].upper()
            if word == b"DATA":
                self.wfile.write(b"354 go on\r\n")
                text = b""
                while (line := self.rfile.readline()) not in (b".\r\n", b""):
                    text += line.removeprefix(b".")
                self.server.mails.append(text)
            self.wfile.write(b"250 well\r\n")
            if word == b"QUIT":
                return


@pytest.fixture
def mailbox() -> Generator[Mailbox]:
    with Mailbox() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def lines_of(mail: bytes) -> list[bytes]:
    """The base64 lines of a mail, out of their transfer encoding."""
    head, _, body = mail.replace(b"\r\n", b"\n").partition(b"\n\n")
    if b"quoted-printable" in head:
        body = quopri.decodestring(body)
    return body.split()


def test_mails_are_those_of_libigcm_and_signed(mailbox: Mailbox, settings: dict[str, str]) -> None:
    smtp = f"127.0.0.1:{mailbox.server_address[1]}"
    given = {"transports": "mail", "mail_smtp": smtp, "mail_to": "hermes@example.org"}
    emitter = emit.Emitter(emit.Settings(**settings, **given))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(emitter, "_nudge", lambda urgent: None)
        for n in range(3):
            emitter.message("log", n=n)
        emitter.message("log", n=3, text="long " * 300)
    (file,) = spools(settings)
    stored = emitted.read(str(file), 0).messages
    emitter.close()
    (mail,) = mailbox.mails
    lines = lines_of(mail)
    assert [base64.b64decode(line) for line in lines] == stored
    parsed = email.message_from_bytes(mail)
    assert parsed["Subject"] == "[TEMPORARY AMQP CHANNEL]"
    assert parsed["To"] == "hermes@example.org"
    assert max(map(len, mail.splitlines())) <= 998
    key = hashlib.sha256(TOKEN.encode()).hexdigest().encode()
    mac = hmac.new(key, b"\n".join(lines), hashlib.sha256).hexdigest()
    assert parsed["Chappe-Signature"] == f"v1 prefix=abcdefgh2345 hmac={mac}"


def test_mails_are_batched_and_go_at_once_with_a_start_or_an_end(
    mailbox: Mailbox, settings: dict[str, str]
) -> None:
    smtp = f"127.0.0.1:{mailbox.server_address[1]}"
    settings |= {"transports": "mail", "mail_smtp": smtp, "mail_to": "hermes@example.org"}
    settings |= {"mail_messages": "5"}

    def sent() -> list[int]:
        return [len(lines_of(mail)) for mail in mailbox.mails]

    command(settings, "simulation.started")
    assert sent() == [1]
    for n in range(4):
        command(settings, "log", f"n={n}")
    assert sent() == [1]
    command(settings, "log", "n=4")
    assert sent() == [1, 5]
    command(settings, "log", "n=5")
    command({**settings, "mail_age_s": "0"}, "log", "n=6")
    assert sent() == [1, 5, 2]
    command(settings, "log", "n=7")
    command(settings, "job.ended")  # libIGCM let this one sit for an hour
    assert sent() == [1, 5, 2, 2]


def test_sendmail_is_given_the_mail(settings: dict[str, str], tmp_path: Path) -> None:
    program = tmp_path / "sendmail"
    program.write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/words\ncat >{tmp_path}/mail\n')
    program.chmod(0o755)
    settings |= {"transports": "mail", "mail_sendmail": str(program), "mail_to": "a@example.org"}
    settings |= {"mail_from": "b@example.org"}
    assert command(settings, "simulation.started").stderr == ""
    assert (tmp_path / "words").read_text() == "-i -f b@example.org -- a@example.org\n"
    assert len(lines_of((tmp_path / "mail").read_bytes())) == 1
    program.write_text("#!/bin/sh\nexit 75\n")
    assert "wait in the spool" in command(settings, "simulation.ended").stderr


def test_amqp_publishes_as_the_specification_says(
    settings: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    published: list[tuple[str, str, bytes, Any, bool]] = []

    class Channel:
        def confirm_delivery(self) -> None:
            pass

        def basic_publish(self, *given: Any, mandatory: bool) -> None:
            published.append((*given, mandatory))

    class Connection:
        def __init__(self, where: Any) -> None:
            assert where.url == "amqps://ada@broker"

        def channel(self) -> Channel:
            return Channel()

        def close(self) -> None:
            pass

    def where(url: str) -> types.SimpleNamespace:
        return types.SimpleNamespace(url=url, credentials=types.SimpleNamespace(username="Ada"))

    pika = types.ModuleType("pika")
    vars(pika).update(
        URLParameters=where, BlockingConnection=Connection, BasicProperties=types.SimpleNamespace
    )
    monkeypatch.setitem(sys.modules, "pika", pika)
    given = {"transports": "amqp", "amqp_url": "amqps://ada@broker"}
    emitter = emit.Emitter(emit.Settings(**settings, **given))
    emitter.message("simulation.started", "s", "j")
    emitter.close()
    ((exchange, key, body, properties, mandatory),) = published
    assert (exchange, key, mandatory) == ("x-primary", "prod.ada.chappe.monitoring.0000", True)
    assert properties.message_id == json.loads(body)["msgUID"]
    assert properties.headers["correlation_id_1"] == "s"
    assert properties.headers["correlation_id_2"] == "j"


def test_the_next_transport_takes_what_the_first_does_not(
    hub: Hub, mailbox: Mailbox, settings: dict[str, str]
) -> None:
    settings |= {"transports": "amqp,mail,https", "url": hub.url}
    done = command(settings, "simulation.started", "n=1")  # no pika, and mail to nobody
    assert (done.stderr, hub.values) == ("", ["1"])
    done = command({**settings, "transports": "pigeon"}, "log", "n=2")
    assert "there is no transport 'pigeon'" in done.stderr
