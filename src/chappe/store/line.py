"""The writer's one connection, and what is known when it breaks.

SQLite's does not break. PostgreSQL's may at any moment, also after COMMIT was sent and before its answer
came: then nobody here knows whether the commit happened, and both guesses are wrong. So the writer keeps
the transaction's number (xid), and asks the server what became of it before it answers or repeats anything.

Only who holds the advisory lock writes. The lock belongs to the connection: when that is gone, another Hub
may have it. A writer that comes back therefore takes the lock again first, and then compares the last commit
in the database with the last one it knows. If they differ, another Hub has written, and this one is over.
"""

from __future__ import annotations

import time
from enum import Enum
from typing import Any

import structlog
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from chappe.core.errors import Unavailable

log = structlog.get_logger("chappe.store.line")

#: How long a writer that lost its connection tries to have it back before it refuses commands.
PATIENCE_S = 5.0
PAUSE_S = 0.05

#: Failures of a transaction that another try may not meet: serialization, deadlock, lock, cancelled.
PASSING = frozenset({"40001", "40P01", "55P03", "57014"})

LAST_COMMIT = text("SELECT incarnation, commit_no FROM hub")
XID = text("SELECT CAST(pg_current_xact_id() AS text)")
#: NULL for a number that the server has not given yet: it crashed, and has forgotten that it did.
BECAME_OF = text("""
    SELECT CASE WHEN CAST(:xid AS xid8) < pg_snapshot_xmax(pg_current_snapshot())
                THEN pg_xact_status(CAST(:xid AS xid8)) END""")

#: One writer to a schema: the number of its advisory lock.
LOCK_NUMBER = "hashtextextended('chappe writer ' || current_schema(), 0)"
CHANNEL = "chappe_writer"
TRY_LOCK = text(f"SELECT pg_try_advisory_lock({LOCK_NUMBER})")
UNLOCK = text(f"SELECT pg_advisory_unlock({LOCK_NUMBER}), pg_notify('{CHANNEL}', '')")
ME = text("SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()")
STILL_THERE = text("""
    SELECT 1 FROM pg_stat_activity WHERE pid = :pid AND backend_start = :backend_start""")
END_BACKEND = text("""
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE pid = :pid AND backend_start = :backend_start""")


class Superseded(Unavailable):
    """Another Hub writes this database now."""

    default_code = "superseded"


class After(Enum):
    """What a failed transaction came to."""

    FAILED = "nothing was changed, and trying again would not help"
    AGAIN = "nothing was changed, and it may be tried again"
    COMMITTED = "it was committed; only the answer was lost"


