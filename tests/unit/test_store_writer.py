"""The one writer: group commit that harms nobody, bounded queues, and a thread that outlives its troubles."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Generator
from concurrent.futures import Future
from contextlib import closing
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from chappe.core import faults, limits
from chappe.core.errors import Busy, Conflict, Unavailable
from chappe.core.shapes import Shape
from chappe.store import catalog as catalogs
from chappe.store.tx import Effects, Tx
from chappe.testing.store import StoreRig

ADD = text("INSERT INTO project (id, name, next_seq, created_at) VALUES (:name, :name, 1, 0)")


@pytest.fixture(autouse=True)
def disarmed() -> Generator[None, None, None]:
    yield
    faults.arm(None)


def add(tx: Tx, name: str) -> str:
    tx.write(ADD, name=name)
    return name


def names(rig: StoreRig) -> set[str]:
    return {row["name"] for row in rig.sql("SELECT name FROM project")} - {"default"}


class Hold:
    """Keeps the writer's thread busy, so that what is submitted meanwhile becomes one group."""

    def __init__(self, rig: StoreRig) -> None:
        self._entered, self._go = threading.Event(), threading.Event()
        self._future = rig.store.writer.submit(self._wait)

    def _wait(self, _tx: Tx) -> None:
        self._entered.set()
        assert self._go.wait(30)

    def __enter__(self) -> Hold:
        assert self._entered.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._go.set()
        self._future.result(30)


def test_what_waits_together_is_committed_together(rig: StoreRig) -> None:
    writer = rig.store.writer
    with Hold(rig):
        futures = [writer.submit(add, f"p{i}") for i in range(20)]
        commits = writer.stats.commits
    assert [f.result(30) for f in futures] == [f"p{i}" for i in range(20)]
    assert writer.stats.commits - commits == 2  # the hold's own, and one for all of them
    assert names(rig) == {f"p{i}" for i in range(20)}


def test_large_creates_enter_one_at_a_time_and_stop_no_small_command(rig: StoreRig) -> None:
    order: list[str] = []
    writer = rig.store.writer

    def note(_tx: Tx, name: str) -> None:
        order.append(name)

    with Hold(rig):
        bulk = [writer.submit(note, f"bulk{i}", bulk=True) for i in range(3)]
        quick = [writer.submit(note, f"quick{i}") for i in range(3)]
    for future in (*bulk, *quick):
        future.result(30)
    assert order == ["quick0", "quick1", "quick2", "bulk0", "bulk1", "bulk2"]


def test_a_refusal_before_the_first_write_is_an_answer_and_costs_no_rollback(
    rig: StoreRig,
) -> None:
    def refuse(_tx: Tx) -> None:
        raise Conflict("no")

    writer = rig.store.writer
    with Hold(rig):
        before, refused, after = (
            writer.submit(add, "before"),
            writer.submit(refuse),
            writer.submit(add, "after"),
        )
    assert (before.result(30), after.result(30)) == ("before", "after")
    with pytest.raises(Conflict, match="no"):
        refused.result(30)
    assert writer.stats.rollbacks == 0


@pytest.mark.parametrize("error", [Conflict("half-way"), ValueError("a bug")])
def test_a_command_that_fails_half_way_harms_no_neighbour(rig: StoreRig, error: Exception) -> None:
    def fail(tx: Tx) -> None:
        add(tx, "half")
        tx.event(1, "site", data="{}")
        tx.intern(1, Shape(("a",)))
        raise error

    writer = rig.store.writer
    head = rig.store.head(1)
    with Hold(rig):
        before, failed, after = (
            writer.submit(add, "before"),
            writer.submit(fail),
            writer.submit(add, "after"),
        )
    assert (before.result(30), after.result(30)) == ("before", "after")
    with pytest.raises(type(error), match=str(error)):
        failed.result(30)
    assert names(rig) == {"before", "after"}
    assert (writer.catalog.shapes, rig.store.head(1)) == ({}, head)
    assert writer.catalog.next_seq[1] == head + 1
    rig.do(lambda tx: tx.event(1, "site", data="{}"))
    assert rig.store.head(1) == head + 1


def test_a_commit_that_fails_takes_the_memory_back_too(rig: StoreRig) -> None:
    def crash(point: str) -> None:
        if point == "hub.before_commit":
            raise Unavailable("killed")

    site = rig.add_site("paris")
    before = (rig.store.head(1), rig.store.writer.catalog.commit_no)
    faults.arm(crash)
    with pytest.raises(Unavailable, match="killed"):
        rig.submit(rig.spec(site))
    faults.arm(None)
    catalog = rig.store.writer.catalog
    assert (rig.store.head(1), catalog.commit_no) == before
    assert catalog.shapes == {}
    rig.submit(rig.spec(site))
    assert [s.waiting for s in rig.store.writer.catalog.shapes.values()] == [1]


