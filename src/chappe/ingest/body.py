"""The messages in the body of a request: one JSON object, a list, lines, or CloudEvents; perhaps gzipped.

Each message is the very bytes that were sent, cut out and not written anew.
"""

from __future__ import annotations

import zlib

import msgspec

from chappe.core import limits
from chappe.core.errors import Invalid, TooLarge
from chappe.store.journal import Item, item

_LINES = frozenset({"application/x-ndjson", "application/ndjson", "application/jsonl"})
_WHOLE = frozenset(
    {"", "application/json", "application/cloudevents+json", "application/cloudevents-batch+json"}
)
#: A mail, as it came.
MAIL = "message/rfc822"
#: What the document of the interface says of the body.
MEDIA = (*sorted(_WHOLE - {""}), *sorted(_LINES), MAIL)
#: A list with more commas than this is refused before it is taken apart: each of its elements costs memory.
COMMAS = 1_000_000

_split = msgspec.json.Decoder(list[msgspec.Raw]).decode


def is_mail(media: str) -> bool:
    """Whether a body of this type is a mail: `chappe.ingest.mail` takes it apart."""
    return media.partition(";")[0].strip().lower() == MAIL


def items(body: bytes, media: str, encoding: str) -> list[Item]:
    """Decode a body. What is no message is an item all the same, so that it is kept.

    Raises Invalid for another form than those above, TooLarge when there are too many messages, one is too
    large, or all are once they are inflated.
    """
    kind = media.partition(";")[0].strip().lower()
    if kind not in _WHOLE and kind not in _LINES:
        raise Invalid(
            f"messages cannot be of the type {kind[:60]!r}: send one of {', '.join(MEDIA)}",
            field="content-type",
        )
    body = _inflated(body, encoding.strip().lower())
    found = _lines(body) if kind in _LINES else _values(body)
    if len(found) > limits.MESSAGES_PER_ARRIVAL:
        raise _too_many(len(found))
    for raw in found:
        if len(raw) > limits.MESSAGE_BYTES:
            raise TooLarge(
                f"a message has {len(raw)} bytes, the limit is {limits.MESSAGE_BYTES}", field="body"
            )
    return [item(raw) for raw in found]


def _inflated(body: bytes, encoding: str) -> bytes:
    if encoding in ("", "identity"):
        return body
    if encoding != "gzip":
        raise Invalid(
            f"a body cannot be encoded as {encoding[:60]!r}: gzip, or not at all",
            field="content-encoding",
        )
    most = limits.MESSAGES_BODY_BYTES
    inflater = zlib.decompressobj(wbits=31)
    try:
        found = inflater.decompress(body, most + 1)
    except zlib.error as e:
        raise Invalid(f"the body is not gzip: {e}", field="body", code="malformed") from None
    if len(found) > most:
        raise TooLarge(
            f"inflated, the body has more than {most // limits.MIB} MiB: send less at a time",
            field="body",
        )
    if not inflater.eof or inflater.unused_data:
        raise Invalid("the body is not one whole gzip member", field="body", code="malformed")
    return found


def _lines(body: bytes) -> list[bytes]:
    if body.count(b"\n") > 2 * limits.MESSAGES_PER_ARRIVAL:
        raise _too_many(body.count(b"\n"))
    return [line for raw in body.split(b"\n") if (line := raw.strip())]


def _values(body: bytes) -> list[bytes]:
    body = body.strip()
    if not body:
        raise Invalid("the body is empty: send a message", field="body", code="malformed")
    if not body.startswith(b"["):
        return [body]
    if body.count(b",") > COMMAS:
        raise TooLarge(f"a list with more than {COMMAS} values in all: send less", field="body")
    try:
        return [bytes(raw) for raw in _split(body)]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise Invalid(f"the list is not JSON: {e}", field="body", code="malformed") from None


def _too_many(count: int) -> TooLarge:
    return TooLarge(
        f"{count} messages at once, the limit is {limits.MESSAGES_PER_ARRIVAL}", field="body"
    )
