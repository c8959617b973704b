"""Whatever bytes come: a message or a reason, and what was written by echo is read."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone

from hypothesis import given
from hypothesis import strategies as st

from chappe.core import timestamps
from chappe.core.messages import Mark, Message, Reason, Undecodable, decode, received

UIDS = {"msgUID": "u", "msgProducer": "libigcm", "msgProducerVersion": "2.8.1", "msgCode": "7000"}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=10,
)
STANDARD = [
    "UID",
    "Code",
    "Type",
    "Timestamp",
    "Producer",
    "ProducerVersion",
    "Stream",
    "Seq",
    "Prev",
]
NAMES = st.sampled_from([*(f"msg{name}" for name in STANDARD), "simuid", "jobuid", "name"])
WORDS = st.sampled_from(
    ["", "null", "N/A", "0000", "1100", "9000", "chappe", "job.ended", "2016-04-15T22:05:35Z"]
)


def outcome(raw: bytes) -> Message | Reason:
    try:
        return decode(raw)
    except Undecodable as e:
        return e.reason


def holds(found: Message | Reason) -> None:
    """What every reader may rely on."""
    if isinstance(found, Reason):
        return
    assert found.uid
    assert found.code or found.type
    assert -(2**63) <= found.at_ns < 2**63
    assert 0 <= found.seq < 2**63
    json.dumps(found.fields).encode()
    texts = [found.uid, found.code, found.type, found.simulation, found.job, found.at_raw]
    for text in texts:
        assert "\0" not in text
        text.encode()
        assert len(text) <= 200
    received(found, 0)


@given(st.binary(max_size=300))
def test_any_bytes(raw: bytes) -> None:
    holds(outcome(raw))


@given(st.dictionaries(NAMES, WORDS | JSON))
def test_any_object(fields: dict[str, object]) -> None:
    holds(outcome(json.dumps(fields).encode()))
    holds(outcome(json.dumps(UIDS | fields, ensure_ascii=False).encode(errors="replace")))


@given(st.dictionaries(NAMES, WORDS), st.data())
def test_any_damage(fields: dict[str, object], data: st.DataObject) -> None:
    raw = bytearray(json.dumps(UIDS | fields).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
        if not raw:
            break
    holds(outcome(bytes(raw)))


@given(
    st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="\\:"), max_size=40),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters='"\\\n\0'), max_size=40),
)
def test_what_echo_wrote_is_read(quoted: str, plain: str) -> None:
    """Quotes within a value: all other fields come through, and so does the value."""
    head = json.dumps(UIDS)[1:-1]
    plain = "".join(c for c in plain if c >= " ")
    raw = f'{{{head},"dirFrom":"{quoted}","dirTo":"{plain}"}}'.encode()
    found = decode(raw)
    assert found.fields == {"dirFrom": quoted, "dirTo": plain}
    assert found.marks[:-1] == ((Mark.REPAIRED,) if '"' in quoted else ())


@given(
    st.datetimes(datetime(1678, 1, 2), datetime(2261, 12, 30)),  # noqa: DTZ001 - the offset is drawn
    st.integers(-1439, 1439),
    st.integers(0, 999),
    st.sampled_from(["", ":"]),
)
def test_times_agree_with_the_standard_library(
    at: datetime, minutes: int, below_us: int, colon: str
) -> None:
    zoned = at.replace(tzinfo=timezone(timedelta(minutes=minutes)))
    sign, (hours, rest) = "-" if minutes < 0 else "+", divmod(abs(minutes), 60)
    text = f"{at:%Y-%m-%dT%H:%M:%S}.{at.microsecond:06d}{below_us:03d}{sign}{hours:02d}{colon}{rest:02d}"
    since = zoned - datetime(1970, 1, 1, tzinfo=UTC)
    expected = (since // timedelta(microseconds=1)) * 1000 + below_us
    assert timestamps.parse(text) == (expected, True)


@given(
    st.text(max_size=60) | st.from_regex(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d{4})?")
)
def test_any_text_is_a_time_or_a_value_error(text: str) -> None:
    try:
        ns, _ = timestamps.parse(text)
    except ValueError:
        return
    assert -(2**63) <= ns < 2**63
