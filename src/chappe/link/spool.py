"""A log of records in one file: append-only, every byte under a checksum, safe to cut anywhere.

The journal of a pilot and the outbox of an agent are such files. They live in the Site's directory, which
may be on a parallel file system: no locks, no memory maps, no database, one writer.

    file   = "CHSPOOL1" record*
    record = length u32 | crc32(payload) u32 | crc32(the 8 bytes before) u32 | payload      (little endian)

The header has a checksum of its own, so that a damaged length is not taken for a torn tail. A crash leaves a
prefix of what was appended, or zeros where the last blocks never reached the disk: that is a *torn tail*,
and it is cut off when the file is opened for writing. Anything else that does not check is *corruption*;
nothing behind it is used, and nobody has to find out by himself: it is an error that names the offset.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import struct
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from zlib import crc32

from chappe.core import limits
from chappe.core.errors import ChappeError, Invalid, Unavailable
from chappe.link import files

MAGIC = b"CHSPOOL1"
RECORD_BYTES = 8 * limits.MIB
"""Longest payload."""
LIMIT_BYTES = 64 * limits.MIB
"""Longest file, unless the writer is told otherwise."""

_HEAD = struct.Struct("<III")
_CHECKED = struct.Struct("<II")


class SpoolCorrupt(ChappeError):
    """A byte in the middle of the file is not what was written. `records` are the good ones before it."""

    default_code = "spool_corrupt"

    def __init__(self, path: Path, offset: int, records: list[bytes]) -> None:
        super().__init__(
            f"{path} is damaged at byte {offset}, after {len(records)} good records: "
            "the disk or another program changed it"
        )
        self.offset = offset
        self.records = records


class SpoolFull(Unavailable):
    """No room for the records: none of them is in the file; wait and repeat."""

    default_code = "spool_full"


def read(path: Path) -> list[bytes]:
    """All good records; a torn tail is left out. Raises SpoolCorrupt, OSError."""
    return _parse(path, path.read_bytes())[0]


def set_aside(path: Path) -> Path:
    """Rename a damaged file so that work can go on with a new one; its new path. OSError."""
    for n in range(1, 1000):
        aside = path.with_name(f"{path.name}.corrupt-{n}")
        if not aside.exists():
            path.rename(aside)
            files.sync_directory(path.parent)
            return aside
    raise Invalid(f"there are a thousand damaged files beside {path}: look after the disk")


class SpoolWriter:
    """The one writer of a spool file. Opening it cuts off a torn tail, and reads what is there.

    `recovered` are the records found; `size` is the file's length in bytes. Raises SpoolCorrupt, SpoolFull,
    OSError.
    """

    def __init__(self, path: Path, *, limit_bytes: int = LIMIT_BYTES) -> None:
        self.path = path
        self._limit = limit_bytes
        self._torn = False
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._fd = os.open(path, flags, 0o600)
        try:
            data = _read_all(self._fd)
            self.recovered, self.size = _parse(path, data)
            if self.size < len(data):
                os.ftruncate(self._fd, self.size)
            if self.size == 0:
                self._write(MAGIC)
        except BaseException:
            os.close(self._fd)
            raise

    def append(self, records: Iterable[bytes], *, sync: bool = False) -> None:
        """Append the records in one write(2), all or none; with `sync` they are on disk afterwards.

        Raises SpoolFull when the disk or the file's limit has no room, Invalid for a record that is too
        long, OSError when the disk fails.
        """
        data = encode(records)
        if self.size + len(data) > self._limit:
            raise SpoolFull(
                f"{self.path} holds {self.size} bytes, its limit is {self._limit}: "
                "it empties when the hub answers"
            )
        self._write(data)
        if sync:
            os.fsync(self._fd)

    def rewrite(self, records: Iterable[bytes]) -> None:
        """Replace the file by one that holds only these records (compaction): durable and atomic.

        When it fails (SpoolFull, OSError), the old file is still there and still in use.
        """
        data = MAGIC + encode(records)
        temporary = self.path.with_name(f".{self.path.name}.{secrets.token_hex(6)}")
        try:
            files.write_new(temporary, data, 0o600)
            fd = os.open(temporary, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
            try:
                temporary.replace(self.path)
            except BaseException:
                os.close(fd)
                raise
        except OSError as e:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
            if e.errno in files.NO_SPACE:
                raise SpoolFull(f"cannot write {temporary}: {e.strerror}") from e
            raise
        os.close(self._fd)
        self._fd, self.size, self._torn = fd, len(data), False
        files.sync_directory(self.path.parent)

    def close(self) -> None:
        """Close the file; idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> SpoolWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _write(self, data: bytes) -> None:
        """One write(2); what it leaves behind when it fails is cut off, at the latest before the next."""
        if self._torn:
            os.ftruncate(self._fd, self.size)
            self._torn = False
        try:
            written = os.write(self._fd, data)
        except OSError as e:
            self._cut()
            if e.errno in files.NO_SPACE:
                raise SpoolFull(f"cannot write {self.path}: {e.strerror}") from e
            raise
        if written < len(data):
            self._cut()
            raise SpoolFull(f"the disk of {self.path} is full ({written} of {len(data)} bytes)")
        self.size += len(data)

    def _cut(self) -> None:
        self._torn = True
        with contextlib.suppress(OSError):  # tried again before the next write
            os.ftruncate(self._fd, self.size)
            self._torn = False


def encode(records: Iterable[bytes]) -> bytes:
    """The records as they stand in a file. Raises Invalid for one that is too long."""
    parts: list[bytes] = []
    for payload in records:
        if len(payload) > RECORD_BYTES:
            raise Invalid(f"a record has {len(payload)} bytes, at most {RECORD_BYTES} are possible")
        checked = _CHECKED.pack(len(payload), crc32(payload))
        parts += (checked, crc32(checked).to_bytes(4, "little"), payload)
    return b"".join(parts)


def _parse(path: Path, data: bytes) -> tuple[list[bytes], int]:
    """The good records and where they end; what follows is a torn tail. Raises SpoolCorrupt."""
    records: list[bytes] = []
    if not data.startswith(MAGIC):
        if MAGIC.startswith(data) or not data.strip(b"\0"):
            return records, 0
        raise SpoolCorrupt(path, 0, records)
    view = memoryview(data)
    at, end = len(MAGIC), len(data)
    while end - at >= _HEAD.size:
        length, payload_crc, head_crc = _HEAD.unpack_from(data, at)
        if crc32(view[at : at + _CHECKED.size]) != head_crc or length > RECORD_BYTES:
            break
        start, stop = at + _HEAD.size, at + _HEAD.size + length
        if stop > end:
            return records, at
        payload = data[start:stop]
        if crc32(payload) != payload_crc:
            raise SpoolCorrupt(path, at, records)
        records.append(payload)
        at = stop
    if end - at >= _HEAD.size and any(view[at:]):
        raise SpoolCorrupt(path, at, records)
    return records, at


def _read_all(fd: int) -> bytes:
    parts = []
    while part := os.read(fd, limits.MIB):
        parts.append(part)
    return b"".join(parts)
