"""Opening the store: SQLite in WAL mode with full sync, one process that writes, readers that cannot.

(PostgreSQL: store.postgres.)

SQLite's WAL does not work on network file systems, so those are refused. The system's SQLite may have
the bug of two concurrent checkpointers: only the writer checkpoints here, and readers are `query_only`
and closed before the writer.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
import structlog
from sqlalchemy import URL, Engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError
from sqlalchemy.pool import QueuePool

from chappe.core.errors import Invalid, Unavailable
from chappe.store.line import Line
from chappe.store.mark import Mark
from chappe.store.migrate import migrate
from chappe.store.tx import Tx
from chappe.store.writer import Writer

T = TypeVar("T")
log = structlog.get_logger("chappe.store.db")
READERS = 4

#: f_type of statfs(2), from linux/magic.h and the file systems' own sources.
NETWORK_FILE_SYSTEMS = {
    0x6969: "NFS",
    0xFF534D42: "CIFS",
    0xFE534D42: "SMB2",
    0x517B: "SMB",
    0x0BD00BD0: "Lustre",
    0x47504653: "GPFS",
    0x19830326: "BeeGFS",
    0x00C36400: "Ceph",
    0x5346414F: "AFS",
    0xAAD7AAEA: "PanFS",
    0x01021997: "9p",
}


class Store:
    """An open store. `read(fn, *args)` runs `fn(conn, *args)` on a connection that cannot write."""

    def __init__(
        self, url: str, writer: Writer, readers: Engine, close: Callable[[], None]
    ) -> None:
        self.url = url
        self.writer = writer
        self._readers = readers
        self._close = close

    @property
    def incarnation(self) -> int:
        """Rises when the Hub's past is replaced by a backup."""
        return self.writer.catalog.incarnation

    def head(self, project: int) -> int:
        """The highest committed seq of a project, 0 before its first Event."""
        return self.writer.heads.get(project, 0)

    def read(self, fn: Callable[..., T], *args: Any) -> T:
        """Run `fn(conn, *args)` in a snapshot of its own. Blocks: call it from a worker thread."""
        try:
            with self._readers.connect() as conn, conn.begin():
                return fn(conn, *args)
        except DBAPIError as e:
            if not e.connection_invalidated:
                raise
        # The server was restarted, or the network was: the pool has thrown its connections away.
        with self._readers.connect() as conn, conn.begin():
            return fn(conn, *args)

    def close(self) -> None:
        """Answer what is queued, close the readers, then the writer."""
        self.writer.stop()
        self._readers.dispose()
        self._close()


def open_store(url: str, *, clock: Callable[[], float], data: Path | None = None) -> Store:
    """Open `sqlite:///path` or `postgresql://…`, making or migrating it first.

    `clock` gives seconds since 1970; `data` is where a Hub on PostgreSQL keeps its mark. Raises Invalid for
    other URLs, Unavailable when another Hub has it open, or the file system or the server will not do.
    """
    parsed = parse(url)
    if parsed.get_backend_name() == "postgresql":
        from chappe.store.postgres import open_postgresql

        return open_postgresql(parsed, clock=clock, data=data)
    path = Path(str(parsed.database)).absolute()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    refuse_network_file_system(path.parent)
    lock = lock_database(path)
    try:
        # Nobody else's to read, whatever the umask; SQLite gives its side files the same mode.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        migrate(path)
        engine = _engine(path, writes=True)
        readers = _engine(path, writes=False)
        mark = Mark(lock)
        line = Line(engine)
        writer = Writer(line, clock, mark.write)
        notice_a_restore(writer, mark)
    except (sqlite3.OperationalError, OperationalError) as e:
        os.close(lock)
        words = e.orig if isinstance(e, OperationalError) else e
        raise Unavailable(
            f"{path} cannot be opened: {words}; is there space on its disk?",
            code="database",
            field="db",
        ) from e
    except BaseException:
        os.close(lock)
        raise

    def close() -> None:
        line.close()
        os.close(lock)

    return Store(url, writer, readers, close)


def notice_a_restore(writer: Writer, mark: Mark) -> None:
    """Begin a new incarnation if this file is an older copy of what was here before."""
    marked = mark.read()
    if marked > (writer.catalog.incarnation, writer.catalog.commit_no):
        log.warning("an older database was put back", commits_lost_after=writer.catalog.commit_no)
        writer.submit(Tx.renumber, marked[0] + 1).result()


def parse(url: str) -> URL:
    """The URL of a database. Raises Invalid unless it is of a kind that a store can be in."""
    with contextlib.suppress(ArgumentError):
        parsed = make_url(url)
        is_file = parsed.database not in (None, "", ":memory:")
        if parsed.drivername == "postgresql" or (parsed.drivername == "sqlite" and is_file):
            return parsed
    raise Invalid(
        "the database must be sqlite:///PATH or postgresql://USER@HOST/NAME "
        f"(and not {url.split(':')[0][:20]!r}:…)",
        field="db",
    )


def refuse_network_file_system(directory: Path) -> None:
    """Raise Unavailable if `directory` lies on a file system that SQLite's WAL cannot live on."""
    name = NETWORK_FILE_SYSTEMS.get(_file_system_type(directory))
    if name is not None:
        raise Unavailable(
            f"{directory} is on {name}, where the hub's database cannot live: "
            "choose a local disk with --data or --db",
            code="network_file_system",
            field="db",
        )


def _file_system_type(directory: Path) -> int:
    """f_type of statfs(2); Python's statvfs does not tell it."""
    import ctypes

    buffer = ctypes.create_string_buffer(256)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.statfs(os.fsencode(directory), buffer) != 0:
        raise OSError(ctypes.get_errno(), "statfs failed", str(directory))
    return ctypes.c_long.from_buffer(buffer).value & 0xFFFF_FFFF


def lock_database(path: Path) -> int:
    """The lock of the one writing process, held until it ends however it ends. Raises Unavailable."""
    fd = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise Unavailable(
            f"another hub has {path} open: stop it first, or choose another --db",
            code="locked",
            field="db",
        ) from None
    return fd


# For every None and every bytes value sqlite3 looks for an adapter, finds none, and makes an exception of
# that, only to drop it: 0.35 µs, half of what it costs to bind a row. These hand back what they are given.
_NONE: dict[None, None] = {}
sqlite3.register_adapter(type(None), _NONE.get)
sqlite3.register_adapter(bytes, bytes)


def _engine(path: Path, *, writes: bool) -> Engine:
    engine = sa.create_engine(
        f"sqlite:///{path}",
        poolclass=QueuePool,
        pool_size=1 if writes else READERS,
        max_overflow=0,
        connect_args={"check_same_thread": False, "cached_statements": 256},
        hide_parameters=True,  # an error is logged; what users sent does not belong there
    )

    @event.listens_for(engine, "connect")
    def _connect(connection: sqlite3.Connection, _record: object) -> None:
        # The driver must not begin transactions on its own: BEGIN is ours, below.
        connection.isolation_level = None
        with contextlib.closing(connection.cursor()) as c:
            c.execute("PRAGMA journal_mode = WAL")
            c.execute("PRAGMA synchronous = FULL")
            c.execute("PRAGMA busy_timeout = 10000")
            c.execute(f"PRAGMA cache_size = {-16_000 if writes else -4_000}")
            c.execute("PRAGMA temp_store = MEMORY")
            if writes:
                c.execute("PRAGMA journal_size_limit = 67108864")
            else:
                c.execute("PRAGMA query_only = 1")

    @event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine
