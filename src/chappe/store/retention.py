"""Cutting the past: Events and final Jobs older than a limit, behind a backup that holds them (promise I18).

The EventLog is cut from its beginning, so what is left has no gaps, and its first `seq` says what is gone. A
reader from before that is told so (`feed.page`), never given the rest as if it were all.

A Job follows when it is final and all its Events are cut: then the backup, which holds these, holds the
Job as it is. It stays while a child of it is not final, for that needs to know how it ended. It leaves a
tombstone, as any deleted Job does, so that a late repetition of its creation does not run it again.

Each function is one command of bounded work; whoever calls them goes on until they say that nothing is left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection

from chappe.store.acts import delete_rows
from chappe.store.dialect import sql
from chappe.store.rows import rows_by_n
from chappe.store.tables import ENDED
from chappe.store.tx import Tx, to_json

EVENTS = 2_000
JOBS = 500

PROJECTS = sql("SELECT n, id, next_seq FROM project ORDER BY n")

OLDEST = sql("""
    SELECT seq, received_at FROM event WHERE project = :project ORDER BY seq LIMIT :most""")

CUT = sql("DELETE FROM event WHERE project = :project AND seq <= :last")

OF_ENDED = sql(f"""
    SELECT n, ended_at FROM job WHERE project = :project AND {ENDED}
    AND ended_at < :before AND (ended_at, n) > (:after_at, :after_n)
    ORDER BY ended_at, n LIMIT :most""")

#: Those of which no Event is left, and on which nobody waits.
DONE_WITH = sql("""
    SELECT v.value AS n FROM ints(:ns) v
    WHERE NOT EXISTS (SELECT 1 FROM event WHERE event.job = v.value)
    AND NOT EXISTS (SELECT 1 FROM edge JOIN job c ON c.n = edge.child WHERE edge.parent = v.value
                    AND c.phase NOT IN ('finished', 'failed', 'cancelled', 'deleted'))""")

#: Where a walk over ended Jobs stands: (ended_at, row number) of the last one that was looked at.
Place = tuple[float, int]
BEGINNING: Place = (0.0, 0)


def covered(conn: Connection, heads: Mapping[str, int]) -> list[tuple[int, int]]:
    """The projects (row numbers) that a backup holds, with the last seq that it has of each."""
    return [
        (row.n, min(heads[row.id], row.next_seq - 1))
        for row in conn.execute(PROJECTS)
        if row.id in heads
    ]


def cut_events(tx: Tx, project: int, held: int, before: float) -> int:
    """Cut the oldest Events, as far as they were received before that time and the backup holds them (up to
    the seq `held`); how many went. 0: none is left to cut."""
    rows = tx.read(OLDEST, project=project, most=EVENTS)
    old = _prefix([(row.seq, row.received_at) for row in rows], held, before)
    if old:
        tx.write(CUT, project=project, last=rows[old - 1].seq)
    return old


def _prefix(rows: Sequence[tuple[int, float]], held: int, before: float) -> int:
    """How many rows from the beginning may go. The Hub's clock may have been set back: the first that is
    to stay keeps all after it."""
    for i, (seq, received_at) in enumerate(rows):
        if seq > held or received_at >= before:
            return i
    return len(rows)


def cut_jobs(tx: Tx, project: int, before: float, after: Place) -> Place | None:
    """Look at the next Jobs that ended before that time and delete those that can go; where to go on, None
    at the end."""
    at, n = after
    rows: Sequence[Any] = tx.read(
        OF_ENDED, project=project, before=before, after_at=at, after_n=n, most=JOBS
    )
    if not rows:
        return None
    gone = tx.read(DONE_WITH, ns=to_json([row.n for row in rows]))
    if gone:
        delete_rows(tx, rows_by_n(tx, [row.n for row in gone]))
    return rows[-1].ended_at, rows[-1].n
