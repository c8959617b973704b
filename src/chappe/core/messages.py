"""A message: what a simulation (or any producer) tells, decoded from its bytes.

The bytes are a JSON object in the shape of libIGCM: fields that begin with `msg`, and `simuid` and `jobuid`,
are standard; all else is payload. Natively written messages have the same shape and say more (`msgType`,
`msgStream`, `msgSeq`, `msgPrev`), so one decoder reads whatever a transport carries.

Decoding never guesses in silence. What had to be mended carries a mark, and what cannot be read is
Undecodable with one of a few reasons; its bytes are kept, so it can be decoded again by a better version.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Any

import msgspec

from chappe.core import limits, timestamps
from chappe.core.vocabulary import BY_CODE, BY_CODE_2014, BY_TYPE, Phase, Scope, kind_of


class Reason(StrEnum):
    """Why bytes are no message."""

    TOO_LARGE = "too_large"
    NOT_JSON = "not_json"
    NOT_AN_OBJECT = "not_an_object"
    NO_UID = "no_uid"
    NO_CODE = "no_code"
    NO_SIMULATION = "no_simulation"
    NO_JOB = "no_job"
    BAD_TIMESTAMP = "bad_timestamp"
    TOO_LONG = "too_long"


class Undecodable(Exception):
    """These bytes are no message: `reason` says why to programs, `message` to people."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class Mark(StrEnum):
    """What a reader of a message should know of it."""

    REPAIRED = "repaired"  # its JSON was broken, and mended as libIGCM's own server did
    NOT_UTF8 = "not_utf8"  # its text was taken for Latin-1
    NUL = "nul"  # it held NUL characters, shown as U+FFFD
    NO_TIME = "no_time"
    NO_OFFSET = "no_offset"  # its time was taken for UTC
    BAD_SEQ = "bad_seq"  # a stream without a usable number
    CLOCK_SUSPECT = "clock_suspect"  # it is from the future: sorted last


class Message(msgspec.Struct, frozen=True, gc=False):
    """One message. Absent texts are empty; `at_ns` (since 1970) and `seq` are then 0.

    `code` and `type` are two names of one kind (`core.vocabulary`); at least one is set. `fields` is the
    payload, as it was sent.
    """

    uid: str
    code: str
    type: str
    simulation: str
    job: str
    at_ns: int
    at_raw: str
    producer: str
    version: str
    stream: str
    seq: int
    prev: str
    dialect: str
    marks: tuple[str, ...]
    fields: dict[str, Any]

    @property
    def phase(self) -> Phase:
        """Where it stands among messages of the same time."""
        return kind_of(self.type).phase

    def text(self, name: str) -> str | None:
        """A payload field as text; None when it is absent, empty, or one of libIGCM's words for that."""
        return text_or_none(self.fields.get(name))


def text_or_none(value: object) -> str | None:
    """A value of a message as text; None for null, "", "null", "N/A", and for lists and objects."""
    text = _text(value)
    return None if text in ("", "null", "N/A") else text


_decode = msgspec.json.Decoder().decode

_PAIR = re.compile(r'\s*"(\w+)"\s*:\s*"(.*?)"(?=\s*,\s*"\w+"\s*:\s*"|\s*\}\s*$)\s*[,}]', re.DOTALL)
_CONTROLS = dict.fromkeys(range(32), " ")
_FIELD_CHARS = {"msgUID": 200, "msgCode": 100, "msgType": 100, "simuid": 200, "jobuid": 200}
_OTHER_CHARS = 200

#: A message of these kinds changes the state of a job, and must name it, unless it is natively written: then
#: a simulation without jobs is one by itself.
_OF_A_JOB = frozenset({Scope.COMPUTE, Scope.POST, Scope.CHECKER})
_LIFE = frozenset({Phase.START, Phase.END, Phase.FATAL})
_OWN = frozenset({"simuid", "jobuid"})


def decode(raw: bytes) -> Message:
    """The message in these bytes. Raises Undecodable."""
    if len(raw) > limits.MESSAGE_BYTES:
        raise Undecodable(
            Reason.TOO_LARGE,
            f"it has {len(raw)} bytes; a message has at most {limits.MESSAGE_BYTES}",
        )
    marks: tuple[str, ...] = ()
    try:
        found = _decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        found, marks = _repaired(raw)
    if type(found) is not dict:
        raise Undecodable(Reason.NOT_AN_OBJECT, "it is JSON, but not an object")
    if rb"\u0000" in raw:
        found, marks = _without_nul(found), (*marks, Mark.NUL)
    return from_fields(found, marks)


