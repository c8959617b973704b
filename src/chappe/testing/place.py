"""Where a rig's store is: an SQLite file, or a database of a PostgreSQL server of the tests' own.

A place is looked into, copied and set back behind the store's back.
"""

from __future__ import annotations

import functools
import pickle
import sqlite3
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar, Protocol

from chappe.store import migrate
from chappe.store.db import parse
from chappe.store.dialect import postgresql
from chappe.store.tables import metadata
from chappe.testing.postgres import PostgresServer


class Place(Protocol):
    """What a rig needs of it."""

    url: str
    data: Path

    def sql(self, query: str, args: Sequence[Any]) -> list[Any]:
        """Rows, by a connection that is not the store's. Parameters are `?`."""

    def change(self, statement: str) -> None:
        """Change rows behind the store's back."""

    def backup(self) -> bytes:
        """All of it, at one moment; the store may be open."""

    def put_back(self, backup: bytes, *, elsewhere: bool) -> None:
        """Replace all by a copy, under a closed store; `elsewhere`: without its mark."""

    def let_go(self) -> None:
        """Close what `sql` uses."""

    def leave(self) -> None:
        """The place is not used any more."""


@functools.cache
def _empty_file() -> bytes:
    """A migrated database without a row, made once: migrations take longer than most tests."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "hub.db"
        migrate.migrate(path)
        with closing(sqlite3.connect(path)) as conn:
            conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return path.read_bytes()


class SqlitePlace:
    """A file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = path.parent
        self.url = f"sqlite:///{path}"
        self._spy: sqlite3.Connection | None = None
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_bytes(_empty_file())

    def sql(self, query: str, args: Sequence[Any]) -> list[Any]:
        """Rows, read behind the store's back."""
        if self._spy is None:
            self._spy = sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)
            self._spy.row_factory = sqlite3.Row
        return self._spy.execute(query, args).fetchall()

    def change(self, statement: str) -> None:
        """Change rows behind the store's back."""
        with closing(sqlite3.connect(self.path)) as conn, conn:
            conn.execute(statement)

    def backup(self) -> bytes:
        """The whole database, as `sqlite3 .backup` would write it."""
        with (
            tempfile.TemporaryDirectory() as directory,
            closing(sqlite3.connect(self.path)) as source,
        ):
            path = Path(directory) / "copy.db"
            with closing(sqlite3.connect(path)) as copy:
                source.backup(copy)
            return path.read_bytes()

    def put_back(self, backup: bytes, *, elsewhere: bool) -> None:
        """Put an older copy in the database's place by hand."""
        if elsewhere:
            Path(f"{self.path}.lock").unlink()
        for suffix in ("-wal", "-shm"):
            Path(f"{self.path}{suffix}").unlink(missing_ok=True)
        self.path.write_bytes(backup)

    def let_go(self) -> None:
        """Close the connection that looks."""
        if self._spy is not None:
            self._spy.close()
            self._spy = None

    def leave(self) -> None:
        """Nothing to do: the file's directory is the test's."""


class _Row(tuple[Any, ...]):
    """A row like sqlite3's: by place or by name."""

    __slots__ = ()
    names: ClassVar[tuple[str, ...]]

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(self.names.index(key) if isinstance(key, str) else key)

    def keys(self) -> tuple[str, ...]:
        """The columns' names."""
        return self.names


def _rows(cursor: Any) -> Any:
    names = tuple(c.name for c in cursor.description or ())
    return type("Row", (_Row,), {"names": names, "__slots__": ()})


class PostgresPlace:
    """A database of a server, borrowed; `leave` gives it back for the next to use.

    `port` is that of a relay, where the store reaches the server through one.
    """

    def __init__(self, databases: Databases, data: Path, port: int | None = None) -> None:
        self._databases = databases
        self._direct = databases.borrow()
        self.url = (
            self._direct.replace(f":{databases.server.port}/", f":{port}/")
            if port
            else self._direct
        )
        self.data = data
        self._spy: Any = None
        data.mkdir(parents=True, exist_ok=True)

    def _look(self) -> Any:
        import psycopg

        if self._spy is None or self._spy.broken:
            self._spy = psycopg.connect(self._direct, autocommit=True, row_factory=_rows)
        return self._spy

    def sql(self, query: str, args: Sequence[Any]) -> list[Any]:
        """Rows, read behind the store's back."""
        statement = postgresql(query).replace("%", "%%").replace("?", "%s")
        return list(self._look().execute(statement, args).fetchall())

    def change(self, statement: str) -> None:
        """Change rows behind the store's back."""
        import psycopg

        with psycopg.connect(self._direct) as conn:
            conn.execute(statement)

    def administer(self, statement: str) -> None:
        """What an administrator does outside of any transaction."""
        self._look().execute(statement)

    def backup(self) -> bytes:
        """The rows of all tables and the sequences, as pg_dump would write them."""
        conn = self._look()
        with conn.transaction():
            conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            return pickle.dumps((_copied_out(conn), _sequences(conn)))

    def put_back(self, backup: bytes, *, elsewhere: bool) -> None:
        """Read a dump into the emptied database."""
        if elsewhere:
            for mark in self.data.glob("postgresql-*.mark"):
                mark.unlink()
        rows, sequences = pickle.loads(backup)  # noqa: S301 - made by `backup`
        conn = self._look()
        with conn.transaction():
            _empty(conn)
            for table, data in rows.items():
                with conn.cursor().copy(f"COPY {table} FROM STDIN") as copy:
                    copy.write(data)
            for name, value in sequences.items():
                conn.execute(f"SELECT setval('{name}', {value or 1}, {value is not None})")

    def let_go(self) -> None:
        """Close the connection that looks."""
        if self._spy is not None:
            self._spy.close()
            self._spy = None

    def leave(self) -> None:
        """Give the database back."""
        self._databases.give_back(self._direct)


class Databases:
    """Migrated databases without a row, on one server, used again and again."""

    def __init__(self, server: PostgresServer) -> None:
        self.server = server
        self._free: list[str] = []

    def borrow(self) -> str:
        """The URL of one that nobody else uses."""
        import psycopg

        if not self._free:
            return self._made()
        url = self._free.pop()
        with psycopg.connect(url) as conn:
            _empty(conn)
            conn.execute(
                "INSERT INTO hub (n, incarnation, commit_no, next_job) VALUES (1, 1, 0, 1)"
            )
            again = [f"SELECT setval('{name}', 1, false)" for name in _sequences(conn)]
            conn.execute("; ".join(again))
        return url

    def _made(self) -> str:
        from sqlalchemy.pool import NullPool

        from chappe.store.postgres import engine

        url = self.server.database()
        with engine(parse(url), {}, NullPool).connect() as conn:
            migrate.migrate_postgresql(conn)
        return url

    def give_back(self, url: str) -> None:
        """It may be used by another test."""
        self._free.append(url)


def _tables() -> list[str]:
    return sorted(metadata.tables)


def _empty(conn: Any) -> None:
    # What triggers would refuse is done by the server's administrator.
    conn.execute("SET session_replication_role = replica")
    conn.execute("; ".join(f"DELETE FROM {table}" for table in _tables()))  # noqa: S608 - ours


def _copied_out(conn: Any) -> dict[str, bytes]:
    found = {}
    for table in _tables():
        with conn.cursor().copy(f"COPY {table} TO STDOUT") as copy:
            found[table] = b"".join(copy)
    return found


def _sequences(conn: Any) -> dict[str, int | None]:
    found = conn.execute("SELECT sequencename, last_value FROM pg_sequences").fetchall()
    return {row[0]: row[1] for row in found}
