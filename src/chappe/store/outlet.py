"""The outlet's place in the EventLog: up to where each project's Events were published, and confirmed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import Connection

from chappe.core.errors import Invalid
from chappe.store import feed
from chappe.store.dialect import sql
from chappe.store.tx import Tx
from chappe.wire.events import Event

PROJECT = sql("SELECT n, id, name FROM project WHERE name = :name")

PLACE = sql("SELECT seq FROM outlet WHERE project = :project")

MOVE = sql("""
    INSERT INTO outlet (project, seq, moved_at) VALUES (:project, :seq, :now)
    ON CONFLICT (project) DO UPDATE SET seq = excluded.seq, moved_at = excluded.moved_at""")


class Project(NamedTuple):
    """A project whose Events are published."""

    n: int
    id: str
    name: str


class Due(NamedTuple):
    """Events to publish, in their order, and how many before them were cut before they could be."""

    events: list[Event]
    missed: int


def projects(conn: Connection, names: Sequence[str]) -> list[Project]:
    """The projects of these names. Raises Invalid for one that there is not."""
    found = [conn.execute(PROJECT, {"name": name}).first() for name in names]
    if None in found:
        name = names[found.index(None)]
        raise Invalid(f"there is no project {name}", field="outlet.projects")
    return [Project(*row) for row in found if row is not None]


def place(conn: Connection, project: int) -> int:
    """The last seq that was published, 0 at first."""
    return conn.execute(PLACE, {"project": project}).scalar() or 0


def due(conn: Connection, project: int, after: int, head: int, most: int) -> Due:
    """Up to `most` Events with after < seq ≤ head."""
    first = conn.execute(feed.FIRST, {"project": project}).scalar() or head + 1
    # Before anything was published, what was cut is not missed: nobody waited for it.
    missed = max(0, first - 1 - after) if after else 0
    start = max(after, first - 1)
    return Due(feed.after(conn, project, start, head, most), missed)


def move(tx: Tx, project: int, seq: int) -> None:
    """All up to `seq` is published. After a restore the place is that of the backup, and what it lacks is
    published again."""
    tx.write(MOVE, project=project, seq=seq, now=tx.now)
