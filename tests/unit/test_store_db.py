"""Opening the store: one process, a local disk, and readers that cannot write."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, OperationalError

from chappe.core.errors import Invalid, Unavailable
from chappe.store import db
from chappe.store.tx import Tx
from chappe.testing.clock import FakeClock
from chappe.testing.store import StoreRig, cores

OPEN = """
import sys, time
from chappe.core.errors import Unavailable
from chappe.store.db import open_store
try:
    store = open_store(sys.argv[1], clock=time.time)
except Unavailable as e:
    print(e.code)
else:
    store.close()
    print("opened")
"""


def in_another_process(url: str) -> str:
    done = subprocess.run(
        [sys.executable, "-I", "-c", OPEN, url], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.sqlite
def test_a_second_process_is_refused_as_long_as_the_first_is_there(rig: StoreRig) -> None:
    assert in_another_process(rig.store.url) == "locked"
    with pytest.raises(Unavailable, match="another hub") as caught:
        db.open_store(rig.store.url, clock=FakeClock())
    assert caught.value.code == "locked"
    rig.store.close()
    assert in_another_process(rig.store.url) == "opened"
    rig.store = db.open_store(rig.store.url, clock=rig.clock)


@pytest.mark.sqlite
def test_a_store_that_could_not_be_opened_leaves_no_lock(
    memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{memory / 'hub.db'}"
    with monkeypatch.context() as broken:
        broken.setattr(db, "migrate", lambda _path: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            db.open_store(url, clock=FakeClock())
    db.open_store(url, clock=FakeClock()).close()


@pytest.mark.sqlite
@pytest.mark.parametrize("f_type", sorted(db.NETWORK_FILE_SYSTEMS))
def test_network_file_systems_are_refused_by_name(
    memory: Path, monkeypatch: pytest.MonkeyPatch, f_type: int
) -> None:
    monkeypatch.setattr(db, "_file_system_type", lambda _directory: f_type)
    with pytest.raises(Unavailable, match=db.NETWORK_FILE_SYSTEMS[f_type]) as caught:
        db.open_store(f"sqlite:///{memory / 'hub.db'}", clock=FakeClock())
    assert caught.value.code == "network_file_system"
    assert not (memory / "hub.db").exists()


def test_the_type_of_a_file_system_is_the_kernels(memory: Path) -> None:
    kernel = subprocess.run(
        ["stat", "-f", "-c", "%t", str(memory)], capture_output=True, text=True, check=True
    )
    assert db._file_system_type(memory) == int(kernel.stdout, 16)


@pytest.mark.sqlite
@pytest.mark.parametrize(
    "url", ["mysql://localhost/chappe", "sqlite://", "sqlite:///:memory:", "hub.db"]
)
def test_other_databases_are_refused(
    url: str, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(memory)
    with pytest.raises(Invalid) as caught:
        db.open_store(url, clock=FakeClock())
    assert caught.value.field == "db"


@pytest.mark.sqlite
@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE hub SET commit_no = 0",
        "DELETE FROM project",
        "CREATE TABLE t (x)",
        "PRAGMA user_version = 3",
    ],
)
def test_readers_cannot_write(rig: StoreRig, sql: str) -> None:
    def write(conn: Connection) -> None:
        conn.exec_driver_sql(sql)

    with pytest.raises(OperationalError, match="readonly"):
        rig.ask(write)


def test_a_reader_sees_one_moment(rig: StoreRig) -> None:
    def twice(conn: Connection) -> tuple[int, int]:
        first = conn.execute(sa.text("SELECT count(*) FROM site")).scalar_one()
        rig.add_site("meanwhile")
        return first, conn.execute(sa.text("SELECT count(*) FROM site")).scalar_one()

    assert rig.ask(twice) == (0, 0)
    assert len(rig.sql("SELECT * FROM site")) == 1


@pytest.mark.sqlite
def test_every_commit_is_on_the_disk(rig: StoreRig) -> None:
    def pragmas(tx: Tx) -> tuple[object, object]:
        return (
            tx.conn.exec_driver_sql("PRAGMA journal_mode").scalar(),
            tx.conn.exec_driver_sql("PRAGMA synchronous").scalar(),
        )

    assert rig.do(pragmas) == ("wal", 2)


@pytest.mark.sqlite
def test_the_files_are_for_the_owner_alone(memory: Path) -> None:
    path = memory / "new" / "hub.db"
    umask = os.umask(0)
    try:
        store = db.open_store(f"sqlite:///{path}", clock=FakeClock())
        modes = {f.name: stat.S_IMODE(f.stat().st_mode) for f in path.parent.iterdir()}
        store.close()
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert modes == dict.fromkeys(("hub.db", "hub.db-wal", "hub.db-shm", "hub.db.lock"), 0o600)


def test_what_users_sent_is_not_in_an_error(rig: StoreRig) -> None:
    def fail(tx: Tx) -> None:
        tx.write(sa.text("INSERT INTO nowhere VALUES (:secret)"), secret="xyzzy")

    with pytest.raises(DBAPIError) as caught:
        rig.do(fail)
    assert "xyzzy" not in str(caught.value)


@pytest.mark.sqlite
def test_closing_leaves_one_file_that_opens_again(rig: StoreRig) -> None:
    site = rig.add_site("paris")
    job = rig.spec(site)
    rig.submit(job)
    head = rig.store.head(1)
    rig.restart()
    assert rig.states(job) == ["PREPROCESSED"]
    assert rig.store.head(1) == head
    rig.close()
    assert not Path(f"{rig.path}-wal").exists()
    rig.store = db.open_store(rig.store.url, clock=rig.clock)


def test_memory_is_the_same_after_a_restart(rig: StoreRig) -> None:
    site = rig.add_site("paris")
    rig.submit(rig.spec(site), rig.spec(site))
    pilot = site.add_pilot()
    pilot.sync(capacity=cores(1))
    before = rig.store.writer.catalog
    rig.restart()
    after = rig.store.writer.catalog
    assert after is not before
    for name in ("incarnation", "commit_no", "next_job", "next_seq", "shapes", "leases"):
        assert getattr(after, name) == getattr(before, name), name
    for n, entry in before.sites.items():
        # Validators are functions, compiled anew: they cannot be compared.
        assert {a: e.view for a, e in entry.apps.items()} == {
            a: e.view for a, e in after.sites[n].apps.items()
        }
        assert entry.shapes == after.sites[n].shapes
