"""A spool file cut at any byte gives a prefix; a flipped bit anywhere is noticed."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chappe.link import spool
from chappe.link.spool import SpoolCorrupt, SpoolWriter

batches = st.lists(st.lists(st.binary(max_size=60), max_size=5), max_size=6)


def written(data: bytes) -> list[bytes]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "spool"
        path.write_bytes(data)
        with SpoolWriter(path) as writer:
            found = writer.recovered
            writer.append([b"appended"])
        assert spool.read(path) == [*found, b"appended"]
        return found


@given(batches, st.data())
def test_any_truncation_gives_a_prefix_that_can_be_appended_to(
    content: list[list[bytes]], data: st.DataObject
) -> None:
    records = [record for batch in content for record in batch]
    whole = spool.MAGIC + spool.encode(records)
    cut = data.draw(st.integers(0, len(whole)))
    found = written(whole[:cut])
    assert found == records[: len(found)]
    # Nothing whole is given up: what is missing did not fit before the cut.
    kept = len(spool.MAGIC + spool.encode(records[: len(found) + 1]))
    assert len(found) == len(records) or kept > cut


@given(batches.filter(any), st.data())
@example([[b"\x01"]], None)
def test_any_flipped_bit_is_noticed(content: list[list[bytes]], data: st.DataObject | None) -> None:
    records = [record for batch in content for record in batch]
    whole = bytearray(spool.MAGIC + spool.encode(records))
    bits = (
        range(len(whole) * 8) if data is None else [data.draw(st.integers(0, len(whole) * 8 - 1))]
    )
    for bit in bits:
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SpoolCorrupt) as caught:
            written(bytes(damaged))
        assert caught.value.records == records[: len(caught.value.records)]
        assert caught.value.offset <= bit // 8


@given(batches, st.integers(1, 10_000))
def test_zeros_behind_the_end_change_nothing(content: list[list[bytes]], zeros: int) -> None:
    records = [record for batch in content for record in batch]
    assert written(spool.MAGIC + spool.encode(records) + bytes(zeros)) == records


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(SpoolCorrupt):
        assert spool.encode(written(data)) in data