class Line:
    """A connection that does not break: SQLite's."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._conn: Connection | None = None

    def connection(self) -> Connection:
        """The open connection."""
        if self._conn is None:
            self._conn = self._engine.connect()
        return self._conn

    def known(self, incarnation: int, commit_no: int) -> None:
        """The last commit, as the writer read it when it began."""

    def before_commit(self, incarnation: int, commit_no: int) -> None:
        """COMMIT of a transaction that wrote is the next thing sent."""

    def committed(self) -> None:
        """It was answered."""

    def after(self, _error: Exception) -> After:
        """What became of the transaction in which `_error` was raised."""
        return After.FAILED

    def close(self) -> None:
        """Close the connection."""
        if self._conn is not None:
            self._conn.close()
        self._conn = None
        self._engine.dispose()


class PostgresLine(Line):
    """A connection to PostgreSQL that holds the writer's lock. `connection` may raise Unavailable."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._patient = True
        self._me: dict[str, Any] | None = None
        #: (incarnation, commit_no) of the last commit that is certain, and of one whose end is unknown.
        self._certain: tuple[int, int] | None = None
        self._pending: tuple[str, tuple[int, int]] | None = None

    def open(self) -> Connection:
        """Connect for the first time. Raises Unavailable(locked) when another Hub writes."""
        self._conn = self._engine.connect()
        if not self._lock(self._conn):
            self.close()
            raise Unavailable(
                "another hub writes this database: stop it first, or start this one as its standby",
                code="locked",
                field="db",
            )
        return self._conn

    def connection(self) -> Connection:
        """The open connection, made anew when it was lost."""
        if self._conn is None:
            self._conn = self._connected()
        return self._conn

    def known(self, incarnation: int, commit_no: int) -> None:
        """What must still be the last commit when the connection comes back."""
        self._certain = incarnation, commit_no

    def before_commit(self, incarnation: int, commit_no: int) -> None:
        """Keep what tells whether the commit happened, should its answer be lost."""
        xid = self.connection().execute(XID).scalar_one()
        self._pending = (xid, (incarnation, commit_no))

    def committed(self) -> None:
        """The commit is certain."""
        if self._pending is not None:
            self._certain, self._pending = self._pending[1], None

    def after(self, error: Exception) -> After:
        """Whether it happened. Waits for the database to come back, at most PATIENCE_S."""
        if not isinstance(error, DBAPIError):
            # Refused here, and rolled back. Without a connection, what is pending is an earlier commit.
            if self._conn is not None:
                self._pending = None
            return After.FAILED
        if not error.connection_invalidated:
            self._pending = None
            again = getattr(error.orig, "sqlstate", None) in PASSING
            return After.AGAIN if again else After.FAILED
        log.warning("the connection to the database broke", error=str(error.orig))
        pending = self._pending
        self._drop()
        try:
            self.connection()
        except Unavailable:
            return After.FAILED  # told as transient: those who asked ask again, which is harmless
        return After.COMMITTED if pending and self._certain == pending[1] else After.AGAIN

    def close(self) -> None:
        """Give the lock back, and wake whoever waits for it."""
        if self._conn is not None and not self._conn.closed:
            try:
                with self._conn.begin():
                    self._conn.execute(UNLOCK)
            except DBAPIError as e:
                log.info("the connection was gone before it was closed", error=str(e.orig))
        super().close()

    # -- coming back -------------------------------------------------------------------------------

    def _drop(self) -> None:
        if self._conn is not None:
            self._conn.invalidate()
            self._conn.close()
        self._conn = None

    def _connected(self) -> Connection:
        until = time.monotonic() + (PATIENCE_S if self._patient else 0)
        pause_s = PAUSE_S
        while True:
            try:
                return self._come_back()
            except DBAPIError as e:
                words = str(e.orig).strip()
            except _Held:
                words = "the lost connection still holds the writer's lock"
            if time.monotonic() > until:
                self._patient = False
                raise Unavailable(f"the hub's database does not answer: {words}", code="database")
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 0.5)

    def _come_back(self) -> Connection:
        conn = self._engine.connect()
        try:
            before = self._me
            if before is not None:
                with conn.begin():
                    # The server may not know yet that the old connection is dead, and it has the lock.
                    conn.execute(END_BACKEND, before)
            if not self._lock(conn):
                self._look_who(conn, before)
            self._check_last_commit(conn)
        except BaseException:
            conn.invalidate()
            conn.close()
            raise
        self._patient = True
        log.info("connected to the database again")
        return conn

    def _lock(self, conn: Connection) -> bool:
        with conn.begin():
            if not conn.execute(TRY_LOCK).scalar_one():
                return False
            self._me = dict(conn.execute(ME).mappings().one())
            return True

    def _look_who(self, conn: Connection, before: dict[str, Any] | None) -> None:
        with conn.begin():
            mine = before is not None and conn.execute(STILL_THERE, before).first() is not None
        if mine:
            raise _Held
        if self._lock(conn):
            return  # the old connection ended in between
        raise Superseded("another hub has taken this database over while this one was cut off")

    def _check_last_commit(self, conn: Connection) -> None:
        with conn.begin():
            last = tuple(conn.execute(LAST_COMMIT).one())
            if self._pending is not None:
                xid, commit = self._pending
                # After a crash somebody else may have been given the number, and have committed.
                if last == commit and self._became_of(conn, xid) == "committed":
                    self._certain = commit
                self._pending = None
        if self._certain is not None and last != self._certain:
            raise Superseded(
                f"the database's last commit is {last}, not {self._certain}: another hub has written"
            )

    @staticmethod
    def _became_of(conn: Connection, xid: str) -> str | None:
        status: str | None = conn.execute(BECAME_OF, {"xid": xid}).scalar_one()
        return status


class _Held(Exception):
    """The lock is still held by the connection that was lost."""
