"""What a broker passes on, the library must be able to read: else one message would stop all others."""

from __future__ import annotations

import struct
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import base, commands, decode

from chappe.bus import amqp_frames

WHEN = datetime(2016, 4, 15, 20, 5, 35, tzinfo=UTC)
SECONDS = int(WHEN.timestamp())


@pytest.fixture(autouse=True)
def installed() -> None:
    amqp_frames.install()


@pytest.mark.parametrize("unit", [1, 10**3, 10**6, 10**9])
def test_times_are_seconds_or_finer(unit: int) -> None:
    assert decode.by_type(struct.pack(">Q", SECONDS * unit), "timestamp") == (8, WHEN)


@given(st.integers(0, 2**64 - 1))
def test_any_time_is_one(number: int) -> None:
    assert amqp_frames.time_of(number).tzinfo is UTC


@given(st.binary(max_size=40), st.binary(max_size=20), st.binary(max_size=40))
def test_texts_and_headers_need_not_be_text(uid: bytes, name: bytes, value: bytes) -> None:
    header = bytes([len(name)]) + name + b"S" + struct.pack(">I", len(value)) + value
    table = struct.pack(">I", len(header)) + header
    properties = commands.Basic.Properties()
    assert isinstance(properties, base.BasicProperties)
    flags = properties.flags["headers"] | properties.flags["message_id"]
    properties.unmarshal(flags, table + bytes([len(uid)]) + uid)
    assert properties.message_id == uid.decode(errors="replace")
    assert isinstance(properties.headers, dict)


@given(st.binary(max_size=60))
def test_broken_headers_are_called_unreadable(inside: bytes) -> None:
    table = struct.pack(">I", len(inside)) + inside
    consumed, headers = decode.by_type(table, "table")
    assert consumed == len(table)
    assert isinstance(headers, dict)
