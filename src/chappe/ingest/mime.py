"""The parts of a mail: bytes in, bytes out, bounded in size, depth and number.

`email.parser` reads everything before one can say no: a few megabytes of nested or empty parts cost it
minutes, or its stack. Here a body is cut at its boundaries by searching, and only headers, which are short,
are given to the library.
"""

from __future__ import annotations

import base64
import binascii
import quopri
import re
from collections.abc import Iterator
from email.errors import HeaderParseError
from email.message import Message as Headers
from email.parser import BytesHeaderParser
from email.policy import compat32
from email.utils import parseaddr

import msgspec

from chappe.core import limits
from chappe.core.errors import ChappeError

_BLANK = re.compile(rb"(?:\A|\n)\r?\n")
_HEADERS = BytesHeaderParser(policy=compat32)
_SPACE = b" \t\r\n"


class BadMail(ChappeError):
    """A mail that is not taken apart; `reason` is a word for the quarantine."""

    status = 422
    default_code = "bad_mail"

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Part(msgspec.Struct, frozen=True):
    """A leaf of a mail: its bytes after transfer decoding. `name` is that of an attached file, or empty."""

    media: str
    name: str
    attached: bool
    content: bytes


class Mail(msgspec.Struct, frozen=True):
    """A mail's parts in their order, and the headers that matter here. What a mail does not say is empty."""

    message_id: str
    sender: str
    signature: str
    parts: tuple[Part, ...]


def read(raw: bytes) -> Mail:
    """The parts of a mail. Raises BadMail when it exceeds a limit, or cannot be cut."""
    if len(raw) > limits.MAIL_BYTES:
        raise BadMail("too_large", f"a mail has at most {limits.MAIL_BYTES} bytes")
    headers, body = _split(raw)
    room = [limits.MAIL_PARTS]
    parts = tuple(_leaves(headers, body, 0, room))
    return Mail(
        message_id=_text(headers, "message-id"),
        sender=parseaddr(_text(headers, "from"))[1],
        signature=_text(headers, "chappe-signature"),
        parts=parts,
    )


def _split(raw: bytes) -> tuple[Headers, bytes]:
    """Headers and body. Raises BadMail for headers that are too long."""
    blank = _BLANK.search(raw, 0, limits.MAIL_HEADER_BYTES)
    if blank is None and len(raw) > limits.MAIL_HEADER_BYTES:
        raise BadMail(
            "headers", f"the headers of a part have at most {limits.MAIL_HEADER_BYTES} bytes"
        )
    end = len(raw) if blank is None else blank.end()
    headers = _HEADERS.parsebytes(raw[:end])
    # A line that cannot be of a header ends the headers: it is of the body, with all that follows.
    early = str(headers.get_payload()).encode("utf-8", "surrogateescape")
    return headers, early + raw[end:]


def _leaves(headers: Headers, body: bytes, depth: int, room: list[int]) -> Iterator[Part]:
    """The leaves of a part. `room` holds how many more parts there may be."""
    room[0] -= 1
    if room[0] < 0:
        raise BadMail("too_many_parts", f"a mail has at most {limits.MAIL_PARTS} parts")
    media = headers.get_content_type()
    boundary = _boundary(headers) if media.startswith("multipart/") else b""
    if not boundary:
        name = _filename(headers)
        disposition = headers.get("content-disposition", "")
        attached = bool(name) or str(disposition).strip().lower().startswith("attachment")
        yield Part(media, name, attached, _decoded(headers, body))
        return
    if depth >= limits.MAIL_DEPTH:
        raise BadMail(
            "too_deep", f"the parts of a mail are nested at most {limits.MAIL_DEPTH} deep"
        )
    for piece in _pieces(body, boundary):
        yield from _leaves(*_split(piece), depth + 1, room)


def _pieces(body: bytes, boundary: bytes) -> Iterator[bytes]:
    """What stands between the delimiters of a multipart body; what is before and after them is no part."""
    delimiter = re.compile(rb"(?:\A|\r?\n)--" + re.escape(boundary) + rb"(--)?[ \t]*(?=\r?\n|\Z)")
    begin = None
    at = 0
    while (found := delimiter.search(body, at)) is not None:
        if begin is not None:
            yield body[begin : found.start()]
        if found.group(1):
            return
        # The end of a delimiter's line may begin the next delimiter: it is looked at again.
        at = found.end()
        begin = body.find(b"\n", at) + 1 or len(body)
    if begin is not None:
        yield body[begin:]


def _boundary(headers: Headers) -> bytes:
    """The boundary of a multipart; empty when it names none, and is a leaf then."""
    try:
        return (headers.get_boundary() or "").encode("ascii", "replace")
    except (HeaderParseError, ValueError, LookupError):
        return b""


def _filename(headers: Headers) -> str:
    try:
        name = headers.get_filename("")
    except (HeaderParseError, ValueError, LookupError):
        return "unreadable"
    return _shown(name)


def _text(headers: Headers, name: str) -> str:
    return _shown(str(headers.get(name, "")))


def _shown(text: str) -> str:
    """One short line of what a stranger wrote."""
    printable = "".join(c if c.isprintable() else " " for c in text[: limits.MAIL_TEXT_LENGTH])
    return " ".join(printable.split())


def _decoded(headers: Headers, body: bytes) -> bytes:
    """A part's bytes without their transfer encoding. What is not decodable stays as it came."""
    encoding = str(headers.get("content-transfer-encoding", "")).strip().lower()
    if encoding == "quoted-printable":
        return quopri.decodestring(body)
    if encoding == "base64":
        try:
            return base64.b64decode(body.translate(None, _SPACE), validate=True)
        except binascii.Error:
            return body
    return body
