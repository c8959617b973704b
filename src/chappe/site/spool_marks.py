"""How far the agent has read producers' spool files: durable, append-only, under checksums.

A mark is written after the Hub has what stands before it. One that a crash loses costs a repetition, which
the Hub recognises; so marks are not synced to the disk one by one.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import structlog

from chappe.link.spool import SpoolCorrupt, SpoolFull, SpoolWriter, set_aside

log = structlog.get_logger()

TAIL_BYTES = 256
_REWRITE_BYTES = 1024 * 1024


class Mark(msgspec.Struct, frozen=True, array_like=True):
    """All before `offset` of the file `path` is at the Hub; `tail` is a hash of what stands just before it,
    by which a file that was replaced is told. An offset below 0: the file is done with."""

    path: str
    offset: int
    tail: str


class Marks:
    """The marks of an agent, in one file of its outbox; the agent is its one writer. Raises OSError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._by_path: dict[str, Mark] = {}
        self._rewrite_at = _REWRITE_BYTES
        try:
            self._file = SpoolWriter(path)
            records = self._file.recovered
        except SpoolCorrupt as e:
            aside = set_aside(path)
            log.warning(
                "marks of spools are damaged; messages go twice", aside=str(aside), error=e.message
            )
            self._file, records = SpoolWriter(path), e.records
            self._file.append(records)
        for record in records:
            self._take(msgspec.json.decode(record, type=Mark))

    def get(self, path: str) -> Mark:
        """The mark of a file."""
        return self._by_path.get(path) or Mark(path, 0, "")

    def paths(self) -> set[str]:
        """Files with a mark."""
        return set(self._by_path)

    def put(self, marks: list[Mark]) -> None:
        """Remember these. Raises OSError."""
        for mark in marks:
            self._take(mark)
        try:
            self._file.append(map(msgspec.json.encode, marks))
            if self._file.size > self._rewrite_at:
                self._file.rewrite(map(msgspec.json.encode, self._by_path.values()))
                self._rewrite_at = max(_REWRITE_BYTES, 2 * self._file.size)
        except SpoolFull as e:
            log.warning(
                "marks of spools are not written; after a restart messages go twice", error=e
            )

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _take(self, mark: Mark) -> None:
        if mark.offset < 0:
            self._by_path.pop(mark.path, None)
        else:
            self._by_path[mark.path] = mark


def tail_of(path: str, offset: int) -> str:
    """The hash of what stands just before `offset`. Raises OSError."""
    with open(path, "rb") as file:
        file.seek(max(0, offset - TAIL_BYTES))
        return hashlib.sha256(file.read(min(offset, TAIL_BYTES))).hexdigest()[:16]
