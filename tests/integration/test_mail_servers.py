"""Mail by real servers: Postfix hands over to the Hub, and the Hub reads mailboxes of Dovecot."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from chappe.testing import mails
from chappe.testing.daemons import until
from chappe.testing.mail import DOMAIN, MailServers
from tests.integration.mail_rig import OPEN, MailHub, imap

MOVED = 'processed = "done"\nrejected = "odd"'


@pytest.fixture
def box() -> str:
    """A mailbox with an empty INBOX, that no other test has."""
    return f"u{uuid.uuid4().hex[:8]}"


@contextlib.contextmanager
def running(directory: Path, more: str) -> Iterator[MailHub]:
    rig = MailHub(directory, more)
    try:
        yield rig
    finally:
        rig.close()


def test_postfix_keeps_what_the_hub_did_not_take(mail_servers: MailServers, tmp_path: Path) -> None:
    one, two = mails.message("1000"), mails.message("1900", command="x" * 3_000)
    with running(tmp_path, "") as post:
        mail_servers.route(OPEN.partition("@")[2], post.lmtp_port)
        mail_servers.send(mails.mail([one]), OPEN)
        until(lambda: post.raws() == [one], "the first message")
        post.hub.kill9()
        # One line of 4 000 bytes, which a server on the way may break.
        mail_servers.send(mails.mail([two], encoding="7bit"), OPEN)
        post.hub.start()
        mail_servers.flush()
        until(lambda: post.raws() == [one, two], "both messages")


def test_new_mail_is_read_and_moved(mail_servers: MailServers, tmp_path: Path, box: str) -> None:
    one, two, three = (mails.message("1000") for _ in range(3))
    mail_servers.put(mails.mail([one]), box)
    with running(tmp_path, imap(mail_servers, box, MOVED)) as post:
        until(lambda: post.raws() == [one], "the mail that was there")
        mail_servers.put(mails.mail([two]), box)
        until(lambda: post.raws() == [one, two], "the mail that came")
        mail_servers.put(b"Subject: hello\r\nFrom: x@hpc.site.test\r\n\r\nhello\r\n", box)
        until(lambda: mail_servers.count(box, "odd") == 1, "what is no message")
        assert post.reasons() == ["not_base64"]
        mail_servers.stop_dovecot()
        mail_servers.start_dovecot()
        mail_servers.put(mails.mail([three]), box)
        until(lambda: mail_servers.count(box, "done") == 3, "all mail", 120)
        assert post.raws() == [one, two, three]
        assert mail_servers.count(box) == 0


def test_mail_of_others_is_not_taken_for_that_of_a_source(
    mail_servers: MailServers, tmp_path: Path, box: str
) -> None:
    mail_servers.put(mails.mail([mails.message("1999")], headers={"From": "x@else.test"}), box)
    with running(tmp_path, imap(mail_servers, box)) as post:
        until(lambda: post.reasons() == ["sender"], "the mail in quarantine")
        assert post.raws() == []


def test_several_folders_are_read_and_a_wrong_password_stops_no_other(
    mail_servers: MailServers, tmp_path: Path, box: str
) -> None:
    user = f"{box}@{DOMAIN}"
    mail_servers.doveadm("mailbox", "create", "-u", user, "second")
    one, two = mails.message("1000"), mails.message("1000")
    mail_servers.put(mails.mail([two]), box)
    mail_servers.doveadm("move", "-u", user, "second", "mailbox", "INBOX", "all")
    mail_servers.put(mails.mail([one]), box)
    wrong = imap(mail_servers, "other", password="wrong-one")
    with running(
        tmp_path, wrong + imap(mail_servers, box, 'folders = ["INBOX", "second"]')
    ) as post:
        # Each had uid 1 in its folder.
        until(lambda: set(post.raws()) == {one, two}, "mail of both folders")
        until(lambda: "mail is not read for now" in post.hub.log, "words on the wrong password")
        assert "wrong-one" not in post.hub.log
