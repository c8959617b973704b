"""What mail lost in the system that this one replaces, by the names that its study gave the holes."""

from __future__ import annotations

import base64
import uuid
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from chappe.testing import mails
from chappe.testing.daemons import until
from chappe.testing.mail import DOMAIN, MailServers
from tests.integration.mail_rig import OPEN, MailHub, imap

#: Before the commit, after it but before anybody was told, after the mailbox's position was remembered.
POINTS = ("hub.message_stored", "hub.message_kept", "hub.message_remembered")


def uid_of(raw: bytes) -> str:
    return str(msgspec.json.decode(raw)["msgUID"])


@pytest.fixture
def box() -> str:
    """A mailbox that no other test has."""
    return f"u{uuid.uuid4().hex[:8]}"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MailHub]:
    rig = MailHub(tmp_path_factory.mktemp("mail"))
    yield rig
    rig.close()


@pytest.mark.parametrize("point", POINTS)
def test_l3_a_mailbox_is_read_on_from_what_was_committed(
    mail_servers: MailServers, tmp_path: Path, box: str, point: str
) -> None:
    """The position was saved before the messages were: a crash between the two lost them."""
    sent = [mails.message("1900", command=str(n)) for n in range(6)]
    for at in range(0, 6, 2):
        mail_servers.put(mails.mail(sent[at : at + 2]), box)
    crash = {"CHAPPE_CRASH_AT": point, "CHAPPE_CRASH_ONCE": str(tmp_path / "crashed")}
    post = MailHub(tmp_path, imap(mail_servers, box), crash)
    try:
        post.hub.wait_dead(60)
        post.hub.start()
        until(lambda: len(post.uids()) == 6, "all messages")
        last = mails.message("1000")
        mail_servers.put(mails.mail([last]), box)
        until(lambda: len(post.uids()) == 7, "a mail that came later")
        assert post.uids() == [uid_of(raw) for raw in [*sent, last]]
    finally:
        post.close()


@pytest.mark.parametrize("point", POINTS[:2])
def test_l3_a_mail_is_answered_after_the_commit(
    mail_servers: MailServers, tmp_path: Path, point: str
) -> None:
    sent = [mails.message("0100"), mails.message("1000")]
    crash = {"CHAPPE_CRASH_AT": point, "CHAPPE_CRASH_ONCE": str(tmp_path / "crashed")}
    post = MailHub(tmp_path, environ=crash)
    try:
        mail_servers.route(OPEN.partition("@")[2], post.lmtp_port)
        mail_servers.send(mails.mail(sent), OPEN)
        post.hub.wait_dead(60)
        post.hub.start()
        mail_servers.flush()
        # Killed after the commit, the mail comes again, and its messages are duplicates.
        expected = 2 if point == "hub.message_stored" else 4
        until(lambda: received(post) == expected, "the mail that Postfix kept")
        assert post.uids() == [uid_of(raw) for raw in sent]
    finally:
        post.close()


def received(post: MailHub) -> int:
    sources = post.ask("GET", "/v1/messages/stats")["sources"]
    assert all(s["received"] == s["stored"] + s["duplicate"] + s["quarantined"] for s in sources)
    return sum(s["received"] for s in sources)


def test_l4_a_mails_number_means_nothing_without_its_folder_and_validity(
    mail_servers: MailServers, tmp_path: Path, box: str
) -> None:
    """The number alone was the key: what had it elsewhere, or after a rebuild, was taken for seen."""
    user = f"{box}@{DOMAIN}"
    raws = [mails.message("1000") for _ in range(3)]

    def put(raw: bytes, folder: str) -> None:
        mail_servers.doveadm("mailbox", "create", "-u", user, folder)
        mail_servers.put(mails.mail([raw]), box)
        mail_servers.doveadm("move", "-u", user, folder, "mailbox", "INBOX", "all")

    put(raws[0], "a")
    put(raws[1], "b")
    post = MailHub(tmp_path, imap(mail_servers, box, 'folders = ["a", "b"]'))
    try:
        until(lambda: len(post.uids()) == 2, "number 1 of both folders")
        post.hub.stop()
        mail_servers.doveadm("mailbox", "delete", "-u", user, "a")
        put(raws[2], "a")
        post.hub.start()
        until(lambda: len(post.uids()) == 3, "number 1 of the folder that was made anew")
        assert set(post.uids()) == {uid_of(raw) for raw in raws}
        assert received(post) == 3
    finally:
        post.close()


def test_l5_what_cannot_be_read_or_placed_is_kept_and_counted(shared: MailHub) -> None:
    """It was counted and thrown away."""
    unknown = mails.message("7777", simuid="")
    code = {"msgUID": "x", "simuid": "y"}
    bad = [b"no json", b"[]", msgspec.json.encode(code), mails.message("1000", msgTimestamp="?")]
    raw = mails.mail([unknown, *bad]).rstrip() + b"\r\na line for people\r\n"
    before = received(shared)
    assert shared.send(raw) == (250, "2.0.0 5 quarantined, 1 stored")
    assert received(shared) == before + 6
    assert shared.ask("GET", f"/v1/messages/{uid_of(unknown)}")["raw"].encode() == unknown
    found = shared.ask("GET", "/v1/quarantine")["quarantined"]
    reasons = ["not_json", "not_an_object", "no_code", "bad_timestamp", "not_base64"]
    assert [q["reason"] for q in found] == reasons
    kept = [shared.ask("GET", f"/v1/quarantine/{q['n']}")["raw"].encode() for q in found]
    assert kept == [*bad, b"a line for people"]
    assert shared.ask("POST", "/v1/messages/requeue", {})["tried"] == 5


def test_l6_files_are_kept_wherever_they_stand_with_ids_that_stay(shared: MailHub) -> None:
    """A file was dropped unless its mail had one line; ids of metric sets were drawn anew each time."""
    start, beside = mails.message("0000"), mails.message("1900", command="x")
    card = base64.encodebytes(b"[UserChoices]\n")
    sets = mails.message("7100", metricsGroupName="cm6-test")
    first = mails.mail([beside, start], [("config.card.base64", card)])
    second = mails.mail([beside, sets], [(f"{n}.json", b'{"n":%d}' % n) for n in range(3)])
    before = len(shared.uids())
    assert shared.send(first) == (250, "2.0.0 3 stored")
    assert shared.send(second) == (250, "2.0.0 1 duplicate, 4 stored")
    uids = shared.uids()[before:]
    for again in (first, second):
        assert "stored" not in shared.send(again)[1]
    assert shared.uids()[before:] == uids
    derived = [uuid.uuid5(uuid.UUID(uid_of(sets)), str(n)) for n in range(3)]
    files = [shared.ask("GET", f"/v1/messages/{uid}") for uid in derived]
    assert [f["fields"]["text"] for f in files] == ['{"n":0}', '{"n":1}', '{"n":2}']
    card_uid = uuid.uuid5(uuid.UUID(uid_of(start)), "0")
    assert shared.ask("GET", f"/v1/messages/{card_uid}")["fields"]["card"] == "[UserChoices]\n"
