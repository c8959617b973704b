"""Backups of a Hub's database: consistent, complete, private; and putting them back."""

from __future__ import annotations

import resource
import sqlite3
import stat
import threading
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from chappe.core.errors import ChappeError, Conflict, Invalid, NotFound, Unavailable
from chappe.store.backup import Manifest, backups_of, manifest_path, verify
from chappe.store.db import open_store
from chappe.testing.store import StoreRig, cores, held

#: Of a file; PostgreSQL has its own way.
pytestmark = pytest.mark.sqlite

NOW = 1_800_000_000.0


def backup(rig: StoreRig, file: Path) -> Manifest:
    return backups_of(rig.store.url).backup(file, NOW)


def restore(rig: StoreRig, file: Path, url: str | None = None) -> Path | None:
    done = backups_of(url or rig.store.url).restore(file, verify(file), NOW)
    assert done.manifest == verify(file)
    return None if done.replaced is None else Path(done.replaced)


def reopen(rig: StoreRig) -> None:
    rig.openings += 1
    rig.store = open_store(rig.store.url, clock=rig.clock)


def hub(path: Path) -> tuple[int, int]:
    with closing(sqlite3.connect(path)) as conn:
        found: tuple[int, int] = conn.execute("SELECT incarnation, commit_no FROM hub").fetchone()
        return found


