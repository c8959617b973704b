"""Messages in the body of a request: each as it was sent, and bounds on everything."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chappe.core import limits
from chappe.core.errors import Invalid, TooLarge
from chappe.ingest.body import items
from chappe.store.journal import Item

ONE = b'{ "msgUID" : "a", "msgType":"log",  "x": 1.50 }'
TWO = b'{"msgType":"log","msgUID":"b"}'
EVENT = {
    "specversion": "1.0",
    "id": "e1",
    "source": "model",
    "type": "job.period",
    "time": "2026-01-02T03:04:05.000000006Z",
    "subject": "sim",
    "jobuid": "job",
    "stream": "f",
    "seq": 3,
    "data": {"PeriodDateEnd": "18500131", "msgUID": "not this", "simuid": "nor this"},
}


def raws(body: bytes, media: str = "application/json", encoding: str = "") -> list[bytes]:
    return [i.raw for i in items(body, media, encoding)]


def test_bytes_are_kept_as_they_were_sent() -> None:
    assert raws(ONE) == [ONE]
    assert raws(b" [" + ONE + b" ,\n" + TWO + b"] ") == [ONE, TWO]
    assert raws(ONE + b"\r\n\n" + TWO + b"\n", "application/x-ndjson; charset=utf-8") == [ONE, TWO]
    assert raws(gzip.compress(ONE), encoding="gzip") == [ONE]
    assert raws(b"[]") == []


def test_what_is_no_message_is_an_item_all_the_same() -> None:
    (bad, good) = items(b"{broken\n" + TWO, "application/jsonl", "")
    assert (bad.raw, bad.message, bad.undecodable) == (b"{broken", None, "not_json")
    assert good.message is not None


@pytest.mark.parametrize("many", [False, True])
def test_cloudevents_are_read_and_kept_as_they_came(many: bool) -> None:
    raw = json.dumps(EVENT).encode()
    media = f"application/cloudevents{'-batch' if many else ''}+json"
    (found,) = items(b"[" + raw + b"]" if many else raw, media, "")
    assert found.raw == raw
    m = found.message
    assert m is not None
    assert (m.uid, m.type, m.simulation, m.job) == ("e1", "job.period", "sim", "job")
    assert (m.stream, m.seq, m.producer) == ("f", 3, "model")
    assert m.at_ns % 1_000_000_000 == 6
    assert m.fields == {"PeriodDateEnd": "18500131"}


@pytest.mark.parametrize("data", ["text", [1], 5])
def test_an_event_whose_data_is_no_object_is_no_message(data: Any) -> None:
    (found,) = items(json.dumps(EVENT | {"data": data}).encode(), "", "")
    assert found.undecodable == "not_an_object"


@pytest.mark.parametrize(
    ("body", "media", "encoding", "field"),
    [
        (ONE, "application/x-www-form-urlencoded", "", "content-type"),
        (ONE, "application/json", "br", "content-encoding"),
        (b"not gzip", "application/json", "gzip", "body"),
        (gzip.compress(ONE)[:-3], "application/json", "gzip", "body"),
        (gzip.compress(ONE) + b"more", "application/json", "gzip", "body"),
        (b"", "application/json", "", "body"),
        (b"[{}", "application/json", "", "body"),
        (b"[" * 100_000, "application/json", "", "body"),
    ],
    ids=["media", "encoding", "not gzip", "cut", "more", "empty", "half a list", "deep"],
)
def test_other_forms_are_refused(body: bytes, media: str, encoding: str, field: str) -> None:
    with pytest.raises(Invalid) as caught:
        items(body, media, encoding)
    assert caught.value.field == field


def bomb() -> bytes:
    """A thousand times what may be inflated, in a few hundred kilobytes."""
    deflater = zlib.compressobj(9, zlib.DEFLATED, 31)
    piece = b" " * (limits.MESSAGES_BODY_BYTES // 4)
    return b"".join(deflater.compress(piece) for _ in range(20)) + deflater.flush()


@pytest.mark.parametrize(
    ("body", "media", "encoding"),
    [
        (bomb(), "application/json", "gzip"),
        (b"[" + b"1," * 1_100_000 + b"1]", "application/json", ""),
        (b"[" + b"{}," * limits.MESSAGES_PER_ARRIVAL + b"{}]", "application/json", ""),
        (b"{}\n" * (limits.MESSAGES_PER_ARRIVAL + 1), "application/x-ndjson", ""),
        (b"\n" * 10_000_000, "application/x-ndjson", ""),
        (b'{"msgUID":"' + b"x" * limits.MESSAGE_BYTES + b'"}', "application/json", ""),
    ],
    ids=["bomb", "commas", "values", "lines", "empty lines", "one"],
)
def test_everything_is_bounded(body: bytes, media: str, encoding: str) -> None:
    with pytest.raises(TooLarge):
        items(body, media, encoding)


@given(st.binary(max_size=200), st.sampled_from(["", "application/x-ndjson"]))
def test_any_bytes_are_items_or_an_error_that_says_why(body: bytes, media: str) -> None:
    refusal = ""
    found: list[Item] = []
    try:
        found = items(body, media, "")
    except Invalid as e:
        refusal = e.field or ""
    assert refusal in ("", "body")
    assert all((i.message is None) == bool(i.undecodable) for i in found)
