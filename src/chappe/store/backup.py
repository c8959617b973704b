"""Backups of a Hub's database: what is kept of one, and the ways to make and to put back, by database.

A backup is two files: the data, in whatever form the database has for it, and a manifest beside it
(`FILE.manifest`) that says what it holds and its sha256. Both are private (0600): the data holds the digests
of all tokens. A backup counts when its manifest is there and its data has that digest, and not before.

To put a backup back is to replace the Hub's past, so it begins a new incarnation: readers of Events begin
anew, agents and pilots tell what the older past does not know (store.reconcile).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import msgspec
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from chappe.core.errors import Conflict, Invalid, NotFound
from chappe.store.migrate import HEAD

FORMAT = 1
MANIFEST = ".manifest"
_CHUNK_BYTES = 1 << 20


class Manifest(msgspec.Struct, frozen=True):
    """What a backup holds. `heads` is the last seq of each project, by its id; times are seconds since 1970.

    `store` is the kind of database, which alone can read the data: sqlite | postgresql.
    """

    format: int
    store: str
    made_at: float
    schema: str
    incarnation: int
    commit_no: int
    heads: dict[str, int]
    size_bytes: int
    sha256: str


class Restored(msgspec.Struct, frozen=True):
    """What was put back: the Hub is of this incarnation now. `replaced` is where the database before it is
    kept, None where there was none."""

    manifest: Manifest
    incarnation: int
    replaced: str | None


class Backups(Protocol):
    """How one kind of database is backed up and restored."""

    def backup(self, file: Path, now: float) -> Manifest:
        """Write a consistent copy to `file`, which must not exist, while the Hub works. It has been read
        through, and is complete on disk, when this returns. Raises Conflict, NotFound, Unavailable."""

    def restore(self, file: Path, manifest: Manifest, now: float) -> Restored:
        """Put a copy in the database's place, under a new incarnation: all of it, or nothing. Raises
        Unavailable while a Hub has the database open, Invalid for a copy that cannot be used."""


def backups_of(url: str) -> Backups:
    """The way for the database at `url`. Raises Invalid where there is none."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        parsed = None
    if parsed is not None and parsed.get_backend_name() == "sqlite" and parsed.database:
        from chappe.store.backup_sqlite import SqliteBackups

        return SqliteBackups(Path(parsed.database).absolute())
    if parsed is not None and parsed.drivername == "postgresql":
        from chappe.store.backup_postgres import PostgresBackups

        return PostgresBackups(parsed)
    raise Invalid(
        "backups are made of sqlite:///PATH and postgresql://…; choose it with --db", field="db"
    )


def manifest_path(file: Path) -> Path:
    """Where the manifest of a backup stands."""
    return file.with_name(f"{file.name}{MANIFEST}")


def digest(file: Path) -> str:
    """The sha256 of a file, in hex. Raises OSError."""
    found = hashlib.sha256()
    with file.open("rb") as data:
        while chunk := data.read(_CHUNK_BYTES):
            found.update(chunk)
    return found.hexdigest()


def verify(file: Path) -> Manifest:
    """The manifest of a backup whose data is what was written. Raises NotFound, Invalid."""
    path = manifest_path(file)
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
        size_bytes = file.stat().st_size
        whole = size_bytes == manifest.size_bytes and digest(file) == manifest.sha256
    except OSError as e:
        raise NotFound(
            f"{e.filename} cannot be read ({e.strerror}): a backup is a file and, beside it, its manifest",
            field="file",
        ) from e
    except msgspec.MsgspecError as e:
        raise Invalid(f"{path} is not the manifest of a backup: {e}", field="file") from e
    if manifest.format > FORMAT:
        raise Invalid(f"{path} is of a later version of Chappe: use that version", field="file")
    if not whole:
        raise Invalid(
            f"{file} is damaged: it is not what was written (sha256 in {path.name}); use another backup",
            code="damaged",
            field="file",
        )
    return manifest


def refuse_existing(file: Path) -> None:
    """Raise Conflict when there is something at `file`: a backup is never overwritten."""
    if os.path.lexists(file):
        raise Conflict(f"{file} exists: choose another name, or remove it", field="file")


def refuse_later(file: Path, manifest: Manifest) -> None:
    """Raise Invalid when this version does not know the schema of a backup."""
    if manifest.schema > HEAD:
        raise Invalid(
            f"{file} was made by a later version of Chappe (schema {manifest.schema}, this one knows "
            f"{HEAD}): use that version",
            code="schema",
            field="file",
        )


def stamp(now: float) -> str:
    """A moment as part of a file's name."""
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))


@contextlib.contextmanager
def private_file(file: Path, suffix: str) -> Iterator[Path]:
    """An empty file (0600) beside `file`, to be linked or renamed to its name, gone in the end. One that a
    killed process left is used again; while one is in use, Conflict."""
    path = file.with_name(f".{file.name}{suffix}")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(f"{file} is being written by another command", field="file") from None
        os.fchmod(fd, 0o600)
        os.ftruncate(fd, 0)
        try:
            yield path
        finally:
            for end in ("", "-wal", "-shm", "-journal"):
                Path(f"{path}{end}").unlink(missing_ok=True)
    finally:
        os.close(fd)


def write_private(path: Path, data: bytes) -> None:
    """A private file, on disk. It may replace one that a backup left which was cut short."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data + b"\n")
        file.flush()
        os.fsync(fd)
    temporary.replace(path)


def sync_directory(directory: Path) -> None:
    """Make a file's name last."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
