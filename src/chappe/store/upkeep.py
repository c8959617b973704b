"""What the Hub does on its own timers: silent Sessions, hard ends, takeovers, back-offs, tombstones."""

from __future__ import annotations

from sqlalchemy import Connection

from chappe.core import leases, limits
from chappe.core.leases import Reason
from chappe.store.changes import Change, apply
from chappe.store.deaths import session_dead
from chappe.store.dialect import sql
from chappe.store.tx import Tx, to_json

SILENCE = sql("""
    UPDATE session SET state = 'silent'
    WHERE n IN (SELECT value FROM ints(:ns) v) AND state = 'live' RETURNING id, project, site""")

OPEN = sql("SELECT n, hard_end_at FROM session WHERE state <> 'dead'")

DUE = sql("""
    UPDATE job SET not_before = NULL WHERE not_before IS NOT NULL AND not_before <= :now
    AND phase = 'runnable' RETURNING shape, held_at""")

NEXT_DUE = sql("""
    SELECT min(not_before) FROM job WHERE not_before IS NOT NULL AND phase = 'runnable'""")

# A planner that believes the table to be empty, as it was when it was last counted, would seek the thousand
# again for each of them, and read the table for each child: neither is left to it.
TOMBSTONES = sql("""
    WITH old AS MATERIALIZED (
        SELECT n FROM job WHERE resting IS NULL AND ended_at < :limit
        AND NOT EXISTS (SELECT 1 FROM edge WHERE edge.parent = job.n AND
                        (SELECT c.phase FROM job c WHERE c.n = edge.child) <> 'deleted')
        LIMIT 1000)
    DELETE FROM job WHERE n IN (SELECT n FROM old) RETURNING n""")

DROP_EDGES = sql("DELETE FROM edge WHERE child IN (SELECT value FROM ints(:ns) v)")


def open_sessions(conn: Connection) -> dict[int, float | None]:
    """All Sessions that are not dead, by row number: when their allocation's hard end is (since 1970)."""
    return {row[0]: row[1] for row in conn.execute(OPEN)}


def silence(tx: Tx, sessions: list[int]) -> None:
    """Sessions that were not heard for the TTL. Their Jobs show `unreachable`; nothing else happens."""
    if not sessions:
        return
    for id, project, site in tx.write(SILENCE, ns=to_json(sessions)):
        tx.event(project, "session", data=to_json({"id": id, "state": "silent"}))
        tx.effects.agents.add(site)


def allocations_over(tx: Tx, sessions: list[int]) -> None:
    """The hard end and the kill time of these Sessions' allocations have passed."""
    for n in sessions:
        session_dead(tx, n, Reason.ALLOCATION_END, "its allocation's time was over")


def takeovers(tx: Tx, heard_ago_s: dict[int, float]) -> None:
    """Jobs that opted into `takeover_s`, in Sessions (row number → seconds) not heard for so long."""
    late = {n: ago for n, ago in heard_ago_s.items() if ago > limits.TAKEOVER_MIN_S}
    rows = [
        row
        for n, ago in late.items()
        for row in tx.catalog.leases[n].values()
        if row.takeover_s is not None and leases.takeover_due(ago, row.takeover_s)
    ]
    apply(
        tx,
        [
            Change(row, leases.death(row.held(), Reason.TAKEOVER, tx.now, "taken over"))
            for row in rows
        ],
    )


def release_due(tx: Tx) -> None:
    """Jobs whose back-off or start time is reached can be granted, unless they are held."""
    for shape, held_at in tx.write(DUE, now=tx.now):
        if held_at is None:
            tx.waiting(shape, 1)


def purge(tx: Tx) -> int:
    """Forget tombstones older than their term, a thousand at a time; how many were forgotten."""
    gone = [row[0] for row in tx.write(TOMBSTONES, limit=tx.now - limits.TOMBSTONE_S)]
    if gone:
        tx.write(DROP_EDGES, ns=to_json(gone))
    return len(gone)


def next_due(conn: Connection) -> float | None:
    """When `release_due` next has something to do (seconds since 1970)."""
    due: float | None = conn.execute(NEXT_DUE).scalar()
    return due
