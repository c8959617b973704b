"""Results come back as values, and never as code."""

from __future__ import annotations

import contextlib
import io
import pickle
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chappe.link.results import MEDIA
from chappe.sdk import results
from chappe.sdk.errors import Invalid
from chappe.sdk.results import ResultFile


def npy(value: Any, **options: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, value, **options)
    return out.getvalue()


def npz() -> bytes:
    out = io.BytesIO()
    np.savez_compressed(out, field=np.arange(100.0))
    return out.getvalue()


@given(at=st.integers(0, len(npz()) - 1), bits=st.integers(1, 255))
def test_an_archive_with_any_byte_wrong_is_a_value_or_refused(at: int, bits: int) -> None:
    body = bytearray(npz())
    body[at] ^= bits
    with contextlib.suppress(Invalid):
        ResultFile(MEDIA[".npz"], bytes(body)).decode()


def test_json_and_msgpack_become_values() -> None:
    value = {"a": [1, 2.5, None, "é"]}
    for media, encode in ((".json", msgspec.json.encode), (".msgpack", msgspec.msgpack.encode)):
        assert ResultFile(MEDIA[media], encode(value)).decode() == value


def test_arrays_become_arrays() -> None:
    field = np.arange(6.0).reshape(2, 3)
    assert np.array_equal(ResultFile(MEDIA[".npy"], npy(field)).decode(), field)
    out = io.BytesIO()
    np.savez(out, zeta=field, k=np.arange(3))
    several = ResultFile(MEDIA[".npz"], out.getvalue()).decode()
    assert sorted(several) == ["k", "zeta"]
    assert np.array_equal(several["zeta"], field)


@pytest.mark.parametrize("suffix", [".png", ".arrow", ".npy", ".npz"])
def test_what_cannot_be_decoded_here_comes_as_bytes(
    suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "find_spec", lambda name: None)
    assert ResultFile(MEDIA[suffix], b"bytes").decode() == b"bytes"


def test_every_kind_of_result_is_known_here() -> None:
    """A media type that the pilot may send and that nobody decodes would pass as bytes unnoticed."""
    assert set(MEDIA) == {".msgpack", ".npy", ".npz", ".arrow", ".png", ".json"}


class Evil:
    def __reduce__(self) -> Any:
        return (Path("/").exists, ())


@pytest.mark.parametrize(
    ("suffix", "body"),
    [
        (".json", b"{"),
        (".msgpack", b"\xc1"),
        (".npy", b"no array"),
        (".npz", b"no zip"),
        (".npz", b"PK\x03\x04 the beginning of one"),
        (".npz", npz()[:-30]),
        (".npy", npy(np.zeros(3)).replace(b"(3,), }", b"(99999999999999,), }")[:200]),
        (".npy", npy(np.array([Evil()], dtype=object), allow_pickle=True)),
        (".npy", pickle.dumps(Evil())),
    ],
)
def test_wrong_bytes_are_refused_and_pickles_with_them(suffix: str, body: bytes) -> None:
    with pytest.raises(Invalid, match="the result is no"):
        ResultFile(MEDIA[suffix], body).decode()


def test_a_result_is_saved_as_it_travelled(tmp_path: Path) -> None:
    path = ResultFile("image/png", b"\x89PNG").save(tmp_path / "a.png")
    assert path.read_bytes() == b"\x89PNG"
