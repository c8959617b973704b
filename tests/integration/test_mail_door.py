"""The SMTP and LMTP door of a Hub, as mail servers meet it."""

from __future__ import annotations

import base64
import smtplib
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from chappe.emit import chappe_emit
from chappe.hub import tls
from chappe.ingest import mail
from chappe.testing import mails
from chappe.testing.daemons import free_ports
from chappe.testing.hub import HubFailed
from tests.integration.mail_rig import OPEN, SENDER, SIGNED, MailHub


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MailHub]:
    rig = MailHub(tmp_path_factory.mktemp("mail"))
    yield rig
    rig.close()


@pytest.fixture
def post(shared: MailHub) -> MailHub:
    """One Hub for all, which shows each test what came after its beginning."""
    shared.begin()
    return shared


def test_what_was_sent_is_kept_once_with_its_mail_beside_it(post: MailHub) -> None:
    sent = [mails.message("0000"), mails.message("1000")]
    raw = mails.mail(sent, [("config.card.base64", base64.b64encode(b"[UserChoices]\n"))])
    assert post.send(raw) == (250, "2.0.0 3 stored")
    assert post.send(raw) == (250, "2.0.0 3 duplicate")
    assert post.raws()[:2] == sent
    assert b'"msgType":"simulation.card"' in post.raws()[2]
    assert post.rows("SELECT body FROM carrier ORDER BY n DESC LIMIT 1") == [(raw,)]
    ((received, *became),) = post.rows(
        "SELECT received, stored, duplicate, quarantined FROM source WHERE name = 'open'"
    )
    assert received == sum(became) >= 6


def test_lmtp_is_answered_for_each_recipient_after_the_mail(post: MailHub) -> None:
    raw = mails.mail([mails.message("1000")])
    with smtplib.LMTP("127.0.0.1", post.lmtp_port) as client:
        assert client.sendmail(SENDER, [OPEN], raw) == {}
        refused = client.sendmail(SENDER, [OPEN, SIGNED], raw)
        assert refused == {SIGNED: (452, b"4.5.3 one recipient at a time")}
    assert len(post.raws()) == 1


@pytest.mark.parametrize(
    ("recipient", "sender"), [(OPEN, "x@elsewhere.test"), ("root@hub.site.test", SENDER)]
)
def test_only_known_senders_and_recipients_are_taken(
    post: MailHub, recipient: str, sender: str
) -> None:
    code, words = post.send(mails.mail([mails.message("1000")]), recipient, sender)
    assert (code, words[:5]) == (550, "5.7.1")


def test_what_cannot_be_read_is_acknowledged_and_kept_with_its_reason(post: MailHub) -> None:
    raw = b"Subject: hello\r\n\r\nhow are you?\r\n" + mails.lines([b"{}"])[0] + b"\r\n"
    assert post.send(raw) == (250, "2.0.0 2 quarantined")
    assert post.reasons() == ["not_base64", "no_uid"]


def test_mail_that_nobody_signed_counts_only_where_that_was_said(post: MailHub) -> None:
    raw = mails.mail([mails.message("1000")])
    assert post.send(raw, SIGNED) == (250, "2.0.0 1 quarantined")
    assert post.reasons() == ["unsigned"]
    assert post.rows("SELECT raw FROM quarantine ORDER BY n DESC LIMIT 1") == [(raw,)]
    forged = {"Chappe-Signature": mails_signature(raw)}
    assert post.send(mails.mail([mails.message("1000")], headers=forged))[0] == 250
    assert post.reasons() == ["unsigned", "bad_signature"]
    assert post.raws() == []


def uid_of(raw: bytes) -> str:
    return str(msgspec.json.decode(raw)["msgUID"])


def mails_signature(_raw: bytes) -> str:
    """A signature that looks right."""
    return f"v1 prefix=abcdefabcdef hmac={'0' * 64}"


def test_a_token_of_a_producer_signs_and_its_messages_are_that_producers(post: MailHub) -> None:
    token = post.ask("POST", "/v1/producers", {"name": "model"})["token"]
    sent = [mails.message("1000"), mails.message("1100")]
    signed = {"Chappe-Signature": mail.sign(mails.lines(sent), token)}
    assert post.send(mails.mail(sent, headers=signed), SIGNED) == (250, "2.0.0 2 stored")
    (first, second) = (
        post.ask("GET", f"/v1/messages/{uid_of(raw)}?producer=model") for raw in sent
    )
    assert (first["producer"], second["producer"]) == ("model", "model")
    card = ("config.card.base64", b"W1g9XQo=")
    post.send(mails.mail(sent, [card], signed), SIGNED)
    assert post.reasons() == ["unsigned_files"]
    other = [mails.message("1000")]
    post.send(mails.mail(other, headers=signed), SIGNED)
    post.ask("POST", "/v1/producers", {"name": "gone"})
    assert post.reasons()[1:] == ["bad_signature"]


def test_what_emit_sends_by_mail_is_taken(post: MailHub) -> None:
    token = post.ask("POST", "/v1/producers", {"name": "emit"})["token"]
    raws = [mails.message("1900", command="x" * 2_000), mails.message("1000")]
    settings = chappe_emit.Settings(token=token, mail_to=SIGNED, mail_from=SENDER)
    letter = chappe_emit.letter(settings, raws).replace(b"\n", b"\r\n")
    assert post.send(letter, SIGNED) == (250, "2.0.0 2 stored")
    assert post.raws() == raws


def test_a_mail_may_be_sent_over_https_by_who_answers_for_it(post: MailHub) -> None:
    sent = [mails.message("0000"), mails.message("1000")]
    raw = mails.mail(sent, [("config.card.base64", b"W1g9XQo=")])
    verdicts = post.ask("POST", "/v1/messages", raw, content_type="message/rfc822")["verdicts"]
    assert [v["verdict"] for v in verdicts] == ["stored"] * 3
    assert post.send(raw) == (250, "2.0.0 3 duplicate")


def test_mail_is_taken_over_tls_where_there_is_a_certificate(
    tmp_path: Path,
) -> None:
    made = tls.files(tmp_path, None, None, time.time())
    (port,) = free_ports(1)
    listen = f'kind = "smtp"\nport = {port}\ntls_cert = "{made.cert}"\ntls_key = "{made.key}"'
    rig = MailHub(tmp_path / "hub", f"\n[[listen]]\n{listen}\n")
    try:
        with smtplib.SMTP("localhost", port) as client:
            client.starttls(context=ssl.create_default_context(cafile=made.ca))
            client.sendmail(SENDER, [OPEN], mails.mail([mails.message("1000")]))
        assert len(rig.raws()) == 1
        with smtplib.SMTP("127.0.0.1", rig.smtp_port) as plain:
            plain.ehlo()
            assert not plain.has_extn("starttls")
    finally:
        rig.close()


def test_a_storm_of_3719_messages_is_one_answer(post: MailHub) -> None:
    sent = [mails.message("1900", command="x" * 150) for _ in range(3_719)]
    assert post.send(mails.mail(sent)) == (250, "2.0.0 3719 stored")
    assert post.raws() == sent


def test_what_the_configuration_gets_wrong_is_said_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(HubFailed, match="there is no project elsewhere"):
        MailHub(tmp_path / "a", '\n[[source]]\nname = "x"\nproject = "elsewhere"\n')
    with pytest.raises(HubFailed, match="unknown field `prot`"):
        MailHub(tmp_path / "b", "\n[[listen]]\nprot = 1\n")
