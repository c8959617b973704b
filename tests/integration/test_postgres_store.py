"""The store on a PostgreSQL that is cut off at the worst moment, restarted, locked, or not fit for it."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from chappe.core import faults
from chappe.core.errors import Invalid, Unavailable
from chappe.store import line, migrate, postgres, tables
from chappe.store.db import open_store, parse
from chappe.store.line import Superseded
from chappe.store.tx import Tx
from chappe.testing.clock import FakeClock
from chappe.testing.place import Databases, PostgresPlace
from chappe.testing.postgres import PostgresServer
from chappe.testing.relay import Relay
from chappe.testing.store import StoreRig, cores, held

WITHIN_S = 60.0
ADD = sa.text("INSERT INTO project (id, name, next_seq, created_at) VALUES (:name, :name, 1, 0)")


@pytest.fixture(autouse=True)
def disarmed() -> Generator[None, None, None]:
    yield
    faults.arm(None)


@pytest.fixture
def relay(postgres: PostgresServer) -> Iterator[Relay]:
    """A road to the server that can be cut."""
    listener = socket.create_server(("127.0.0.1", 0))
    relay = Relay(listener, postgres.port)
    yield relay
    relay.close()


@pytest.fixture
def rig(databases: Databases, relay: Relay, tmp_path: Path) -> Iterator[StoreRig]:
    """A store behind that road."""
    with StoreRig(PostgresPlace(databases, tmp_path / "data", relay.address[1])) as rig:
        yield rig


def add(tx: Tx, name: str) -> str:
    tx.write(ADD, name=name)
    return name


def names(rig: StoreRig) -> set[str]:
    return {row["name"] for row in rig.sql("SELECT name FROM project")} - {"default"}


def until(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


@contextmanager
def before_the_next_commit(act: Callable[[], None]) -> Iterator[None]:
    """Do something once, between the last statement and COMMIT."""

    def hook(point: str) -> None:
        if point == "hub.before_commit":
            faults.arm(None)
            act()

    faults.arm(hook)
    yield
    faults.arm(None)


# -- the connection breaks ---------------------------------------------------------------------------


def test_a_commit_whose_answer_was_lost_is_answered_and_not_repeated(
    rig: StoreRig, relay: Relay
) -> None:
    before = rig.sql("SELECT commit_no FROM hub")[0][0]
    cut = threading.Event()

    def lose_the_answer() -> None:
        relay.cut(answers_only=True)
        cut.set()

    def restore() -> None:
        assert cut.wait(WITHIN_S)
        until(lambda: rig.sql("SELECT commit_no FROM hub")[0][0] > before, "COMMIT did not arrive")
        relay.cut(reset=True)
        relay.restore()

    ran: list[int] = []

    def once(tx: Tx) -> str:
        ran.append(1)
        return add(tx, "once")

    road = threading.Thread(target=restore)
    road.start()
    with before_the_next_commit(lose_the_answer):
        assert rig.store.writer.submit(once).result(WITHIN_S) == "once"
    road.join()
    assert len(ran) == 1, "the command was run again"
    assert names(rig) == {"once"}
    assert rig.store.writer.catalog.commit_no == before + 1
    rig.do(add, "and on")
    assert rig.sql("SELECT commit_no FROM hub")[0][0] == before + 2


def test_a_lost_commit_is_still_known_after_a_long_silence(
    rig: StoreRig, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can be told what became of it; yet the writer takes its own commit for nobody else's."""
    monkeypatch.setattr(line, "PATIENCE_S", 0.2)
    before = rig.sql("SELECT commit_no FROM hub")[0][0]

    def lose_the_answer() -> None:
        relay.cut(answers_only=True)
        road.start()

    def stay_away() -> None:
        until(lambda: rig.sql("SELECT commit_no FROM hub")[0][0] > before, "COMMIT did not arrive")
        relay.cut(reset=True)

    road = threading.Thread(target=stay_away)
    with before_the_next_commit(lose_the_answer):
        failed = rig.store.writer.submit(add, "once").exception(WITHIN_S)
    road.join()
    assert isinstance(failed, OperationalError | Unavailable)
    for _ in range(3):
        refused = rig.store.writer.submit(add, "not now").exception(WITHIN_S)
        assert isinstance(refused, Unavailable)
        assert refused.code == "database"
    relay.restore()
    until(lambda: rig.store.writer.submit(_nothing).exception(WITHIN_S) is None, "not back")
    assert names(rig) == {"once"}
    assert rig.store.writer.catalog.commit_no == before + 1


def _nothing(_tx: Tx) -> None:
    """A command that writes nothing."""


