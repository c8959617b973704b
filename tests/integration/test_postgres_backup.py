"""Backups of a database of PostgreSQL: of one moment, private, and put back whole or not at all."""

from __future__ import annotations

import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from chappe.core.errors import Conflict, Invalid, NotFound, Unavailable
from chappe.store.backup import backups_of, manifest_path, verify
from chappe.store.db import open_store
from chappe.testing.clock import FakeClock
from chappe.testing.place import Databases, PostgresPlace
from chappe.testing.postgres import PostgresServer
from chappe.testing.store import StoreRig, cores, held

NOW = 1_800_000_000.0


@pytest.fixture
def rig(databases: Databases, tmp_path: Path) -> Iterator[StoreRig]:
    with StoreRig(PostgresPlace(databases, tmp_path / "data")) as rig:
        yield rig


def test_a_backup_is_of_one_moment_beside_a_writer_that_never_rests(
    rig: StoreRig, tmp_path: Path
) -> None:
    site = rig.add_site("paris")
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            rig.submit(rig.spec(site))

    writing = threading.Thread(target=write)
    writing.start()
    try:
        made = backups_of(rig.store.url).backup(tmp_path / "copy", NOW)
    finally:
        stop.set()
        writing.join()
    assert verify(tmp_path / "copy") == made
    assert made.store == "postgresql"
    for path in (tmp_path / "copy", manifest_path(tmp_path / "copy")):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    rig.close()
    backups_of(rig.store.url).restore(tmp_path / "copy", made, NOW)
    rig.store = rig._open()
    project = rig.sql("SELECT id, next_seq FROM project")[0]
    assert made.heads == {project[0]: project[1] - 1}
    seqs = [row[0] for row in rig.sql("SELECT seq FROM event ORDER BY seq")]
    assert seqs == list(range(1, len(seqs) + 1))
    assert rig.store.writer.catalog.commit_no == made.commit_no


def test_a_restore_begins_a_new_incarnation_and_keeps_what_it_replaces(
    rig: StoreRig, tmp_path: Path
) -> None:
    site = rig.add_site("paris")
    pilot = site.add_pilot()
    early, late = rig.spec(site), rig.spec(site)
    rig.submit(early)
    made = backups_of(rig.store.url).backup(tmp_path / "copy", NOW)
    rig.submit(late)
    (first, _) = pilot.sync(capacity=cores(2)).grants
    with pytest.raises(Unavailable, match="another hub"):
        backups_of(rig.store.url).restore(tmp_path / "copy", made, NOW)
    rig.close()
    done = backups_of(rig.store.url).restore(tmp_path / "copy", made, NOW)
    assert done.incarnation == made.incarnation + 1
    assert done.replaced is not None
    assert verify(Path(done.replaced)).commit_no > made.commit_no
    rig.store = rig._open()
    assert rig.store.incarnation == done.incarnation
    assert rig.sql("SELECT id FROM job")[0]["id"] == early.id
    assert pilot.sync(held=[held(first)]).incarnation == done.incarnation
    # The legal changes are guarded again.
    with pytest.raises(Exception, match="illegal change of state"):
        rig.place.change("UPDATE job SET state = 'CREATED', phase = 'waiting', session = NULL")


def test_a_copy_goes_to_an_empty_database_elsewhere(
    rig: StoreRig, postgres: PostgresServer, tmp_path: Path
) -> None:
    rig.submit(rig.spec(rig.add_site("paris")))
    made = backups_of(rig.store.url).backup(tmp_path / "copy", NOW)
    elsewhere = postgres.database()
    done = backups_of(elsewhere).restore(tmp_path / "copy", made, NOW)
    assert done.replaced is None
    store = open_store(elsewhere, clock=FakeClock())
    assert store.writer.catalog.next_job == rig.store.writer.catalog.next_job
    store.close()


def test_a_copy_that_is_cut_short_changes_nothing(rig: StoreRig, tmp_path: Path) -> None:
    rig.submit(rig.spec(rig.add_site("paris")))
    file = tmp_path / "copy"
    made = backups_of(rig.store.url).backup(file, NOW)
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(Invalid, match="damaged"):
        verify(file)
    before = rig.sql("SELECT * FROM hub")[0]
    rig.close()
    with pytest.raises((Invalid, Unavailable)):
        backups_of(rig.store.url).restore(file, made, NOW)
    rig.store = rig._open()
    assert rig.sql("SELECT * FROM hub")[0] == before
    assert len(rig.sql("SELECT * FROM job")) == 1


def test_what_is_refused(rig: StoreRig, postgres: PostgresServer, tmp_path: Path) -> None:
    backups = backups_of(rig.store.url)
    made = backups.backup(tmp_path / "copy", NOW)
    with pytest.raises(Conflict, match="exists"):
        backups.backup(tmp_path / "copy", NOW)
    with pytest.raises(NotFound, match="no hub in this database"):
        backups_of(postgres.database()).backup(tmp_path / "empty", NOW)
    with StoreRig(tmp_path / "hub.db") as lite:
        other = backups_of(lite.store.url).backup(tmp_path / "lite", NOW)
    with pytest.raises(Invalid, match="backup of sqlite"):
        backups.restore(tmp_path / "lite", other, NOW)
    with pytest.raises(Invalid, match="backup of postgresql"):
        backups_of(f"sqlite:///{tmp_path / 'new.db'}").restore(tmp_path / "copy", made, NOW)