@pytest.mark.sqlite
def test_the_head_is_raised_after_the_commit_and_before_anybody_is_told(rig: StoreRig) -> None:
    seen: dict[str, tuple[int, int, bool]] = {}
    futures: list[Future[None]] = []

    def look(when: str) -> None:
        with closing(sqlite3.connect(rig.path)) as conn:
            (stored,) = conn.execute("SELECT COALESCE(max(seq), 0) FROM event").fetchone()
        done = bool(futures) and futures[0].done()
        seen[when] = (rig.store.head(1) - head, stored - head, done)

    head = rig.store.head(1)
    with Hold(rig):
        futures.append(rig.store.writer.submit(lambda tx: tx.event(1, "site", data="{}")))
        rig.store.writer.on_commit = lambda _effects: look("told")
        faults.arm(look)
    futures[0].result(30)
    rig.store.writer.stop()
    assert seen == {
        "hub.before_commit": (0, 0, False),
        "hub.after_commit": (0, 1, False),
        "told": (1, 1, False),
        "hub.after_answer": (1, 1, True),
    }


def test_a_full_queue_says_so_and_loses_nothing(
    rig: StoreRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "WRITER_QUEUE", 5)
    writer = rig.store.writer
    with Hold(rig):
        futures = [writer.submit(add, f"p{i}", bulk=i % 2 == 0) for i in range(5)]
        assert writer.depth == 5
        with pytest.raises(Busy) as caught:
            writer.submit(add, "one too many")
    assert caught.value.transient
    assert [f.result(30) for f in futures] == [f"p{i}" for i in range(5)]
    assert names(rig) == {f"p{i}" for i in range(5)}


def test_stopping_finishes_what_is_queued_and_takes_no_more(rig: StoreRig) -> None:
    writer = rig.store.writer
    with Hold(rig):
        futures = [writer.submit(add, f"p{i}", bulk=i > 2) for i in range(6)]
        stopper = threading.Thread(target=writer.stop)
        stopper.start()
    stopper.join(30)
    assert [f.result(0) for f in futures] == [f"p{i}" for i in range(6)]
    with pytest.raises(Unavailable, match="stopping"):
        writer.submit(add, "late")


def test_commands_that_nobody_waits_for_any_more_are_not_run(rig: StoreRig) -> None:
    writer = rig.store.writer
    with Hold(rig):
        left = [writer.submit(add, "left") for _ in range(3)]
        assert all(future.cancel() for future in left)
    assert rig.do(add, "stayed") == "stayed"
    assert names(rig) == {"stayed"}


def test_a_hint_that_fails_stops_nobody(rig: StoreRig, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(_effects: Effects) -> None:
        raise ValueError("nobody listens")

    rig.store.writer.on_commit = fail
    assert rig.do(add, "one") == "one"
    assert rig.do(add, "two") == "two"
    assert "nobody listens" in capsys.readouterr().out


def test_memory_that_could_not_be_read_anew_is_read_before_the_next_command(
    rig: StoreRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = catalogs.load
    failures = iter([True, True])

    def load(conn: Any) -> Any:
        if next(failures, False):
            raise OperationalError("SELECT", {}, Exception("disk I/O error"))
        return real(conn)

    def fail(tx: Tx) -> None:
        tx.intern(1, Shape(("a",)))
        raise ValueError("a bug")

    monkeypatch.setattr(catalogs, "load", load)
    with pytest.raises(ValueError, match="a bug"):
        rig.do(fail)
    with pytest.raises(OperationalError):  # the disk still fails
        rig.do(add, "one")
    assert rig.do(add, "two") == "two"
    assert rig.store.writer.catalog.shapes == {}


def test_a_reader_of_replies_is_never_shown_a_commit_that_does_not_come(rig: StoreRig) -> None:
    def shown(tx: Tx) -> int:
        return tx.commit_no

    def write_and_show(tx: Tx, name: str) -> int:
        tx.write(ADD, name=name)
        return tx.commit_no

    first = rig.do(shown)
    assert rig.do(shown) == first
    assert rig.do(write_and_show, "a") == first + 1
    assert rig.do(shown) == first + 1
    with Hold(rig):
        # In one group: whoever reads after a writer sees what only this commit makes true.
        futures = [
            rig.store.writer.submit(shown),
            rig.store.writer.submit(write_and_show, "b"),
            rig.store.writer.submit(shown),
        ]
    assert [f.result(30) for f in futures] == [first + 1, first + 2, first + 2]
    assert rig.sql("SELECT commit_no FROM hub")[0]["commit_no"] == first + 2