def test_a_backup_of_an_open_database_is_whole_and_private(rig: StoreRig, tmp_path: Path) -> None:
    site = rig.add_site("paris")
    rig.submit(rig.spec(site), rig.spec(site))
    file = tmp_path / "kept" / "monday"
    made = backup(rig, file)
    assert verify(file) == made
    assert (made.store, made.made_at, made.incarnation) == ("sqlite", NOW, 1)
    assert made.heads == {rig.user.project_id: rig.store.head(rig.user.project_n)}
    assert hub(file) == (1, made.commit_no)
    for path in (file, manifest_path(file)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(p.name for p in file.parent.iterdir()) == ["monday", "monday.manifest"]


def test_a_stopped_hub_is_backed_up_too(rig: StoreRig, tmp_path: Path) -> None:
    rig.close()
    assert backup(rig, tmp_path / "b").size_bytes > 0
    reopen(rig)


def test_beside_a_writer_that_never_rests_the_copy_is_of_one_moment(
    rig: StoreRig, tmp_path: Path
) -> None:
    site = rig.add_site("paris")
    over = threading.Event()

    def write() -> None:
        while not over.is_set():
            rig.submit(*(rig.spec(site) for _ in range(20)))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        made = [backup(rig, tmp_path / str(n)) for n in range(3)]
    finally:
        over.set()
        writer.join()
    assert sorted(m.commit_no for m in made) == [m.commit_no for m in made]
    for n, manifest in enumerate(made):
        with closing(sqlite3.connect(tmp_path / str(n))) as conn:
            (head,) = conn.execute("SELECT max(seq) FROM event").fetchone()
            (jobs,) = conn.execute("SELECT count(*) FROM job").fetchone()
            (counted,) = conn.execute("SELECT sum(count) FROM counter").fetchone()
        assert (head, jobs) == (manifest.heads[rig.user.project_id], counted or 0)


def test_nothing_is_overwritten(rig: StoreRig, tmp_path: Path) -> None:
    file = tmp_path / "b"
    file.symlink_to(tmp_path / "nowhere")
    with pytest.raises(Conflict):
        backup(rig, file)
    file.unlink()
    backup(rig, file)
    before = file.read_bytes()
    with pytest.raises(Conflict) as caught:
        backup(rig, file)
    assert caught.value.field == "file"
    assert file.read_bytes() == before


def test_without_a_database_there_is_no_backup(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        backups_of(f"sqlite:///{tmp_path / 'none'}").backup(tmp_path / "b", NOW)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing_that_looks_like_a_backup(rig: StoreRig, tmp_path: Path) -> None:
    site = rig.add_site("paris")
    rig.submit(*(rig.spec(site, name="x" * 200) for _ in range(1_000)))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(Unavailable):
            backup(rig, tmp_path / "b")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_what_was_cut_short_or_damaged_is_no_backup(rig: StoreRig, tmp_path: Path) -> None:
    file = tmp_path / "b"
    backup(rig, file)
    whole, manifest = file.read_bytes(), manifest_path(file).read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for data in (whole[:-1], bytes(flipped), b""):
        file.write_bytes(data)
        with pytest.raises(Invalid) as caught:
            verify(file)
        assert caught.value.code == "damaged"
    file.write_bytes(whole)
    manifest_path(file).write_bytes(b"{")
    with pytest.raises(Invalid):
        verify(file)
    later = msgspec.json.decode(manifest) | {"format": 2}
    manifest_path(file).write_bytes(msgspec.json.encode(later))
    with pytest.raises(Invalid, match="later version"):
        verify(file)
    manifest_path(file).unlink()
    with pytest.raises(NotFound):
        verify(file)


def test_a_restore_is_refused_while_a_hub_has_the_database(rig: StoreRig, tmp_path: Path) -> None:
    file = tmp_path / "b"
    backup(rig, file)
    site = rig.add_site("paris")
    with pytest.raises(Unavailable) as caught:
        restore(rig, file)
    assert caught.value.code == "locked"
    assert rig.do(lambda tx: tx.catalog.sites[1].id) == site.id


def test_a_restore_begins_a_new_incarnation_and_keeps_what_it_replaces(
    rig: StoreRig, tmp_path: Path
) -> None:
    site = rig.add_site("paris")
    pilot = site.add_pilot()
    job = rig.spec(site)
    rig.submit(job)
    file = tmp_path / "b"
    made = backup(rig, file)
    (grant,) = pilot.sync(capacity=cores(1)).grants
    pilot.sync(held=[held(grant)], reports=[pilot.start(grant)])
    later = hub(rig.path)
    rig.close()
    aside = restore(rig, file)
    assert aside is not None
    assert hub(aside) == later
    assert stat.S_IMODE(rig.path.stat().st_mode) == 0o600
    assert hub(rig.path) == (2, made.commit_no)
    reopen(rig)
    assert rig.store.incarnation == 2
    assert rig.states(job) == ["PREPROCESSED"]
    # Another agent than the one that the copy knows, and a pilot that holds more.
    site.agent = rig.new_id()
    assert site.sync(known=[pilot.batch_job], sessions=[pilot.id]).unknown == []
    assert not pilot.sync(held=[held(grant)]).unknown
    assert rig.states(job) == ["RUNNING"]
    assert verify(file) == made, "the backup itself is as it was"


def test_each_restore_is_later_than_all_before_it(rig: StoreRig, tmp_path: Path) -> None:
    file = tmp_path / "b"
    backup(rig, file)
    rig.close()
    restore(rig, file)
    assert hub(rig.path)[0] == 2
    # What the mark says counts as well, where the database itself cannot be read any more.
    for side in rig.path.parent.glob(f"{rig.path.name}.replaced*"):
        side.unlink()
    rig.path.write_bytes(b"no database")
    Path(f"{rig.path}.lock").write_text(f"{7:>20} {9:>20}\n")
    aside = restore(rig, file)
    assert aside is not None
    assert aside.read_bytes() == b"no database"
    assert hub(rig.path)[0] == 8
    reopen(rig)


def test_a_restore_elsewhere_needs_no_database_there(rig: StoreRig, tmp_path: Path) -> None:
    file = tmp_path / "b"
    backup(rig, file)
    elsewhere = tmp_path / "new" / "hub.sqlite"
    assert restore(rig, file, f"sqlite:///{elsewhere}") is None
    assert hub(elsewhere)[0] == 2


def test_what_cannot_be_used_changes_nothing(rig: StoreRig, tmp_path: Path) -> None:
    file = tmp_path / "b"
    made = backup(rig, file)
    rig.close()
    before = rig.path.read_bytes()
    wrong = [
        msgspec.structs.replace(made, store="postgresql"),
        msgspec.structs.replace(made, schema="9999"),
        msgspec.structs.replace(made, sha256="0" * 64),
    ]
    for manifest in wrong:
        with pytest.raises(ChappeError):
            backups_of(rig.store.url).restore(file, manifest, NOW)
    assert rig.path.read_bytes() == before
    names = {p.name for p in rig.path.parent.iterdir()}
    assert not [n for n in names if "restoring" in n or "replaced" in n]
    reopen(rig)


@pytest.mark.parametrize("url", ["mysql://h/x", "sqlite://", "nonsense", ""])
def test_other_databases_are_named_in_the_refusal(url: str) -> None:
    with pytest.raises(Invalid) as caught:
        backups_of(url)
    assert caught.value.field == "db"
