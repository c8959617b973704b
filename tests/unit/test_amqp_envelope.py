"""From what a broker delivers to messages: every form that producers use, and anything at all."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chappe.bus.amqp_envelope import LINES, Delivery, items
from chappe.core.messages import Message
from chappe.store.journal import item

UID = "d2a6c0b4-6e1f-4f7a-b3c8-1e5a9d8fc003"
SIMULATION = "7c1d5a52-90f4-4d0b-9a51-0c8e2f4be001"
JOB = "5f0a9f5e-2c3d-4be8-8a4d-9d1f6a7cb002"
FULL = {
    "msgApplication": "monitoring",
    "simuid": SIMULATION,
    "jobuid": JOB,
    "msgCode": "7000",
    "msgUID": UID,
    "msgTimestamp": "2016-04-15T22:05:35.960533073+0200",
    "actionName": "IGCM_sys_Cp",
}
AT_NS = 1_460_750_735_960_533_073
PAYLOAD = {"actionName": "IGCM_sys_Cp"}


def encode(thing: Any) -> bytes:
    return json.dumps(thing).encode()


def one(delivery: Delivery) -> Message:
    (found,) = items(delivery)
    assert found.message is not None, found.words
    # The journal holds all of it: its bytes alone say the same.
    assert item(found.raw).message == found.message
    return found.message


def test_bytes_are_kept_as_they_came() -> None:
    raw = b" " + encode(FULL) + b"\n"
    (found,) = items(Delivery(raw, "application/json", uid="another", type="0000"))
    assert found.raw == raw
    assert found.message is not None
    assert (found.message.uid, found.message.code, found.message.at_ns) == (UID, "7000", AT_NS)


@pytest.mark.parametrize(
    "kind", ["application/base64", "application/base64+json", "Application/Base64;x=1"]
)
def test_base64_is_unwrapped(kind: str) -> None:
    raw = encode(FULL)
    wrapped = base64.encodebytes(raw)
    assert b"\n" in wrapped.strip()
    for body in (base64.b64encode(raw), wrapped):
        (found,) = items(Delivery(body, kind))
        assert found.raw == raw
    two = base64.b64encode(raw) + b"\n" + base64.b64encode(encode(FULL | {"msgUID": "2"})) + b"\n"
    assert [i.message and i.message.uid for i in items(Delivery(two, kind))] == [UID, "2"]


@pytest.mark.parametrize(
    ("headers", "at"),
    [
        ({"timestamp_raw": "2016-04-15T22:05:35.960533073+0200"}, None),
        ({"timestamp": "2016-04-15T20:05:35.960533073Z"}, datetime(2020, 1, 1, tzinfo=UTC)),
    ],
)
def test_what_only_the_envelope_says_is_put_into_the_message(
    headers: dict[str, str], at: datetime | None
) -> None:
    told = {
        "producer_id": "libigcm",
        "producer_version": "2.8.1",
        "correlation_id_1": SIMULATION,
        "correlation_id_2": JOB,
    }
    found = one(Delivery(encode(PAYLOAD), "", UID, "7000", "monitoring", "u", at, told | headers))
    assert (found.uid, found.code, found.simulation, found.job) == (UID, "7000", SIMULATION, JOB)
    assert (found.at_ns, found.producer, found.version) == (AT_NS, "libigcm", "2.8.1")
    assert found.fields == PAYLOAD


def test_the_envelopes_time_is_the_last_resort() -> None:
    at = datetime(2016, 4, 15, 20, 5, 35, 960533, tzinfo=UTC)
    headers = {"correlation_id_1": SIMULATION, "correlation_id_2": JOB}
    found = one(Delivery(b"{}", "", UID, "7000", at=at, headers=headers))
    assert found.at_ns == AT_NS - AT_NS % 1000


def test_a_native_type_is_no_code() -> None:
    headers = {"correlation_id_1": SIMULATION, "timestamp_raw": "2016-04-15T20:05:35Z"}
    assert one(Delivery(b"{ }", "", UID, "heartbeat", headers=headers)).type == "heartbeat"


def test_what_the_message_says_itself_wins() -> None:
    body = encode({k: v for k, v in FULL.items() if k != "msgUID"})
    found = one(Delivery(body, "", UID, "0000", headers={"correlation_id_1": "other"}))
    assert (found.uid, found.code, found.simulation) == (UID, "7000", SIMULATION)


@pytest.mark.parametrize("lines", [True, False])
def test_envelopes(lines: bool) -> None:
    each = [encode(FULL | {"msgUID": f"u{n}"}) for n in range(100)]
    body = b"\n".join(each) + b"\n" if lines else b"[" + b", ".join(each) + b"]"
    found = items(Delivery(body, LINES if lines else "application/json"))
    assert [i.raw for i in found] == each
    assert all(i.message for i in found)


def test_a_bad_message_in_an_envelope_spoils_no_other() -> None:
    body = b"\n".join([encode(FULL), b"{not json", encode(FULL | {"msgUID": "2"})])
    assert [i.undecodable for i in items(Delivery(body, LINES))] == ["", "not_json", ""]


@pytest.mark.parametrize(
    ("body", "kind", "reason"),
    [
        (b"%%%", "application/base64", "not_decoded"),
        (b"[{]", "application/json", "not_decoded"),
        (b"", "application/json", "empty"),
        (b"[]", "application/json", "empty"),
        (b"\xff\xfe", "application/json", "not_json"),
        (b"[" + b"1," * 10_000 + b"1]", "application/json", "too_many"),
    ],
)
def test_what_cannot_be_read_is_kept_with_its_reason(body: bytes, kind: str, reason: str) -> None:
    (found,) = items(Delivery(body, kind, UID))
    assert (found.raw, found.undecodable, found.uid_hint) == (body, reason, UID)
    assert found.words


KINDS = st.sampled_from(["", "application/json", LINES, "application/base64", "text/plain"])
HEADERS = st.dictionaries(
    st.sampled_from(["timestamp", "timestamp_raw", "correlation_id_1", "producer_id"]),
    st.one_of(st.text(), st.binary(), st.integers(), st.none(), st.datetimes()),
)
BODIES = st.one_of(
    st.binary(max_size=200),
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.text()),
        lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)),
    ).map(encode),
)


@given(BODIES, KINDS, st.text(), st.text(), HEADERS)
def test_nothing_that_is_delivered_raises_or_is_dropped(
    body: bytes, kind: str, uid: str, type: str, headers: dict[str, Any]
) -> None:
    found = items(Delivery(body, kind, uid, type, headers=headers))
    assert found
    for each in found:
        assert (each.message is None) == bool(each.undecodable)
        assert item(each.raw).message == each.message