def test_a_commit_that_never_arrived_is_run_again(rig: StoreRig, relay: Relay) -> None:
    def lose_the_commit() -> None:
        relay.cut(reset=True)
        relay.restore()

    ran: list[int] = []

    def twice(tx: Tx) -> str:
        ran.append(1)
        return add(tx, "once")

    before = rig.sql("SELECT commit_no FROM hub")[0][0]
    with before_the_next_commit(lose_the_commit):
        assert rig.store.writer.submit(twice).result(WITHIN_S) == "once"
    assert len(ran) == 2
    assert names(rig) == {"once"}
    assert rig.sql("SELECT commit_no FROM hub")[0][0] == before + 1


def test_a_database_that_stays_away_is_a_transient_error_and_comes_back(
    rig: StoreRig, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line, "PATIENCE_S", 0.5)
    relay.cut(reset=True)
    failed = rig.store.writer.submit(add, "lost").exception(WITHIN_S)
    assert isinstance(failed, OperationalError | Unavailable)
    refused = rig.store.writer.submit(add, "refused").exception(WITHIN_S)
    assert isinstance(refused, Unavailable)
    assert (refused.code, refused.transient) == ("database", True)
    relay.restore()

    def answers() -> bool:
        return rig.store.writer.submit(add, "back").exception(WITHIN_S) is None

    until(answers, "the writer did not come back")
    assert names(rig) == {"back"}
    assert rig.ask(lambda conn: conn.execute(sa.text("SELECT 1")).scalar()) == 1


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGQUIT])
def test_a_restart_of_the_server_loses_nothing(
    databases: Databases, postgres: PostgresServer, tmp_path: Path, sig: signal.Signals
) -> None:
    made: list[str] = []
    stop = threading.Event()
    with StoreRig(PostgresPlace(databases, tmp_path)) as rig:

        def load() -> None:
            for i in range(100_000):
                if stop.is_set():
                    return
                if rig.store.writer.submit(add, f"p{i}").exception(WITHIN_S) is None:
                    made.append(f"p{i}")

        client = threading.Thread(target=load)
        client.start()
        until(lambda: len(made) > 20, "no load")
        postgres.restart(sig)
        there = len(made)
        until(lambda: len(made) > there + 20, "the writer did not come back")
        stop.set()
        client.join()
        rig.place.let_go()
        assert set(made) <= names(rig), "what was acknowledged is there"
        assert rig.ask(lambda conn: conn.execute(sa.text("SELECT 1")).scalar()) == 1
        assert rig.sql("SELECT commit_no FROM hub")[0][0] == rig.store.writer.catalog.commit_no


@pytest.mark.parametrize("others", [0, 20])
def test_a_crash_that_forgets_a_transaction_s_number_is_survived(
    databases: Databases, postgres: PostgresServer, tmp_path: Path, others: int
) -> None:
    """What was not yet on the server's disk never was, its number included: it is given to `others`."""
    crashes: list[str] = []

    def hook(point: str) -> None:
        if point == "hub.before_commit" and not crashes:
            crashes.append(point)
            postgres.restart(signal.SIGQUIT)
            for _ in range(others):
                postgres.sql("SELECT pg_current_xact_id()")

    with StoreRig(PostgresPlace(databases, tmp_path)) as rig:
        faults.arm(hook)
        try:
            rig.store.writer.submit(add, "once").exception(WITHIN_S)
        finally:
            faults.arm(None)
        until(lambda: rig.store.writer.submit(add, "more").exception(WITHIN_S) is None, "not back")
        rig.place.let_go()
        assert crashes
        assert names(rig) >= {"more"}
        assert rig.sql("SELECT commit_no FROM hub")[0][0] == rig.store.writer.catalog.commit_no


def test_leases_and_events_survive_cuts_at_every_commit(rig: StoreRig, relay: Relay) -> None:
    """A Job's whole life, each of its commits met by a cut before or after COMMIT."""
    site = rig.add_site("paris")
    pilot = site.add_pilot()
    cuts: list[str] = []

    def hook(point: str) -> None:
        if point == "hub.before_commit" and len(cuts) % 2 == 0:
            relay.cut(reset=True)
            relay.restore()
        if point == "hub.before_commit":
            cuts.append(point)

    faults.arm(hook)
    jobs = [rig.spec(site) for _ in range(3)]
    rig.submit(*jobs)
    grants = pilot.sync(capacity=cores(4)).grants
    assert len(grants) == 3
    pilot.sync(held=[held(g) for g in grants], reports=[pilot.start(g) for g in grants])
    pilot.sync(reports=[pilot.end(g) for g in grants])
    faults.arm(None)
    assert cuts
    assert rig.states(*jobs) == ["JOB_FINISHED"] * 3
    seqs = [row[0] for row in rig.sql("SELECT seq FROM event WHERE project = 1 ORDER BY seq")]
    assert seqs == list(range(1, len(seqs) + 1))


# -- others at the same database ---------------------------------------------------------------------


