"""Opening the store on PostgreSQL: one Hub writes, others may wait for it to end.

A commit must be what it is on SQLite, on the disk before it is answered; so a server that was told not to
care is refused. The writer holds an advisory lock (store.line); readers' transactions are read-only, each
sees one moment. The driver is psycopg 3: the store is threads that wait, for which asyncpg has no API.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import structlog
from sqlalchemy import URL, Connection, Engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool, QueuePool

from chappe.core.errors import Invalid, Unavailable
from chappe.store.db import READERS, Store, notice_a_restore
from chappe.store.line import CHANNEL, LOCK_NUMBER, PostgresLine
from chappe.store.mark import Mark
from chappe.store.migrate import migrate_postgresql
from chappe.store.tx import COPY
from chappe.store.writer import Writer

log = structlog.get_logger("chappe.store.postgres")

#: The oldest server: it notices in the middle of a statement that its client has gone.
OLDEST = 14
#: A standby looks whether the lock is free at least this often; an orderly end wakes it at once.
LOOK_S = 0.5
CONNECT_S = 5

#: Both ends notice within about 10 s when the other, or the network, is gone without a word.
_CLIENT_ALIVE = {
    "connect_timeout": CONNECT_S,
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
_SERVER_ALIVE = {
    "tcp_keepalives_idle": 5,
    "tcp_keepalives_interval": 2,
    "tcp_keepalives_count": 3,
    "tcp_user_timeout": 10_000,
    "client_connection_check_interval": 1_000,
}
#: Every statement of the writer goes from a few rows to others by an index. The planner, which takes each set
#: for a hundred rows and may not know the tables' sizes yet, would rather read small tables whole.
_WRITER = {
    "synchronous_commit": "on",
    "lock_timeout": 3_000,
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_bitmapscan": "off",
    "enable_material": "off",
    # A plan made for an empty table must not be kept for a full one.
    "plan_cache_mode": "force_custom_plan",
    "jit": "off",
    **_SERVER_ALIVE,
}
_READER = {
    "default_transaction_read_only": "on",
    r"default_transaction_isolation": r"repeatable\ read",
    "jit": "off",
    **_SERVER_ALIVE,
}

SETTINGS = text("""
    SELECT name, setting FROM pg_settings
    WHERE name IN ('fsync', 'full_page_writes', 'server_version_num', 'server_encoding')""")
RECOVERING = text("SELECT pg_is_in_recovery()")
FREE = text(f"SELECT pg_try_advisory_lock({LOCK_NUMBER})")
SCHEMA = text("SELECT current_schema()")


def open_postgresql(url: URL, *, clock: Callable[[], float], data: Path | None) -> Store:
    """Open it, making or migrating its tables first. `data` is where the mark of commits is kept.

    Raises Unavailable: `locked` when another Hub writes there, `unsafe` when the server does not keep
    what it commits, `database` when it does not answer.
    """
    writing = engine(url, _WRITER, NullPool)
    sa.event.listen(writing, "do_executemany", _copy_rows)
    line = PostgresLine(writing)
    with contextlib.ExitStack() as undo, in_words(url):
        undo.callback(line.close)
        conn = line.open()
        check_server(conn)
        migrate_postgresql(conn)
        mark = Mark(os.open(_mark_path(conn, data), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        undo.callback(mark.close)
        writer = Writer(line, clock, mark.write)
        notice_a_restore(writer, mark)
        readers = engine(url, _READER, QueuePool, pool_size=READERS, max_overflow=0)
        sa.event.listen(readers, "connect", _take_any_text)
        close = undo.pop_all().close
    return Store(url.render_as_string(), writer, readers, close)


def engine(url: URL, settings: dict[str, Any], pool: type[sa.Pool], **more: Any) -> Engine:
    """An engine whose every connection has these settings. Raises Invalid without the driver."""
    options = " ".join(f"-c {name}={value}" for name, value in settings.items())
    try:
        return sa.create_engine(
            url.set(drivername="postgresql+psycopg"),
            poolclass=pool,
            connect_args={**_CLIENT_ALIVE, "options": options, "application_name": "chappe hub"},
            use_native_hstore=False,
            hide_parameters=True,  # an error is logged; what users sent does not belong there
            **more,
        )
    except ImportError as e:
        raise Invalid(
            f"PostgreSQL needs its driver ({e}): install it with pip install 'chappe[hub,postgresql]'",
            field="db",
        ) from None


def _copy_rows(cursor: Any, statement: str, rows: list[tuple[Any, ...]], _context: object) -> bool:
    """Carry out COPY … FROM STDIN with these rows. Here, a failure is SQLAlchemy's to name, as any other."""
    if not statement.startswith(COPY):
        return False
    with cursor.copy(statement) as copy:
        for row in rows:
            copy.write_row(row)
    return True


