"""Messages that came as CloudEvents (1.0, structured), and the one way to read whatever was stored.

An event's `id` is the message's uid, `type` its type, `time` its time, `subject` its simulation and `data`
its payload; the extension attributes `jobuid`, `stream`, `seq` and `prev` are the fields of those names. What
is stored is the event as it came, so reading it again gives the same message.
"""

from __future__ import annotations

from typing import Any

import msgspec

from chappe.core.messages import Message, Reason, Undecodable, decode

_STANDARD = {
    "id": "msgUID",
    "type": "msgType",
    "time": "msgTimestamp",
    "subject": "simuid",
    "source": "msgProducer",
    "jobuid": "jobuid",
    "stream": "msgStream",
    "seq": "msgSeq",
    "prev": "msgPrev",
}
_decode = msgspec.json.Decoder().decode


def read(raw: bytes) -> Message:
    """The message in bytes of the journal, in either form. Raises Undecodable."""
    if b'"specversion"' in raw:
        try:
            event = _decode(raw)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return decode(raw)
        if isinstance(event, dict) and "msgUID" not in event and "specversion" in event:
            return decode(msgspec.json.encode(fields_of(event)))
    return decode(raw)


def fields_of(event: dict[str, Any]) -> dict[str, Any]:
    """An event as the object of a message. Raises Undecodable: `not_an_object` when its data is no object."""
    data = event.get("data")
    if data is not None and not isinstance(data, dict):
        raise Undecodable(Reason.NOT_AN_OBJECT, "the data of a CloudEvents event must be an object")
    own = {k: v for k, v in (data or {}).items() if k[:3] != "msg" and k not in _STANDARD.values()}
    return own | {name: event[key] for key, name in _STANDARD.items() if key in event}