def test_a_second_hub_is_told_that_it_is_locked(rig: StoreRig) -> None:
    with pytest.raises(Unavailable) as caught:
        open_store(rig.store.url, clock=FakeClock())
    assert caught.value.code == "locked"


def test_a_hub_that_was_cut_off_finds_itself_replaced(
    rig: StoreRig, relay: Relay, databases: Databases
) -> None:
    told = threading.Event()
    rig.store.writer.on_superseded = told.set
    relay.cut(reset=True)
    direct = rig.store.url.replace(f":{relay.address[1]}/", f":{databases.server.port}/")
    until(lambda: not _locked(direct), "the lost connection keeps the lock")
    other = open_store(direct, clock=FakeClock())
    relay.restore()
    failed = rig.store.writer.submit(add, "late").exception(WITHIN_S)
    while not isinstance(failed, Superseded):
        failed = rig.store.writer.submit(add, "late").exception(WITHIN_S)
    assert told.wait(WITHIN_S)
    assert other.writer.submit(add, "new").result(WITHIN_S) == "new"
    other.close()
    with pytest.raises(Superseded):
        rig.store.writer.submit(add, "for ever").result(WITHIN_S)
    assert names(rig) == {"new"}


def _locked(url: str) -> bool:
    engine = postgres.engine(parse(url), {}, NullPool)
    with engine.connect() as conn:
        return not conn.execute(postgres.FREE).scalar_one()


def test_who_waits_for_the_lock_is_woken_by_an_orderly_end(
    rig: StoreRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "LOOK_S", WITHIN_S)
    free: list[bool] = []
    stop = threading.Event()
    waiter = threading.Thread(
        target=lambda: free.append(postgres.wait_for_the_lock(parse(rig.store.url), stop))
    )
    waiter.start()
    listening = "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'SELECT pg_try_advisory_lock%' AND pid <> ?"
    until(lambda: rig.sql(listening, 0), "nobody waits")
    rig.store.close()
    waiter.join(WITHIN_S / 2)
    assert free == [True]
    rig.store = rig._open()


def test_a_lock_that_somebody_holds_is_waited_for_and_then_transient(
    rig: StoreRig, databases: Databases, relay: Relay
) -> None:
    direct = rig.store.url.replace(f":{relay.address[1]}/", f":{databases.server.port}/")
    rig.store.writer.submit(_short_lock_timeout).result(WITHIN_S)
    with psycopg.connect(direct) as conn:
        conn.execute("LOCK TABLE project IN EXCLUSIVE MODE")
        failed = rig.store.writer.submit(add, "blocked").exception(WITHIN_S)
        assert isinstance(failed, OperationalError)
        assert failed.orig.sqlstate == "55P03"  # type: ignore[union-attr]
    assert rig.do(add, "free") == "free"
    assert names(rig) == {"free"}


def _short_lock_timeout(tx: Tx) -> None:
    tx.conn.exec_driver_sql("SET lock_timeout = 200")


def test_a_deadlock_is_tried_again(rig: StoreRig, databases: Databases, relay: Relay) -> None:
    """Somebody at the console locks what the writer wants next, and wants what it has."""
    direct = rig.store.url.replace(f":{relay.address[1]}/", f":{databases.server.port}/")
    rig.do(add, "a")
    first, ran = threading.Event(), []
    with psycopg.connect(direct, autocommit=True) as conn:
        conn.execute("SET deadlock_timeout = '20s'")  # so that the writer is the victim
        conn.execute("BEGIN; UPDATE site SET name = name; UPDATE hub SET n = n")
        other = threading.Thread(target=_finish, args=(conn, first))
        other.start()

        def want_both(tx: Tx) -> str:
            ran.append(1)
            tx.conn.exec_driver_sql("SET LOCAL deadlock_timeout = '50ms'")
            tx.conn.exec_driver_sql("UPDATE project SET name = name")
            first.set()
            return add(tx, "b")

        assert rig.store.writer.submit(want_both).result(WITHIN_S) == "b"
        other.join()
    assert len(ran) > 1
    assert names(rig) == {"a", "b"}


def _finish(conn: psycopg.Connection[Any], first: threading.Event) -> None:
    first.wait(WITHIN_S)
    conn.execute("UPDATE project SET name = name")
    conn.execute("COMMIT")


# -- servers that will not do, and databases to begin with ----------------------------------------------