def _take_any_text(connection: Any, _record: object) -> None:
    """No text of PostgreSQL holds a NUL: one that is asked for is not there, which is no error."""
    from psycopg.types.string import StrDumper

    class AnyText(StrDumper):
        def dump(self, obj: str) -> Any:
            return super().dump(obj.replace("\0", "\N{REPLACEMENT CHARACTER}"))

    connection.adapters.register_dumper(str, AnyText)


@contextlib.contextmanager
def in_words(url: URL) -> Iterator[None]:
    """Failures of the server as Unavailable."""
    try:
        yield
    except DBAPIError as e:
        raise Unavailable(
            f"the database {url.render_as_string()} cannot be opened: {str(e.orig).strip()}",
            code="database",
            field="db",
        ) from e


def check_server(conn: Connection) -> None:
    """Raise Unavailable unless what this server commits is on its disk, and it is new enough."""
    with conn.begin():
        settings = {row.name: row.setting for row in conn.execute(SETTINGS)}
        recovering = conn.execute(RECOVERING).scalar_one()
    if int(settings["server_version_num"]) < OLDEST * 10_000:
        have = int(settings["server_version_num"]) // 10_000
        raise _unfit(f"it is PostgreSQL {have}, and the oldest that will do is {OLDEST}")
    for name in ("fsync", "full_page_writes"):
        if settings[name] != "on":
            raise _unfit(
                f"its setting {name} is off, and a power cut would lose what it committed: "
                f"set {name} = on in postgresql.conf, and reload",
                "unsafe",
            )
    if settings["server_encoding"] != "UTF8":
        raise _unfit(
            f"its encoding is {settings['server_encoding']}: "
            "make the database with CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0"
        )
    if recovering:
        raise _unfit("it is a read-only replica: name the primary server")


def _unfit(words: str, code: str = "server") -> Unavailable:
    return Unavailable(f"the database server will not do: {words}", code=code, field="db")


def _mark_path(conn: Connection, data: Path | None) -> str:
    """The file of the mark, named after where the database is: a restored copy is put back there.

    The server's own identity would not do: a dump that is read into a new server, or into a new database of
    the same one, is the very case to notice.
    """
    if data is None:
        return os.devnull
    with conn.begin():
        schema = conn.execute(SCHEMA).scalar_one()
    info = conn.connection.dbapi_connection.info  # type: ignore[union-attr]
    place = f"{info.host}\0{info.port}\0{info.dbname}\0{schema}"
    return str(data / f"postgresql-{hashlib.sha256(place.encode()).hexdigest()[:12]}.mark")


def wait_for_the_lock(url: URL, stop: threading.Event) -> bool:
    """Return True when no Hub writes the database any more, False when `stop` was set first.

    The connection waits idle between looks: a statement that waited on the server would keep its old
    row versions from being cleaned up, for as long as it waits.
    """
    waiting = engine(url, _SERVER_ALIVE, NullPool)
    while not stop.is_set():
        try:
            with waiting.connect() as conn:
                if _free(conn, stop):
                    return True
        except DBAPIError as e:
            log.warning("the database does not answer", error=str(e.orig).strip())
            stop.wait(LOOK_S)
    return False


def _free(conn: Connection, stop: threading.Event) -> bool:
    conn = conn.execution_options(isolation_level="AUTOCOMMIT")
    conn.exec_driver_sql(f"LISTEN {CHANNEL}")
    driver: Any = conn.connection.dbapi_connection
    while not stop.is_set():
        if conn.execute(FREE).scalar_one():
            return True  # the lock goes with this connection, and the first to take it anew has it
        for _ in driver.notifies(timeout=LOOK_S, stop_after=1):
            break
    return False
