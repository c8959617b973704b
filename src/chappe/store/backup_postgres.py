"""Backups of PostgreSQL: pg_dump, of one moment, while the Hub writes; put back in one transaction.

The manifest is read in the same snapshot as the dump. PostgreSQL's own programs are used as they are; they
must not be older than the server. Passwords reach them by the environment, never by argv.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import sqlalchemy as sa
from sqlalchemy import URL, Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

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
from chappe.store.line import PostgresLine
from chappe.store.migrate import HEAD
from chappe.store.postgres import engine, in_words
from chappe.store.tables import metadata
from chappe.store.unheard import NOBODY

#: What the migrations make beside the tables.
FUNCTIONS = ("job_illegal", "audit_stays")
SNAPSHOT = sa.text("SELECT pg_export_snapshot()")
MOMENT = sa.text("""
    SELECT (SELECT version_num FROM alembic_version) AS schema, incarnation, commit_no FROM hub""")
HEADS = sa.text("SELECT id, next_seq - 1 FROM project")


class PostgresBackups:
    """Of the database at one URL."""

    def __init__(self, url: URL) -> None:
        self._url = url

    def backup(self, file: Path, now: float) -> Manifest:
        """See `Backups`."""
        refuse_existing(file)
        file.parent.mkdir(parents=True, exist_ok=True)
        with in_words(self._url), private_file(file, ".partial") as partial:
            with self._snapshot() as conn:
                schema, incarnation, commit_no = self._moment(conn)
                heads = {str(row[0]): int(row[1]) for row in conn.execute(HEADS)}
                snapshot = conn.execute(SNAPSHOT).scalar_one()
                options = ["--format=custom", "--no-owner", "--no-privileges"]
                self._run("pg_dump", *options, f"--snapshot={snapshot}", f"--file={partial}")
            # Reads all of it through.
            self._run("pg_restore", f"--file={os.devnull}", str(partial), connects=False)
            size_bytes = partial.stat().st_size
            manifest = Manifest(
                FORMAT,
                "postgresql",
                now,
                schema,
                incarnation,
                commit_no,
                heads,
                size_bytes,
                digest(partial),
            )
            _sync(partial)
            write_private(manifest_path(file), msgspec.json.format(msgspec.json.encode(manifest)))
            try:
                os.link(partial, file)
            except FileExistsError:
                raise Conflict(f"{file} was made meanwhile", field="file") from None
            sync_directory(file.parent)
        return manifest

    def restore(self, file: Path, manifest: Manifest, now: float) -> Restored:
        """See `Backups`. What was there is kept as a backup of its own, beside `file`."""
        if manifest.store != "postgresql":
            raise Invalid(
                f"{file} is a backup of {manifest.store}, not of postgresql", field="file"
            )
        refuse_later(file, manifest)
        line = PostgresLine(engine(self._url, {}, NullPool))
        with contextlib.ExitStack() as undo, in_words(self._url):
            undo.callback(line.close)
            there = self._what_is_there(line.open())
            past = max(there or 0, manifest.incarnation)
            replaced = None
            if there is not None:
                replaced = file.with_name(f"{file.name}.replaced-{stamp(now)}")
                self.backup(replaced, now)
            with private_file(file, ".restoring") as script:
                self._run(
                    "pg_restore",
                    "--no-owner",
                    "--no-privileges",
                    f"--file={script}",
                    str(file),
                    connects=False,
                )
                if digest(file) != manifest.sha256:
                    raise Invalid(f"{file} changed while it was read", code="damaged", field="file")
                quiet = [
                    "--no-psqlrc",
                    "--quiet",
                    "--set=ON_ERROR_STOP=1",
                    f"--output={os.devnull}",
                ]
                steps = [
                    f"--command={_REMOVE}",
                    f"--file={script}",
                    f"--command={_begin(past + 1)}",
                ]
                self._run("psql", *quiet, "--single-transaction", *steps)
        return Restored(manifest, past + 1, None if replaced is None else str(replaced))

    @contextlib.contextmanager
    def _snapshot(self) -> Iterator[Connection]:
        """A connection that sees one moment."""
        settings = {
            "default_transaction_read_only": "on",
            "default_transaction_isolation": r"repeatable\ read",
        }
        with engine(self._url, settings, NullPool).connect() as conn, conn.begin():
            yield conn

    def _moment(self, conn: Connection) -> tuple[str, int, int]:
        try:
            schema, incarnation, commit_no = conn.execute(MOMENT).one()
        except DBAPIError as e:
            if getattr(e.orig, "sqlstate", None) != "42P01":
                raise
            raise NotFound(
                "there is no hub in this database: choose another --db", field="db"
            ) from None
        return schema, incarnation, commit_no

    def _what_is_there(self, conn: Connection) -> int | None:
        """The incarnation of the Hub in place; None where there is none."""
        with conn.begin():
            if conn.exec_driver_sql("SELECT to_regclass('hub')").scalar() is None:
                return None
            schema, incarnation, _ = self._moment(conn)
        if schema > HEAD:
            raise Unavailable(
                f"the database is of a later version of Chappe (schema {schema}): use that version",
                code="schema",
                field="db",
            )
        return incarnation

    def _run(self, program: str, *arguments: str, connects: bool = True) -> None:
        environ = dict(os.environ)
        if self._url.password is not None:
            environ["PGPASSWORD"] = str(self._url.password)
        where = [f"--dbname={self._url._replace(password=None).render_as_string()}"]
        try:
            done = subprocess.run(
                [program, *(where if connects else ()), *arguments],
                env=environ,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
            )
        except FileNotFoundError:
            raise Unavailable(
                f"{program} is not there: install PostgreSQL's client programs", code="missing"
            ) from None
        if done.returncode != 0:
            raise Unavailable(
                f"{program} failed: {done.stderr.strip()[-1000:]}", code="database", field="db"
            )


_REMOVE = (
    f"DROP TABLE IF EXISTS {', '.join(f'public.{t}' for t in (*metadata.tables, 'alembic_version'))}"
    f" CASCADE; DROP FUNCTION IF EXISTS {', '.join(f'public.{name}' for name in FUNCTIONS)} CASCADE"
)


def _begin(incarnation: int) -> str:
    """What makes a copy the beginning of a new incarnation, as `Tx.renumber` does."""
    return (
        f"UPDATE public.hub SET incarnation = {incarnation};"
        f" UPDATE public.site SET agent = '{NOBODY}'"
    )


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
