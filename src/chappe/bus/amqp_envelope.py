"""Messages in what a broker delivers: one, or an envelope of many; with the envelope's properties or without.

Producers that follow libIGCM's specification may say in the properties of AMQP what others say in the
message: then the message is completed from them, in front of what it says itself, so that the journal holds
all of it and reads it again alone. Whatever cannot be read becomes an item that says why.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec

from chappe.store.journal import Item, item

LINES = "application/x-ndjson"
#: An envelope with more messages than this is kept as one item, to be looked at.
MOST = 10_000

_raws = msgspec.json.Decoder(list[msgspec.Raw]).decode
_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class Delivery(NamedTuple):
    """What was delivered: the properties that matter here, and the body."""

    body: bytes
    content_type: str = ""
    uid: str = ""
    type: str = ""
    app: str = ""
    user: str = ""
    at: datetime | None = None
    headers: Mapping[str, Any] = {}


def items(delivery: Delivery) -> list[Item]:
    """The messages of a delivery. Never raises, and never drops a byte."""
    kind = delivery.content_type.partition(";")[0].strip().lower()
    try:
        found = list(_split(delivery.body, kind))
    except ValueError as e:  # not base64; an array that is not JSON
        return [Item(delivery.body, None, "not_decoded", f"{kind}: {e}", delivery.uid)]
    if len(found) > MOST:
        words = f"an envelope of {len(found)} messages, the limit is {MOST}"
        return [Item(delivery.body, None, "too_many", words, delivery.uid)]
    if not found:
        return [Item(delivery.body, None, "empty", "there is no message in it", delivery.uid)]
    if len(found) > 1:
        return [item(raw) for raw in found]
    return [item(completed(found[0], delivery), delivery.uid)]


def _split(body: bytes, kind: str) -> Iterator[bytes]:
    """The bytes of each message."""
    if kind.startswith("application/base64"):
        body = _unwrapped(body)
    if kind == LINES or (kind.startswith("application/base64") and b"\n{" in body):
        yield from (line for line in map(bytes.strip, body.split(b"\n")) if line)
    elif body.lstrip()[:1] == b"[":
        yield from map(bytes, _raws(body))
    elif body.strip():
        yield body


def _unwrapped(body: bytes) -> bytes:
    """Base64, be it of one message in lines of 76, or a line for each message."""
    lines = body.split()
    try:
        each = [base64.b64decode(line, validate=True) for line in lines]
    except binascii.Error:
        return base64.b64decode(b"".join(lines), validate=True)
    if all(one.startswith(b"{") for one in each):
        return b"\n".join(each)
    return base64.b64decode(b"".join(lines), validate=True)


def completed(raw: bytes, delivery: Delivery) -> bytes:
    """A message with the standard fields that only its envelope told. Others are returned as they are."""
    if b'"msgUID"' in raw or b'"specversion"' in raw:
        return raw
    try:
        said = _object(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return raw
    missing = {k: v for k, v in _told(delivery).items() if v and k not in said}
    if not missing:
        return raw
    rest = raw.strip()[1:].lstrip()
    head = msgspec.json.encode(missing)[:-1]
    return head + (b"" if rest == b"}" else b",") + rest


def _told(delivery: Delivery) -> dict[str, str]:
    """What the properties say, in the fields of a message."""
    headers = delivery.headers
    stamp = _text(headers.get("timestamp_raw")) or _time(headers.get("timestamp"))
    code = delivery.type.lstrip("-").isdigit()
    return {
        "msgApplication": delivery.app,
        "msgProducer": _text(headers.get("producer_id")),
        "msgProducerVersion": _text(headers.get("producer_version")),
        "msgCode" if code else "msgType": delivery.type,
        "msgUID": delivery.uid,
        "msgTimestamp": stamp or _time(delivery.at),
        "simuid": _text(headers.get("correlation_id_1")),
        "jobuid": _text(headers.get("correlation_id_2")),
    }


def _text(value: object) -> str:
    if isinstance(value, bytes | bytearray):
        return value.decode(errors="replace")
    return value if isinstance(value, str) else ""


def _time(value: object) -> str:
    """A time as a message says it."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    return _text(value)
