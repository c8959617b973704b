"""Opening a store: one process, a local disk, readers that cannot write."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import OperationalError

from chappe.core.errors import Invalid, Unavailable
from chappe.store import db
from chappe.store.db import NETWORK_FILE_SYSTEMS, READERS, open_store, refuse_network_file_system
from chappe.store.tx import Tx
from chappe.testing.clock import FakeClock
from chappe.testing.store import StoreRig

OPEN = """
import sys
from chappe.core.errors import Unavailable
from chappe.store.db import open_store
try:
    open_store(sys.argv[1], clock=lambda: 0.0)
except Unavailable as e:
    print(e.code, e.message)
"""


def test_a_second_process_is_refused(rig: StoreRig) -> None:
    url = f"sqlite:///{rig.path}"
    done = subprocess.run(
        [sys.executable, "-c", OPEN, url], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"locked another hub has {rig.path} open: stop it first")


def test_a_second_opening_in_this_process_is_refused_too(rig: StoreRig) -> None:
    with pytest.raises(Unavailable) as caught:
        open_store(f"sqlite:///{rig.path}", clock=FakeClock())
    assert (caught.value.code, caught.value.field, caught.value.transient) == ("locked", "db", True)
    rig.add_site("paris")


def test_the_lock_ends_with_the_store(rig: StoreRig) -> None:
    for _ in range(3):
        rig.restart()


def test_a_store_that_could_not_be_opened_holds_no_lock(memory: Path) -> None:
    path = memory / "hub.db"
    path.write_text("not a database")
    url = f"sqlite:///{path}"
    with pytest.raises(Unavailable) as caught:
        open_store(url, clock=FakeClock())
    assert caught.value.code == "schema"
    assert path.read_text() == "not a database"
    path.unlink()
    open_store(url, clock=FakeClock()).close()


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///", "postgresql://localhost/chappe", "mysql+x://h/d"]
)
def test_other_databases_are_refused(url: str) -> None:
    with pytest.raises(Invalid, match="sqlite:///PATH") as caught:
        open_store(url, clock=FakeClock())
    assert caught.value.field == "db"


@pytest.mark.parametrize(("magic", "name"), NETWORK_FILE_SYSTEMS.items())
def test_network_file_systems_are_refused(
    memory: Path, monkeypatch: pytest.MonkeyPatch, magic: int, name: str
) -> None:
    monkeypatch.setattr(db, "_file_system_type", lambda _path: magic)
    with pytest.raises(Unavailable) as caught:
        open_store(f"sqlite:///{memory / 'hub.db'}", clock=FakeClock())
    assert caught.value.code == "network_file_system"
    assert f"{memory} is on {name}" in caught.value.message
    assert "--db" in caught.value.message
    assert not list(memory.iterdir())


def test_the_type_of_a_file_system_is_read(memory: Path) -> None:
    """Of two that every Linux has: /proc, and wherever this test writes."""
    assert db._file_system_type(Path("/proc")) == 0x9FA0
    refuse_network_file_system(memory)
    with pytest.raises(FileNotFoundError):
        refuse_network_file_system(memory / "nowhere")


def test_readers_cannot_write(rig: StoreRig) -> None:
    def write(conn: Connection) -> None:
        conn.execute(text("UPDATE hub SET commit_no = 99"))

    for _ in range(2 * READERS):
        with pytest.raises(OperationalError, match="readonly"):
            rig.ask(write)
    assert rig.sql("SELECT commit_no FROM hub")[0][0] != 99


def test_a_read_is_one_snapshot(rig: StoreRig) -> None:
    def twice(conn: Connection) -> tuple[int, int]:
        count = text("SELECT count(*) FROM site")
        before = conn.execute(count).scalar_one()
        rig.add_site("paris")
        return before, conn.execute(count).scalar_one()

    assert rig.ask(twice) == (0, 0)
    assert rig.sql("SELECT count(*) FROM site")[0][0] == 1


def test_a_commit_is_durable(rig: StoreRig) -> None:
    """WAL with full sync, on the writer's own connection."""

    def ask(tx: Tx, name: str) -> object:
        return tx.conn.exec_driver_sql(f"PRAGMA {name}").scalar()

    assert rig.do(ask, "journal_mode") == "wal"
    assert rig.do(ask, "synchronous") == 2


def test_the_files_are_nobody_elses_to_read(memory: Path) -> None:
    before = os.umask(0)
    try:
        store = open_store(f"sqlite:///{memory / 'made' / 'hub.db'}", clock=FakeClock())
        modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (memory / "made").iterdir()}
        store.close()
    finally:
        os.umask(before)
    assert stat.S_IMODE((memory / "made").stat().st_mode) == 0o700
    assert set(modes) == {"hub.db", "hub.db-wal", "hub.db-shm", "hub.db.lock"}
    assert set(modes.values()) == {0o600}


def test_closing_leaves_one_whole_file(rig: StoreRig) -> None:
    rig.add_site("paris")
    rig.close()
    assert not rig.path.with_name("hub.db-wal").exists()
    with closing(sqlite3.connect(rig.path)) as conn:
        assert conn.execute("SELECT name FROM site").fetchall() == [("paris",)]
        assert conn.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    rig.store = rig._open()


def test_what_was_committed_is_there_after_a_restart(rig: StoreRig) -> None:
    site = rig.add_site("paris")
    job = rig.spec(site)
    rig.submit(job)
    before = rig.store.writer.catalog
    head = rig.store.head(rig.user.project_n)
    rig.restart()
    after = rig.store.writer.catalog
    assert rig.store.head(rig.user.project_n) == head
    assert after is not before
    for name in ("incarnation", "commit_no", "next_job", "next_seq", "shapes", "site_by_id"):
        assert _plain(getattr(after, name)) == _plain(getattr(before, name)), name


def _plain(value: object) -> object:
    """Validators are functions, compiled anew: they cannot be compared."""
    return sorted(map(str, value)) if isinstance(value, dict) else value