def from_fields(fields: dict[str, Any], marks: tuple[str, ...] = ()) -> Message:
    """The message of an object that was decoded already. Raises Undecodable."""
    get = fields.get
    uid = _standard(get, "msgUID")
    if not uid:
        raise Undecodable(Reason.NO_UID, "it has no msgUID, by which it could be told from others")
    code, type = _standard(get, "msgCode"), _standard(get, "msgType")
    if len(code) < 4 and code.isdigit():
        code = code.zfill(4)  # sent as a number
    if not (code or type):
        raise Undecodable(Reason.NO_CODE, "it has neither a msgCode nor a msgType")
    producer, version = _standard(get, "msgProducer"), _standard(get, "msgProducerVersion")
    if type or producer == "chappe":
        dialect, kind = "chappe", BY_TYPE.get(type) or BY_CODE.get(code)
    elif version:
        dialect, kind = "2.8", BY_CODE.get(code)
    else:
        dialect, kind = "2014", BY_CODE_2014.get(code)
    simulation, job = _standard(get, "simuid"), _standard(get, "jobuid")
    if kind is not None:
        type = type or kind.type
        code = code or kind.code
        if kind.scope and not simulation:
            raise Undecodable(Reason.NO_SIMULATION, f"a message {code or type} names a simuid")
        if kind.scope in _OF_A_JOB and kind.phase in _LIFE and not job and dialect != "chappe":
            raise Undecodable(Reason.NO_JOB, f"a message {code or type} names a jobuid")
    at_raw = _standard(get, "msgTimestamp")
    at_ns = 0
    if at_raw:
        try:
            at_ns, has_offset = timestamps.parse(at_raw)
        except ValueError as e:
            raise Undecodable(Reason.BAD_TIMESTAMP, f"msgTimestamp: {e}") from None
        if not has_offset:
            marks = (*marks, Mark.NO_OFFSET)
    else:
        marks = (*marks, Mark.NO_TIME)
    stream, prev, seq = "", "", 0
    if "msgStream" in fields:
        stream, prev, seq = _standard(get, "msgStream"), _standard(get, "msgPrev"), _seq(fields)
        if stream and not seq:
            marks = (*marks, Mark.BAD_SEQ)
    payload = {k: v for k, v in fields.items() if k[:3] != "msg" and k not in _OWN}
    return Message(
        uid, code, type, simulation, job, at_ns, at_raw, producer, version,
        stream, seq, prev, dialect, marks, payload,
    )  # fmt: skip


def received(message: Message, received_ns: int) -> Message:
    """The same, marked if its time lies more than a day past that at which a door first saw it."""
    if message.at_ns <= received_ns + limits.CLOCK_AHEAD_NS or Mark.CLOCK_SUSPECT in message.marks:
        return message
    return msgspec.structs.replace(message, marks=(*message.marks, Mark.CLOCK_SUSPECT))


def _standard(get: Any, name: str) -> str:
    """A standard field as text, empty where libIGCM says that there is none."""
    value = get(name)
    if value is None:
        return ""
    text = value.strip() if type(value) is str else _text(value)
    if text in ("null", "N/A"):
        return ""
    if len(text) > _FIELD_CHARS.get(name, _OTHER_CHARS):
        raise Undecodable(Reason.TOO_LONG, f"its {name} has {len(text)} characters")
    return text


def _text(value: object) -> str:
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"{value:.17g}" if isinstance(value, float) or abs(value) > 1 << 63 else str(value)
    return ""


def _seq(fields: dict[str, Any]) -> int:
    """The number in its stream; 0 when it is none."""
    text = _standard(fields.get, "msgSeq")
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else 0


def _repaired(raw: bytes) -> tuple[Any, tuple[str, ...]]:
    """What broken JSON most likely said, and its marks. Raises Undecodable.

    libIGCM puts its JSON together without escaping, so a quote or a backslash in a path breaks it. As its
    own server did, all backslashes are dropped; what is left must be JSON, or pairs of texts one after
    the other, whose quotes within are told from those at their ends by what follows.
    """
    marks: tuple[str, ...] = (Mark.REPAIRED,)
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
        marks = (*marks, Mark.NOT_UTF8)
    text = text.removeprefix("\ufeff").translate(_CONTROLS)
    for attempt in (text, text.replace("\\", "")):
        try:
            return _decode(attempt), marks
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as e:
            error = e
    pairs = _pairs(text.replace("\\", ""))
    if pairs is None:
        raise Undecodable(Reason.NOT_JSON, f"it is not JSON: {error}") from None
    return pairs, marks


def _pairs(text: str) -> dict[str, str] | None:
    """The object of texts `{"name":"value",…}`, whatever quotes the values hold. Linear in its length."""
    text = text.strip()
    if not text.startswith("{"):
        return None
    at, found = 1, {}
    while at < len(text):
        pair = _PAIR.match(text, at)
        if pair is None:
            return None
        found[pair[1]] = pair[2]
        at = pair.end()
    return found or None


def _without_nul(value: Any) -> Any:
    """The same without NUL characters, which a database's texts cannot hold."""
    if isinstance(value, str):
        return value.replace("\0", "\ufffd")
    if isinstance(value, list):
        return [_without_nul(v) for v in value]
    if isinstance(value, dict):
        return {_without_nul(k): _without_nul(v) for k, v in value.items()}
    return value
