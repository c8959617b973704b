"""Results: one small file of data per Job, checked before it is sent and after it is fetched.

A result is data, never code: what could hold a pickle is opened far enough to see that it holds none. The
checks say that a file is what its suffix claims; that its numbers are right is the scientist's business.
"""

from __future__ import annotations

import ast
import errno
import hashlib
import io
import math
import os
import re
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any
from zlib import crc32

import msgspec

from chappe.core import limits
from chappe.core.errors import Invalid

MEDIA: dict[str, str] = {
    ".msgpack": "application/msgpack",
    ".npy": "application/x-npy",
    ".npz": "application/x-npz",
    ".arrow": "application/vnd.apache.arrow.file",
    ".png": "image/png",
    ".json": "application/json",
}
"""The kinds of result: suffix → media type, as it travels in Content-Type."""

VALUE = "application/vnd.chappe.value"
"""What a function returned, sealed by its Site (see link.values). Nothing but the SDK opens it."""

_NPZ_MEMBERS = 1_000
_NPY_HEADER_BYTES = 64 * limits.KIB
_DTYPE = re.compile(r"[<>|=]?([biufcmMSUV])(\d{1,9})(?:\[\w{1,9}\])?")


class ResultProblem(Invalid):
    """The result file is missing, too large, or not what its suffix says: `code` tells which."""

    default_code = "result_bad"


class Result(msgspec.Struct, frozen=True):
    """A checked result: its media type, the sha256 (hex) of its bytes, and the bytes."""

    media: str
    sha256: str
    data: bytes


def media_of(filename: str) -> str:
    """The media type of a result file by its suffix. Raises ResultProblem."""
    suffix = PurePosixPath(filename).suffix
    try:
        return MEDIA[suffix]
    except KeyError:
        raise ResultProblem(
            f"{filename!r}: a result file ends in one of {', '.join(sorted(MEDIA))}",
            field="files.result",
        ) from None


def check_result(path: Path) -> Result:
    """Read and check a Job's result file.

    Raises ResultProblem with code result_missing | result_too_large | result_unreadable | result_bad.
    """
    media = media_of(path.name)
    data = read_bounded(path)
    check_bytes(media, data)
    return Result(media, hashlib.sha256(data).hexdigest(), data)


def check_bytes(media: str, data: bytes) -> None:
    """Raise ResultProblem unless `data` can be what `media` says, and holds no pickle."""
    check = _CHECKS.get(media)
    if check is None:
        raise ResultProblem(f"{media!r} is no kind of result", field="media")
    if len(data) > limits.RESULT_BYTES:
        raise _too_large("the result", len(data))
    try:
        check(data)
    except ResultProblem:
        raise
    except (ValueError, SyntaxError, KeyError, TypeError, struct.error, MemoryError) as e:
        raise ResultProblem(f"the result is no {media}: {e}") from None
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, RecursionError) as e:
        raise ResultProblem(f"the result is no {media}: {e}") from None


def read_bounded(path: Path) -> bytes:
    """A result file's bytes, as a Job left it. Raises ResultProblem."""
    # O_NONBLOCK: a Job may have left a named pipe in this place, and opening one would wait for ever.
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as e:
        if e.errno in (errno.ENOENT, errno.ENOTDIR):
            raise ResultProblem(
                f"the job left no {path.name} in its directory", code="result_missing"
            ) from None
        if e.errno == errno.ELOOP:
            raise _unreadable(path, "it is a symbolic link; write the file itself") from None
        raise _unreadable(path, e.strerror or "error") from e
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise _unreadable(path, "it is not a plain file")
        if found.st_size > limits.RESULT_BYTES:
            raise _too_large(path.name, found.st_size)
        data = _read(fd, found.st_size)
    except OSError as e:
        raise _unreadable(path, e.strerror or "error") from e
    finally:
        os.close(fd)
    if len(data) > limits.RESULT_BYTES:
        raise _too_large(path.name, len(data))
    return data


def _read(fd: int, size: int) -> bytes:
    """The whole file, or a little more than the limit if it grew meanwhile. To read a few bytes into a
    buffer of a MiB, and once more to see the end, costs more than all the rest."""
    data = os.read(fd, size + 1)
    if len(data) == size:
        return data
    parts = [data]
    left = limits.RESULT_BYTES + 1 - len(data)
    while left > 0 and (part := os.read(fd, left)):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _unreadable(path: Path, why: str) -> ResultProblem:
    return ResultProblem(f"cannot read {path.name}: {why}", code="result_unreadable")


