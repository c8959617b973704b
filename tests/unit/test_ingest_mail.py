"""Messages out of mails: lines, files, leftovers, and what a mail may not be."""

from __future__ import annotations

import base64
import hashlib
import time
import uuid

import msgspec
import pytest

from chappe.core import limits
from chappe.ingest import mail
from chappe.testing import mails

TOKEN = "chp_p_abcdefabcdef_secret"


def raws(raw: bytes) -> list[bytes]:
    return [item.raw for item in mail.parse(raw).items]


def reasons(raw: bytes) -> list[str]:
    return [item.undecodable for item in mail.parse(raw).items]


@pytest.mark.parametrize("encoding", ["7bit", "quoted-printable", "base64"])
def test_each_line_is_a_message_with_the_bytes_that_were_sent(encoding: str) -> None:
    sent = [mails.message("1000"), mails.message("1900", command="x" * 1_500)]
    letter = mail.parse(mails.mail(sent, encoding=encoding))
    assert [item.raw for item in letter.items] == sent
    assert [item.message.code for item in letter.items if item.message] == ["1000", "1900"]
    assert letter.message_id.endswith("@hpc.site.test>")


def test_a_line_that_a_relay_broke_is_put_together() -> None:
    sent = mails.message("1900", command="x" * 3_000)
    line = base64.b64encode(sent)
    broken = b"\r\n ".join(line[i : i + 998] for i in range(0, len(line), 998))
    assert raws(b"Subject: x\r\n\r\n" + broken + b"\r\n" + line + b"\r\n") == [sent, sent]


def test_blank_lines_bare_line_feeds_and_plain_json_do_no_harm() -> None:
    one, two = mails.message("1000"), mails.message("1100")
    body = b"\n\n" + base64.b64encode(one) + b"\n \n" + two + b"\n\n"
    assert raws(b"Subject: x\n" + body) == [one, two]


def test_what_is_no_message_stays_as_it_came_with_a_reason() -> None:
    bad = base64.b64encode(b'{"msgCode":"1000"}')
    letter = b"Subject: x\r\n\r\nhello there\r\n" + bad + b"\r\n"
    assert raws(letter) == [b"hello there", b'{"msgCode":"1000"}']
    assert reasons(letter) == ["not_base64", "no_uid"]
    assert reasons(b"Subject: nothing\r\n\r\n") == ["no_message"]
    assert raws(b"hello") == [b"hello"]


def test_a_part_without_the_blank_line_before_its_text_loses_nothing() -> None:
    line = base64.b64encode(mails.message("1000"))
    head = b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n"
    assert reasons(head + line + b"\r\n--b--\r\n") == [""]


def test_the_card_belongs_to_the_start_in_its_mail_and_to_the_last_of_several() -> None:
    leftover, start = mails.message("0000"), mails.message("0000")
    beside = mails.message("1900", command="x")
    card = base64.encodebytes(b"[UserChoices]\nJobName=x\n")
    raw = mails.mail([leftover, start, beside], [("config.card.base64", card)])
    found = mail.parse(raw).items
    assert [item.undecodable for item in found] == [""] * 4
    derived = found[3].message
    parent = msgspec.json.decode(start)
    assert derived is not None
    assert derived.type == "simulation.card"
    assert derived.simulation == parent["simuid"]
    assert derived.uid == found[3].uid_hint == str(uuid.uuid5(uuid.UUID(parent["msgUID"]), "0"))
    assert derived.fields["card"] == "[UserChoices]\nJobName=x\n"
    assert derived.fields["name"] == "config.card"


def test_files_that_name_their_message_belong_to_it_and_others_have_a_reason() -> None:
    one, two = mails.message("7100"), mails.message("7100")
    uid = msgspec.json.decode(one)["msgUID"]
    found = mail.parse(mails.mail([one, two], [(f"{uid}.json", b"{}"), ("b.json", b"{}")])).items
    first, second = (msgspec.json.decode(item.raw) for item in found[2:])
    assert [first["msgParent"], second["msgParent"]] == [uid, msgspec.json.decode(two)["msgUID"]]
    assert reasons(mails.mail([], [("a.json", b"{}")])) == ["no_parent"]


def test_a_file_that_is_no_text_is_kept_in_base64() -> None:
    found = mail.parse(mails.mail([mails.message("7010")], [("page.gz", b"\x1f\x8b\xff")])).items
    assert found[1].message is not None
    assert found[1].message.fields["base64"] == "H4v/"


def test_a_signature_covers_the_lines_and_only_its_holder_can_make_it() -> None:
    sent = [mails.message("1000"), mails.message("1100")]
    header = {"Chappe-Signature": mail.sign(mails.lines(sent), TOKEN)}
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    letter = mail.parse(mails.mail(sent, headers=header))
    assert letter.signature is not None
    assert letter.signature.prefix == "abcdefabcdef"
    assert mail.genuine(letter, digest)
    assert not mail.genuine(letter, hashlib.sha256(b"other").hexdigest())
    assert not mail.genuine(mail.parse(mails.mail(sent[:1], headers=header)), digest)
    assert not mail.genuine(mail.parse(mails.mail(sent)), digest)


def bomb(depth: int) -> bytes:
    """Multiparts in multiparts."""
    opening = b"".join(
        b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (n, n)
        for n in range(depth)
    )
    return opening + b"\r\nx"


BOMBS = {
    "too_deep": bomb(5_000),
    "too_many_parts": b"Content-Type: multipart/mixed; boundary=b\r\n\r\n"
    + b"--b\r\n\r\nx\r\n" * 10_000,
    "too_many_lines": b"Subject: x\r\n\r\n" + b"x\n" * 2_000_000,
    "headers": b"X: " + b"a" * 5_000_000 + b"\r\n\r\nx",
    "too_large": b"Subject: x\r\n\r\n" + b"x" * limits.MAIL_BYTES,
}


@pytest.mark.parametrize("reason", BOMBS)
def test_a_bomb_is_one_item_with_its_reason(reason: str) -> None:
    raw = BOMBS[reason]
    begin = time.process_time()
    (item,) = mail.parse(raw).items
    assert (item.undecodable, item.raw) == (reason, raw)
    # Linear work: a quadratic reader needs minutes for these.
    assert time.process_time() - begin < 20


def test_headers_of_many_short_pieces_cost_little() -> None:
    many = b"".join(b' filename*%d="x";\r\n' % n for n in range(3_000))
    raw = b"Content-Disposition: attachment;\r\n" + many + b"\r\n\r\nx"
    begin = time.process_time()
    assert len(mail.parse(raw).items) == 1
    assert time.process_time() - begin < 20
