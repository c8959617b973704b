"""Backups of SQLite: its own online copy, of one moment, while the Hub writes.

The copy is made in one step: in WAL mode it reads a snapshot, and stops neither the writer nor the readers.
(In several steps it would begin anew at every commit of another process, and beside a busy Hub never end.)
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import msgspec

from chappe.core.errors import Conflict, Invalid, NotFound, Unavailable
from chappe.store.backup import (
    FORMAT,
    Manifest,
    Restored,
    digest,
    manifest_path,
    private_file,
    refuse_existing,
    refuse_later,
    stamp,
    sync_directory,
    write_private,
)
from chappe.store.db import lock_database, refuse_network_file_system
from chappe.store.mark import Mark
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
        with _in_words(file), private_file(file, ".partial") as partial:
            with closing(_open(self._path)) as hub, closing(sqlite3.connect(partial)) as copy:
                hub.backup(copy)
            manifest = _examine(partial, now)
            write_private(manifest_path(file), msgspec.json.format(msgspec.json.encode(manifest)))
            try:
                # Unlike a rename, a link takes nobody's place.
                os.link(partial, file)
            except FileExistsError:
                raise Conflict(f"{file} was made meanwhile", field="file") from None
            sync_directory(file.parent)
        return manifest

    def restore(self, file: Path, manifest: Manifest, now: float) -> Restored:
        """See `Backups`."""
        if manifest.store != "sqlite":
            raise Invalid(f"{file} is a backup of {manifest.store}, not of sqlite", field="file")
        refuse_later(file, manifest)
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        refuse_network_file_system(self._path.parent)
        lock = lock_database(self._path)
        try:
            with _in_words(self._path), private_file(self._path, ".restoring") as new:
                shutil.copyfile(file, new)
                if digest(new) != manifest.sha256:
                    raise Invalid(f"{file} changed while it was read", code="damaged", field="file")
                past = max(Mark(lock).read()[0], self._incarnation(), manifest.incarnation)
                _begin(new, past + 1)
                _examine(new, now)
                replaced = self._put_aside(now)
                new.replace(self._path)
                sync_directory(self._path.parent)
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
        aside = self._path.with_name(f"{self._path.name}.replaced-{stamp(now)}")
        refuse_existing(aside)
        with contextlib.suppress(sqlite3.Error), closing(sqlite3.connect(self._path)) as conn:
            conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        os.link(self._path, aside)
        # Left by a database too damaged to be opened: the new one must not take them for its own.
        for suffix in ("-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.rename(f"{self._path}{suffix}", f"{aside}{suffix}")
        return aside


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