def _too_large(what: str, size: int) -> ResultProblem:
    return ResultProblem(
        f"{what} has {size} bytes, the limit is {limits.RESULT_BYTES}: "
        "keep large data in files at the site, and return a summary",
        code="result_too_large",
    )


def _check_json(data: bytes) -> None:
    msgspec.json.decode(data)


def _check_msgpack(data: bytes) -> None:
    msgspec.msgpack.decode(data)


def _check_npy(data: bytes) -> None:
    _check_npy_header(io.BytesIO(data), len(data))


def _check_npy_header(file: Any, size: int | None) -> None:
    """Read the header of an .npy file, whose format numpy.lib.format documents.

    With `size`, the shape and type it declares must account for every byte.
    """
    magic = file.read(8)
    if len(magic) < 8 or magic[:6] != b"\x93NUMPY" or magic[6] not in (1, 2, 3):
        raise ValueError("it does not begin as a .npy file")
    layout = "<H" if magic[6] == 1 else "<I"
    (length,) = struct.unpack(layout, file.read(struct.calcsize(layout)))
    if length > _NPY_HEADER_BYTES:
        raise ValueError("the .npy header is too long")
    header = ast.literal_eval(file.read(length).decode("latin-1").strip())
    if not isinstance(header, dict) or not {"descr", "fortran_order", "shape"} <= set(header):
        raise ValueError("the .npy header lacks fields")
    item_bytes = _item_bytes(header["descr"])
    shape = header["shape"]
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError("the .npy header has no shape")
    if size is not None and math.prod(shape) * item_bytes != size - file.tell():
        raise ValueError(
            f"{size - file.tell()} bytes of data where {math.prod(shape) * item_bytes} are declared"
        )


def _item_bytes(descr: Any) -> int:
    """The size of one item of a dtype description, which may nest. Refuses Python objects."""
    if isinstance(descr, str):
        plain = _DTYPE.fullmatch(descr)
        if plain:
            return int(plain[2]) * (4 if plain[1] == "U" else 1)
        if "O" in descr or "object" in descr:
            raise ResultProblem(
                "the array holds Python objects, that is a pickle: save numbers or text "
                "(give np.array a dtype)"
            )
        raise ValueError(f"the type {descr[:60]!r} is not known")
    if isinstance(descr, tuple) and len(descr) == 2:  # (type, shape of a sub-array)
        return _item_bytes(descr[0]) * math.prod(descr[1])
    if isinstance(descr, list):  # fields: (name, type[, shape])
        return sum(_item_bytes(f[1]) * math.prod(f[2] if len(f) > 2 else ()) for f in descr)
    raise ValueError("the .npy header describes no type")


def _check_npz(data: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        if len(members) > _NPZ_MEMBERS:
            raise ValueError(f"more than {_NPZ_MEMBERS} arrays")
        for member in members:
            if not member.filename.endswith(".npy"):
                raise ValueError(f"{member.filename[:60]!r} is no array")
            with archive.open(member) as file:
                _check_npy_header(file, None)


def _check_png(data: bytes) -> None:
    """The signature, a chain of chunks with good checksums from IHDR to IEND, and nothing behind it."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        raise ValueError("it does not begin as a PNG")
    at, kinds = 8, []
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        (crc,) = struct.unpack_from(">I", data, at + 8 + length)
        if crc32(data[at + 4 : at + 8 + length]) != crc:
            raise ValueError(f"chunk {kind!r} is damaged")
        kinds.append(kind)
        at += 12 + length
    if kinds[:1] != [b"IHDR"] or kinds[-1:] != [b"IEND"] or b"IDAT" not in kinds:
        raise ValueError("the picture is incomplete")


def _check_arrow(data: bytes) -> None:
    if len(data) < 20 or not data.startswith(b"ARROW1\0\0") or not data.endswith(b"ARROW1"):
        raise ValueError("it is no Arrow file (the IPC *file* format is wanted, not the stream)")
    (footer,) = struct.unpack_from("<i", data, len(data) - 10)
    if not 0 < footer <= len(data) - 18:
        raise ValueError("the Arrow footer is cut off")


def _check_value(data: bytes) -> None:
    """An envelope of three byte strings; what is in it is the business of those who can check it."""
    msgspec.msgpack.decode(data, type=tuple[bytes, bytes, bytes])


_CHECKS: dict[str, Callable[[bytes], None]] = {
    MEDIA[".json"]: _check_json,
    MEDIA[".msgpack"]: _check_msgpack,
    MEDIA[".npy"]: _check_npy,
    MEDIA[".npz"]: _check_npz,
    MEDIA[".arrow"]: _check_arrow,
    MEDIA[".png"]: _check_png,
    VALUE: _check_value,
}
