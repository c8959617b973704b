"""Bringing a database to this version's schema.

Alembic does the work and is imported only when there is any: a Hub whose schema is current starts
without it.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

from chappe.core.errors import Unavailable

if TYPE_CHECKING:
    from sqlalchemy import Connection

HEAD = "0013"


def current(path: Path) -> str | None:
    """The schema version of the database at `path`, None when it is new."""
    if not path.exists():
        return None
    with contextlib.closing(sqlite3.connect(path)) as conn:
        try:
            row = conn.execute("SELECT version_num FROM alembic_version").fetchone()
        except sqlite3.OperationalError as e:
            if "no such table" in str(e):
                return None
            raise  # it cannot be read now (a full disk), and is not to be taken for a new one
        except sqlite3.DatabaseError as e:
            raise Unavailable(
                f"{path} is not a database of Chappe ({e}): restore a backup, or choose another --db",
                code="schema",
                field="db",
            ) from None
        return str(row[0]) if row else None


def migrate(path: Path) -> None:
    """Run the migrations that are missing. One transaction: killed half-way, nothing has happened.

    Raises Unavailable if the file is no database, or one of a later version of Chappe.
    """
    if _is_current(current(path), str(path)):
        return
    import sqlalchemy as sa

    engine = sa.create_engine(f"sqlite:///{path}", poolclass=sa.NullPool)

    @sa.event.listens_for(engine, "connect")
    def _connect(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    with engine.connect() as conn:
        _upgrade(conn)
    engine.dispose()
    path.chmod(0o600)


def migrate_postgresql(conn: Connection) -> None:
    """The same on a connection that holds the writer's lock: of two that start, one migrates."""
    with conn.begin():
        there = conn.exec_driver_sql("SELECT to_regclass('alembic_version')").scalar()
        version = None
        if there is not None:
            version = conn.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    if not _is_current(version, "the database"):
        _upgrade(conn)


def _is_current(version: str | None, name: str) -> bool:
    if version is not None and version > HEAD:
        raise Unavailable(
            f"{name} was made by a later version of Chappe (schema {version}, this one knows {HEAD}): "
            "start that version, or choose another --db",
            code="schema",
            field="db",
        )
    return version == HEAD


def _upgrade(conn: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = conn
    with conn.begin():
        command.upgrade(config, "head")
