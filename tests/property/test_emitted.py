"""Spool files of producers, cut, damaged and read in pieces: what is read was written, and nothing else."""

from __future__ import annotations

import hashlib
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from chappe.link import emitted

HEADER = b"chappe-spool 1 stream host boot 1 2 agent\n"
LINES = st.lists(st.binary(max_size=80).map(lambda b: b.replace(b"\n", b" ")), max_size=8)


def line(message: bytes) -> bytes:
    return hashlib.sha256(message).hexdigest().encode() + b" " + message + b"\n"


def spool(messages: list[bytes]) -> bytes:
    return HEADER + b"".join(map(line, messages))


def read_all(data: bytes, most: int) -> tuple[list[bytes], int]:
    """All messages, in pieces of at most `most`; and where the reader stands."""
    found: list[bytes] = []
    offset = 0
    while (piece := emitted.parse(data[offset:], offset, most)).end > offset:
        assert len(piece.messages) <= most
        found += piece.messages
        offset = piece.end
    return found, offset


@given(LINES, st.data())
def test_a_cut_file_is_read_up_to_its_last_whole_line(
    messages: list[bytes], data: st.DataObject
) -> None:
    whole = spool(messages)
    cut = data.draw(st.integers(0, len(whole)))
    found, offset = read_all(whole[:cut], data.draw(st.integers(1, 9)))
    assert found == messages[: len(found)]
    assert whole[:cut].rfind(b"\n") + 1 == offset
    assert len(found) == max(0, whole[:cut].count(b"\n") - 1)
    # And when the rest arrives, reading goes on with what was not read yet.
    assert found + emitted.parse(whole[offset:], offset).messages == messages


@given(LINES.filter(len), st.data())
def test_a_damaged_byte_costs_what_stands_in_its_line(
    messages: list[bytes], data: st.DataObject
) -> None:
    whole = bytearray(spool(messages))
    at = data.draw(st.integers(len(HEADER), len(whole) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    found = emitted.parse(bytes(whole), 0).messages
    ends = [len(HEADER)]
    for message in messages:
        ends.append(ends[-1] + len(line(message)))
    hit = next(n for n, (a, b) in enumerate(pairwise(ends)) if a <= at < b)
    # A line feed that is gone, or is new, reaches into the neighbour.
    spared = [m for n, m in enumerate(messages) if n not in (hit, hit + 1)]
    left = iter(found)
    assert all(message in left for message in spared)
    assert set(found) <= set(messages)


@given(st.binary(max_size=4000), st.integers(1, 50))
def test_any_bytes_are_read_to_an_end(data: bytes, most: int) -> None:
    found, offset = read_all(data, most)
    assert offset <= len(data)
    assert all(line(message) in data for message in found)
    emitted.header_of(data.partition(b"\n")[0] + b"\n")


def test_a_line_without_an_end_needs_no_memory() -> None:
    data = HEADER + b"x" * (3 * emitted.PIECE_BYTES)
    offset, damaged = len(HEADER), 0
    while (
        piece := emitted.parse(data[offset : offset + emitted.PIECE_BYTES], offset)
    ).end > offset:
        offset, damaged = piece.end, damaged + piece.damaged
    assert damaged == 3


def test_the_end_is_told() -> None:
    data = spool([b"{}"]) + b"end\n"
    assert emitted.parse(data, 0) == emitted.Piece([b"{}"], len(data), 0, True)
    assert not emitted.parse(data + line(b"{1}"), 0).ended
