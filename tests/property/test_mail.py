"""The reader of mails never fails, loses nothing and stays within its limits, whatever bytes it is given."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from chappe.core import limits
from chappe.ingest import mail
from chappe.testing import mails

#: Bytes that mean something to a reader of mail, put together at random.
PIECES = st.sampled_from(
    [
        b"\r\n",
        b"\n",
        b"\r",
        b" ",
        b"=",
        b"--b",
        b"--",
        b"Content-Type: multipart/mixed; boundary=b\r\n",
        b'Content-Type: multipart/mixed; boundary="',
        b"Content-Type: text/plain; charset=utf-8\r\n",
        b"Content-Transfer-Encoding: base64\r\n",
        b"Content-Transfer-Encoding: quoted-printable\r\n",
        b'Content-Disposition: attachment; filename="config.card.base64"\r\n',
        b"Content-Disposition: attachment; filename*=x''%ff\r\n",
        b"Content-Disposition: attachment; filename*0=a; filename*9999=b\r\n",
        b"Chappe-Signature: v1 prefix=a hmac=b\r\n",
        b"Message-ID: \xff\x00\r\n",
        *mails.lines([mails.message("0000"), mails.message("7100")]),
    ]
)
WEIRD = st.lists(PIECES | st.binary(max_size=40), max_size=60).map(b"".join)


@given(WEIRD)
def test_any_bytes_become_items(raw: bytes) -> None:
    letter = mail.parse(raw)
    assert letter.items
    for item in letter.items:
        assert (item.message is None) == bool(item.undecodable)
    assert mail.parse(raw) == letter


MESSAGES = st.lists(
    st.builds(
        mails.message,
        st.sampled_from(["1000", "1001", "1100", "1900", "7000", "9000", "77"]),
        command=st.text(max_size=300) | st.just("x" * 2_000),
    ),
    min_size=1,
    max_size=20,
)
FILES = st.lists(
    st.tuples(st.from_regex(r"[a-z]{1,8}\.json", fullmatch=True), st.binary(max_size=200)),
    max_size=5,
)


@given(MESSAGES, FILES, st.sampled_from(["7bit", "quoted-printable", "base64"]))
def test_what_is_sent_is_what_is_read(
    sent: list[bytes], files: list[tuple[str, bytes]], encoding: str
) -> None:
    raw = mails.mail([*sent, mails.message("7100")], files, encoding=encoding)
    found = mail.parse(raw).items
    assert [item.raw for item in found[: len(sent)]] == sent
    assert len(found) == len(sent) + 1 + len(files)
    uids = [item.uid_hint if item.message is None else item.message.uid for item in found]
    assert all(uids)
    assert len(set(uids)) == len(uids)
    assert mail.parse(raw).items == found


@given(st.integers(0, limits.MAIL_PARTS * 2), st.integers(0, 3))
def test_the_number_of_parts_is_bounded(parts: int, lines: int) -> None:
    part = b"--b\r\n\r\n" + b"x\r\n" * lines
    raw = b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + part * parts + b"--b--\r\n"
    found = mail.parse(raw).items
    if parts >= limits.MAIL_PARTS:
        assert [item.undecodable for item in found] == ["too_many_parts"]
    else:
        assert len(found) == max(1, parts * lines)
