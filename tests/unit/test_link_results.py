"""Result files: what is accepted as data of its kind, and what is not."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
import zlib
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from chappe.core import limits
from chappe.link import results
from chappe.link.results import MEDIA, ResultProblem


def npy(array: Any, *, allow_pickle: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


PNG = (
    b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    + chunk(b"IDAT", zlib.compress(b"\0\0"))
    + chunk(b"IEND", b"")
)
ARROW = b"ARROW1\0\0" + bytes(16) + struct.pack("<i", 8) + b"ARROW1"
RECORD = np.zeros(3, dtype=[("Omega", "<f8"), ("grid", "<i4", (2, 2)), ("name", "U4")])


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("r.json", b'{"a": [1, 2.5, null]}'),
        ("r.msgpack", msgspec.msgpack.encode({"a": [1, b"x"]})),
        ("r.npy", npy(np.arange(12.0).reshape(3, 4))),
        ("r.npy", npy(np.array(3))),
        ("r.npy", npy(np.array(["a", "bcd"]))),
        ("r.npy", npy(np.array(["2001-01-01"], dtype="datetime64[ns]"))),
        ("r.npy", npy(np.array([True, 1 + 2j]))),
        ("r.npy", npy(RECORD)),
        ("r.npy", npy(np.zeros((0, 5)))),
        ("r.npz", npz(a=np.arange(3), b=RECORD)),
        ("r.npz", npz()),
        ("r.png", PNG),
        ("r.arrow", ARROW),
    ],
)
def test_good_files_are_accepted(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    found = results.check_result(tmp_path / name)
    assert found.media == MEDIA[Path(name).suffix]
    assert (found.data, found.sha256) == (data, sha256(data).hexdigest())


def object_header(descr: str) -> bytes:
    header = repr({"descr": descr, "fortran_order": False, "shape": (1,)}).encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + pickle.dumps([1])


OBJECTS = npy(np.array([{"a": 1}], dtype=object), allow_pickle=True)


def npz_with(name: str, data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, data)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("r.json", b""),
        ("r.json", b'{"a": NaN}'),
        ("r.json", b"{} {}"),
        ("r.json", b"[" * 100_000),
        ("r.json", pickle.dumps({"a": 1})),
        ("r.msgpack", b""),
        ("r.msgpack", b"\xc1"),
        ("r.msgpack", b"\x91" * 100_000),
        ("r.npy", b""),
        ("r.npy", b"\x93NUMPY\x09\x00"),
        ("r.npy", npy(np.arange(3.0))[:-1]),
        ("r.npy", npy(np.arange(3.0)) + b"x"),
        ("r.npy", OBJECTS),
        ("r.npy", object_header("O")),
        ("r.npy", object_header("|O8")),
        ("r.npy", object_header("object")),
        ("r.npy", object_header("pickle")),
        ("r.npy", npy(np.zeros(1, dtype=[("a", "O")]), allow_pickle=True)),
        ("r.npy", b"\x93NUMPY\x01\x00\x10\x00" + b"__import__('os')"),
        ("r.npy", b"\x93NUMPY\x02\x00\xff\xff\xff\x7f"),
        ("r.npy", b"\x93NUMPY\x01\x00\x10\x00" + b"(" * 16),
        ("r.npz", b"PK"),
        ("r.npz", npz(a=np.arange(3))[:-5]),
        ("r.npz", npz_with("a.npy", OBJECTS)),
        ("r.npz", npz_with("a.pkl", b"x")),
        ("r.npz", npz_with("a.npy", b"x")),
        ("r.png", PNG[:-1]),
        ("r.png", PNG.replace(b"IDAT", b"IDAX")),
        ("r.png", PNG + b"trailing"),
        ("r.png", PNG[:8]),
        ("r.png", b"<svg/>"),
        ("r.arrow", ARROW[:-1]),
        ("r.arrow", ARROW.replace(struct.pack("<i", 8), struct.pack("<i", 9_999))),
    ],
)
def test_what_a_file_is_not_is_refused(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ResultProblem) as caught:
        results.check_result(tmp_path / name)
    assert caught.value.code == "result_bad"


def test_objects_are_refused_with_the_remedy() -> None:
    for media, data in ((".npy", OBJECTS), (".npz", npz_with("a.npy", OBJECTS))):
        with pytest.raises(ResultProblem, match="dtype"):
            results.check_bytes(MEDIA[media], data)


def test_a_missing_file_has_its_own_code(tmp_path: Path) -> None:
    with pytest.raises(ResultProblem, match="left no") as caught:
        results.check_result(tmp_path / "out" / "r.json")
    assert caught.value.code == "result_missing"


def test_a_large_file_is_told_its_size_and_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(b"1" * limits.RESULT_BYTES)
    assert len(results.read_bounded(path)) == limits.RESULT_BYTES
    os.truncate(path, 1 << 40)
    with pytest.raises(ResultProblem, match=str(1 << 40)) as caught:
        results.check_result(path)
    assert caught.value.code == "result_too_large"


def test_what_is_no_plain_file_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "directory.json").mkdir()
    (tmp_path / "link.json").symlink_to("/etc/passwd")
    for name in ("pipe.json", "directory.json", "link.json"):
        with pytest.raises(ResultProblem) as caught:
            results.check_result(tmp_path / name)
        assert caught.value.code == "result_unreadable"


def test_a_suffix_that_is_no_result_lists_those_that_are(tmp_path: Path) -> None:
    for name in ("r.pkl", "r", "r.JSON.gz"):
        with pytest.raises(ResultProblem, match=r"\.arrow, \.json, \.msgpack"):
            results.media_of(name)
    with pytest.raises(ResultProblem):
        results.check_bytes("application/x-python-pickle", json.dumps(1).encode())
