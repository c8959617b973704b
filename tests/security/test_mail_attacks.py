"""Attacks by mail: what two servers understand differently, bombs, floods."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import msgspec
import pytest

from chappe.core import limits
from chappe.ingest import mail
from chappe.testing import mails
from tests.integration.mail_rig import OPEN, SENDER, MailHub

HEAD = b"EHLO hpc.site.test\r\nMAIL FROM:<%s>\r\nRCPT TO:<%s>\r\nDATA\r\n" % (
    SENDER.encode(),
    OPEN.encode(),
)


@pytest.fixture(scope="module")
def post(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MailHub]:
    rig = MailHub(tmp_path_factory.mktemp("attacked"))
    yield rig
    rig.close()


@pytest.fixture(autouse=True)
def _unharmed(post: MailHub) -> Iterator[None]:
    """After each attack, and each in turn, mail is taken as before."""
    yield
    assert post.send(mails.mail([mails.message("1000")])) == (250, "2.0.0 1 stored")


END = [b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\r\n.\r", b"\n\n.\r\n", b"\r\r\n.\r\r\n"]


@pytest.mark.parametrize("end", END)
def test_a_mail_within_a_mail_is_not_smuggled_in(post: MailHub, end: bytes) -> None:
    """Some servers take each of these for the end of a mail, and what follows for commands."""
    inner = mails.mail([mails.message("1999")])
    before = len(post.raws())
    said = post.talk(
        HEAD, b"Subject: x\r\n\r\nx", end, HEAD.split(b"\r\n", 1)[1], inner, b"\r\n.\r\nQUIT\r\n"
    )
    answers = [line[:3] for line in said.split(b"\r\n") if line[:1].isdigit()]
    assert answers.count(b"354") == 1
    assert b"554 5.6.0 a CR or LF by itself" in said
    assert len(post.raws()) == before


def test_a_line_without_an_end_is_cut_off(post: MailHub) -> None:
    """A reader that waits for the end of the line would hold all of it."""
    said = post.talk(HEAD, *[b"x" * 1_000_000] * 60, b"\r\n.\r\n")
    assert b"250 2.0.0" not in said
    assert b"552" in said or said.endswith(b"354 End data with <CR><LF>.<CR><LF>\r\n")


def test_a_mail_larger_than_the_limit_is_refused_before_and_after_it_is_sent(
    post: MailHub,
) -> None:
    large = mails.mail([mails.message("1900", command="x" * 700)] * 12_000)
    assert len(large) > limits.MAIL_BYTES
    assert b"552" in post.talk(HEAD, large, b"\r\n.\r\nQUIT\r\n")
    size = b"MAIL FROM:<%s> SIZE=%d\r\n" % (SENDER.encode(), limits.MAIL_BYTES + 1)
    assert b"552" in post.talk(b"EHLO x\r\n" + size + b"QUIT\r\n")


BOMBS = {
    "too_many_parts": b"Content-Type: multipart/mixed; boundary=b\r\n\r\n"
    + b"--b\r\n\r\nx\r\n" * 10_000,
    "too_deep": b"".join(
        b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (n, n)
        for n in range(1_000)
    ),
    "headers": b"X-Long: a\r\n" * 100_000 + b"\r\nx",
    "too_many_lines": b"Subject: x\r\n\r\n" + b"x\r\n" * 200_000,
}


@pytest.mark.parametrize("reason", BOMBS)
def test_a_bomb_is_kept_as_it_is_and_not_unpacked(post: MailHub, reason: str) -> None:
    assert post.send(BOMBS[reason]) == (250, "2.0.0 1 quarantined")
    assert post.reasons()[-1] == reason


def test_many_connections_that_say_nothing_keep_nobody_out_for_long(post: MailHub) -> None:
    idle = [socket.create_connection(("127.0.0.1", post.smtp_port)) for _ in range(150)]
    try:
        late = idle[-1]
        late.settimeout(60)
        assert late.recv(100).startswith(b"421 4.3.2 too many connections")
    finally:
        for each in idle:
            each.close()
    until_served(post)


def until_served(post: MailHub) -> None:
    deadline = time.monotonic() + 60
    while b"421" in post.talk(b"QUIT\r\n"):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_nobody_is_told_what_accounts_there_are(post: MailHub) -> None:
    said = post.talk(b"EHLO x\r\nVRFY root\r\nEXPN all\r\nAUTH PLAIN AHgAeA==\r\nQUIT\r\n")
    assert b"root" not in said
    assert b"235" not in said


def test_a_forged_message_of_another_producer_touches_nothing_of_it(post: MailHub) -> None:
    """The uid, the job and the simulation of somebody else, by who may only speak for himself."""
    tokens = {
        name: post.ask("POST", "/v1/producers", {"name": name})["token"] for name in ("a", "b")
    }
    true, forged = mails.message("1000"), mails.message("1999")
    uid = msgspec.json.decode(true)["msgUID"]
    forged = msgspec.json.encode(msgspec.json.decode(forged) | {"msgUID": uid})
    for name, raw in (("a", true), ("b", forged)):
        signed = {"Chappe-Signature": mail.sign(mails.lines([raw]), tokens[name])}
        assert post.send(mails.mail([raw], headers=signed)) == (250, "2.0.0 1 stored")
    for name, raw in (("a", true), ("b", forged)):
        shown = post.ask("GET", f"/v1/messages/{uid}?producer={name}")
        assert (shown["producer"], shown["raw"].encode()) == (name, raw)
    stolen = {"Chappe-Signature": mail.sign(mails.lines([true]), tokens["a"])}
    post.begin()
    assert post.send(mails.mail([forged], headers=stolen)) == (250, "2.0.0 1 quarantined")
    assert post.reasons() == ["bad_signature"]
