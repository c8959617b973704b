"""Backups of SQLite: its own online copy, of one moment, while the Hub writes.

The copy is made in one step: in WAL mode it reads a snapshot, and stops neither the writer nor the readers.
(In several steps it would begin anew at every commit of another process, and beside a busy Hub never end.)
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import msgspec

from chappe.core.errors import Conflict, Invalid, NotFound, Unavailable
from chappe.store.backup import FORMAT, Manifest, Restored, digest, manifest_path, refuse_existing
from chappe.store.db import lock_database, refuse_network_file_system
from chappe.store.mark import Mark
from chappe.store.migrate import HEAD
from chappe.store.unheard import NOBODY

_BUSY_S = 10.0


class SqliteBackups:
    """Of the database in one file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def backup(self, file: Path, now: float) -> Manifest:
        """See `Backups`."""
        refuse_existing(file)
        if not self._path.exists():
            raise NotFound(
                f"there is no database at {self._path}: choose --data or --db", field="db"
            )
        file.parent.mkdir(parents=True, exist_ok=True)
        with _in_words(file), _private(file, ".partial") as partial:
            with closing(_open(self._path)) as hub, closing(sqlite3.connect(partial)) as copy:
                hub.backup(copy)
            manifest = _examine(partial, now)
            _write(manifest_path(file), msgspec.json.format(msgspec.json.encode(manifest)))
            try:
                # Unlike a rename, a link takes nobody's place.
                os.link(partial, file)
            except FileExistsError:
                raise Conflict(f"{file} was made meanwhile", field="file") from None
            _sync(file.parent)
        return manifest

    def restore(self, file: Path, manifest: Manifest, now: float) -> Restored:
        """See `Backups`."""
        if manifest.store != "sqlite":
            raise Invalid(f"{file} is a backup of {manifest.store}, not of sqlite", field="file")
        if manifest.schema > HEAD:
            raise Invalid(
                f"{file} was made by a later version of Chappe (schema {manifest.schema}, this one knows "
                f"{HEAD}): use that version",
                code="schema",
                field="file",
            )
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        refuse_network_file_system(self._path.parent)
        lock = lock_database(self._path)
        try:
            with _in_words(self._path), _private(self._path, ".restoring") as new:
                shutil.copyfile(file, new)
                if digest(new) != manifest.sha256:
                    raise Invalid(f"{file} changed while it was read", code="damaged", field="file")
                past = max(Mark(lock).read()[0], self._incarnation(), manifest.incarnation)
                _begin(new, past + 1)
                _examine(new, now)
                replaced = self._put_aside(now)
                new.replace(self._path)
                _sync(self._path.parent)
        finally:
            os.close(lock)
        return Restored(manifest, past + 1, None if replaced is None else str(replaced))

    def _incarnation(self) -> int:
        """That of the database in place; 0 where it cannot be read."""
        try:
            with closing(_open(self._path)) as conn:
                return int(conn.execute("SELECT incarnation FROM hub").fetchone()[0])
        except (sqlite3.Error, TypeError):
            return 0

    def _put_aside(self, now: float) -> Path | None:
        """Keep what is in place under another name. The last moment in which nothing has happened."""
        if not self._path.exists():
            return None
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
        aside = self._path.with_name(f"{self._path.name}.replaced-{stamp}")
        refuse_existing(aside)
        with contextlib.suppress(sqlite3.Error), closing(sqlite3.connect(self._path)) as conn:
            conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        os.link(self._path, aside)
        # Left by a database too damaged to be opened: the new one must not take them for its own.
        for suffix in ("-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.rename(f"{self._path}{suffix}", f"{aside}{suffix}")
        return aside


@contextlib.contextmanager
def _private(file: Path, suffix: str) -> Iterator[Path]:
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


def _open(path: Path) -> sqlite3.Connection:
    """A connection that changes nothing."""
    return sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=_BUSY_S)


def _examine(path: Path, now: float) -> Manifest:
    """Read a copy through, make it one file that is on disk, and say what it holds."""
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("PRAGMA journal_mode = DELETE")
        (found,) = conn.execute("PRAGMA integrity_check(1)").fetchone()
        if found != "ok":
            raise Invalid(f"the copy is damaged: {found}", code="damaged", field="db")
        (schema,) = conn.execute("SELECT version_num FROM alembic_version").fetchone()
        incarnation, commit_no = conn.execute("SELECT incarnation, commit_no FROM hub").fetchone()
        heads = {id: n - 1 for id, n in conn.execute("SELECT id, next_seq FROM project")}
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    size_bytes = path.stat().st_size
    return Manifest(
        FORMAT, "sqlite", now, schema, incarnation, commit_no, heads, size_bytes, digest(path)
    )


def _begin(path: Path, incarnation: int) -> None:
    """Make a copy the beginning of a new incarnation, as `Tx.renumber` does."""
    with closing(sqlite3.connect(path)) as conn, conn:
        conn.execute("UPDATE hub SET incarnation = ?", (incarnation,))
        conn.execute("UPDATE site SET agent = ?", (NOBODY,))


def _write(path: Path, data: bytes) -> None:
    """A private file, on disk. It may replace one that a backup left which was cut short."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data + b"\n")
        file.flush()
        os.fsync(fd)
    temporary.replace(path)


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def _in_words(file: Path) -> Iterator[None]:
    """Failures of the disk or of the database as errors that say what to do."""
    try:
        yield
    except sqlite3.OperationalError as e:
        raise Unavailable(f"{file}: {e}; is there space on its disk?", code="database") from e
    except sqlite3.DatabaseError as e:
        raise Invalid(f"{file}: not a database of Chappe ({e})", code="damaged", field="db") from e
    except OSError as e:
        raise Unavailable(f"{e.filename or file}: {e.strerror}", code="disk") from e