@pytest.mark.parametrize("setting", ["fsync", "full_page_writes"])
def test_a_server_that_does_not_keep_what_it_commits_is_refused(
    databases: Databases, postgres: PostgresServer, setting: str
) -> None:
    url = databases.borrow()
    postgres.sql(f"ALTER SYSTEM SET {setting} = off")
    postgres.sql("SELECT pg_reload_conf()")
    try:
        until(lambda: postgres.sql(f"SHOW {setting}") == [("off",)], "not reloaded")
        with pytest.raises(Unavailable, match=f"{setting} is off") as caught:
            open_store(url, clock=FakeClock())
        assert (caught.value.code, caught.value.field) == ("unsafe", "db")
    finally:
        postgres.sql(f"ALTER SYSTEM RESET {setting}")
        postgres.sql("SELECT pg_reload_conf()")
        until(lambda: postgres.sql(f"SHOW {setting}") == [("on",)], "not reloaded")
        databases.give_back(url)


def test_an_old_server_is_refused_by_name(
    databases: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "OLDEST", 99)
    url = databases.borrow()
    with pytest.raises(Unavailable, match="the oldest that will do is 99"):
        open_store(url, clock=FakeClock())
    databases.give_back(url)


def test_a_server_that_is_not_there_is_unavailable_in_words() -> None:
    with pytest.raises(Unavailable, match="cannot be opened") as caught:
        open_store("postgresql://u:secret@127.0.0.1:1/x", clock=FakeClock())
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "statement", ["UPDATE hub SET commit_no = 0", "DELETE FROM job", "CREATE TABLE t (x int)"]
)
def test_readers_cannot_write(rig: StoreRig, statement: str) -> None:
    with pytest.raises(Exception, match="read-only transaction"):
        rig.ask(lambda conn: conn.exec_driver_sql(statement))


def test_what_no_text_can_be_is_not_there(rig: StoreRig) -> None:
    found = "SELECT count(*) FROM project WHERE name = :name"
    assert rig.ask(lambda c: c.execute(sa.text(found), {"name": "a\0b"}).scalar()) == 0


def test_every_commit_is_on_the_servers_disk(rig: StoreRig) -> None:
    def settings(tx: Tx) -> list[object]:
        names = ("fsync", "full_page_writes", "synchronous_commit")
        return [tx.conn.exec_driver_sql(f"SHOW {name}").scalar() for name in names]

    assert rig.do(settings) == ["on", "on", "on"]


def test_the_schema_is_what_the_tables_say_in_64_bits(databases: Databases) -> None:
    url = databases.borrow()
    engine = postgres.engine(parse(url), {}, NullPool)
    with engine.connect() as conn:
        found = compare_metadata(
            MigrationContext.configure(conn, opts={"compare_type": True}), tables.metadata
        )
        narrow = conn.exec_driver_sql(
            "SELECT table_name, column_name FROM information_schema.columns "
            "WHERE table_schema = current_schema() AND table_name <> 'alembic_version' "
            "AND (data_type = 'integer' OR data_type = 'text' AND collation_name IS DISTINCT FROM 'C')"
        ).fetchall()
    databases.give_back(url)
    assert found == []
    assert narrow == [], "use Integer and Text of store.dialect"


OPEN = """
import sys, time
from chappe.core.errors import Unavailable
from chappe.store.db import open_store
while True:
    try:
        open_store(sys.argv[1], clock=time.time).close()
    except Unavailable as e:
        assert e.code == "locked", e
        time.sleep(0.05)
    else:
        break
"""

#: Migrates, and dies at the n-th statement.
DIE = """
import os, signal, sys, time
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from chappe.store.db import open_store
left = int(sys.argv[2])
@sa.event.listens_for(Engine, "after_cursor_execute")
def count(*_):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
open_store(sys.argv[1], clock=time.time)
"""


def python(source: str, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-I", "-c", source, *arguments])


def test_of_hubs_that_start_at_once_one_migrates(postgres: PostgresServer) -> None:
    url = postgres.database()
    started = [python(OPEN, url) for _ in range(3)]
    assert [p.wait(WITHIN_S) for p in started] == [0, 0, 0]
    assert postgres.sql("SELECT version_num FROM alembic_version", url.rpartition("/")[2]) == [
        (migrate.HEAD,)
    ]


@pytest.mark.parametrize("statement", [20, 45])
def test_a_migration_that_is_killed_has_not_happened(
    postgres: PostgresServer, statement: int
) -> None:
    url = postgres.database()
    name = url.rpartition("/")[2]
    assert python(DIE, url, str(statement)).wait(WITHIN_S) == -signal.SIGKILL
    tables_there = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
    until(lambda: postgres.sql(tables_there, name) == [(0,)], "half a schema is left")
    until(lambda: not _locked(url), "the lock is still held")
    open_store(url, clock=FakeClock()).close()
    assert postgres.sql("SELECT version_num FROM alembic_version", name) == [(migrate.HEAD,)]


@pytest.mark.parametrize("url", ["postgresql+asyncpg://h/d", "mysql://h/d", "nonsense"])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(Invalid, match="postgresql://"):
        open_store(url, clock=FakeClock())
