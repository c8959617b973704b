"""The mark beside the database, by which a Hub knows that its past was replaced."""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from chappe.core.errors import Unavailable
from chappe.store.db import open_store
from chappe.store.mark import Mark
from chappe.store.tx import Tx
from chappe.testing.store import StoreRig

pytestmark = pytest.mark.sqlite


def mark(rig: StoreRig) -> tuple[int, ...]:
    return tuple(int(word) for word in Path(f"{rig.path}.lock").read_text().split())


def hub(rig: StoreRig) -> tuple[int, int]:
    (row,) = rig.sql("SELECT incarnation, commit_no FROM hub")
    return row["incarnation"], row["commit_no"]


def test_each_commit_is_marked_and_nothing_else_is(rig: StoreRig) -> None:
    assert mark(rig) == hub(rig)
    rig.add_site("paris")
    assert mark(rig) == hub(rig)
    before = hub(rig)
    rig.do(lambda _tx: None)

    def fail(tx: Tx) -> None:
        tx.event(1, "site", data="{}")
        raise Unavailable("no")

    with pytest.raises(Unavailable):
        rig.do(fail)
    assert mark(rig) == hub(rig) == before


def test_a_restart_is_no_restore(rig: StoreRig) -> None:
    rig.add_site("paris")
    before = hub(rig)
    rig.restart()
    assert hub(rig) == before


def test_an_older_copy_in_the_same_place_is_noticed_at_the_start(rig: StoreRig) -> None:
    """Before any pilot speaks, and though as many commits follow as were lost."""
    backup = rig.backup()
    rig.add_site("paris")
    with capture_logs() as logs:
        rig.put_back(backup, elsewhere=False)
    assert [entry["event"] for entry in logs] == ["an older database was put back"]
    assert rig.store.incarnation == 2
    assert mark(rig) == hub(rig)
    rig.restart()
    assert rig.store.incarnation == 2


def test_a_copy_that_misses_nothing_is_no_restore(rig: StoreRig) -> None:
    rig.add_site("paris")
    rig.put_back(rig.backup(), elsewhere=False)
    assert rig.store.incarnation == 1


def test_a_new_database_where_another_was_is_of_a_new_incarnation(rig: StoreRig) -> None:
    rig.add_site("paris")
    rig.close()
    rig.path.unlink()
    rig.store = open_store(rig.store.url, clock=rig.clock)
    assert rig.store.incarnation == 2


@pytest.mark.parametrize("text", ["", "x", "1", "1 2 3", "1 -2", "1 2.5", "\0" * 42])
def test_a_mark_that_cannot_be_read_is_none(rig: StoreRig, text: str) -> None:
    rig.add_site("paris")
    before = hub(rig)
    rig.close()
    Path(f"{rig.path}.lock").write_text(text)
    rig.store = open_store(rig.store.url, clock=rig.clock)
    assert hub(rig) == before


def test_a_mark_that_cannot_be_written_stops_nobody(memory: Path) -> None:
    (memory / "mark").write_text("")
    with (memory / "mark").open("rb") as file, capture_logs() as logs:
        Mark(file.fileno()).write(1, 2)
    assert [entry["event"] for entry in logs] == ["cannot mark a commit"]
