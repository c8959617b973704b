"""What persons see of the bus, and what they may do about it: counts, dead letters, replay; and the cut.

A dead letter is of its project, and its owners see it there; what is of no project (0) is the hub's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection

from chappe.core import limits
from chappe.core.access import Reach
from chappe.core.errors import Invalid
from chappe.core.queues import DECLARED, Queue, Topology
from chappe.store import audit
from chappe.store.dialect import sql
from chappe.store.principal import Principal
from chappe.store.tx import Tx, to_json
from chappe.wire.bus import (
    BusMessage,
    DeadLetters,
    QueueDetail,
    QueueList,
    QueueView,
    Replay,
    ReplayReply,
    Revive,
    ReviveReply,
)

BODY_SHOWN = 4 * limits.KIB
HEAD_SHOWN = 20
PURGED_AT_ONCE = 1_000

TALLIES = sql("""
    SELECT name, arrived, acked, retried, lost, died, revived, forgotten FROM bus_queue ORDER BY name""")

#: Few are leased; those that are ready are what is left of the depth.
TIMED = sql("""
    SELECT state, count(*) AS n, min(since) AS since FROM bus_delivery
    WHERE queue = :queue AND until IS NOT NULL GROUP BY state""")

FIRST_READY = sql("""
    SELECT since FROM bus_delivery WHERE queue = :queue AND state = 'ready'
    ORDER BY position LIMIT 1""")

LAST = sql("SELECT next_position - 1 FROM hub")

_MESSAGE = """d.queue, d.position, l.topic, d.state, d.tries, l.published_at, d.until, d.died_at, d.reason,
    l.body, p.id AS project
    FROM bus_delivery d JOIN bus_log l ON l.position = d.position
    LEFT JOIN project p ON p.n = d.project"""

HEAD = sql(f"""
    SELECT {_MESSAGE} WHERE d.queue = :queue AND d.state <> 'dead' ORDER BY d.position LIMIT :most""")

DEAD = sql(f"""
    SELECT {_MESSAGE} WHERE d.state = 'dead' AND (d.queue, d.position) > (:queue, :after)
    AND (:only = '' OR d.queue = :only) AND (:project = 0 OR d.project = :project)
    ORDER BY d.queue, d.position LIMIT :most""")

TO_REPLAY = sql("""
    SELECT position, project FROM bus_log WHERE topic IN (SELECT value FROM texts(:topics) v)
    AND position > :after AND position <= :until ORDER BY position LIMIT :most""")

#: What is in the queue already stays as it is, unless it is dead.
PUT = sql("""
    INSERT INTO bus_delivery (queue, position, project, state, lease, tries, since)
    SELECT :queue, v.position, v.project, 'ready', 0, 0, :now
    FROM rows(:rows, position int, project int) v WHERE true
    ON CONFLICT (queue, position) DO NOTHING RETURNING position""")

ANY_DEAD = sql("""
    SELECT position FROM bus_delivery WHERE queue = :queue AND state = 'dead' AND position > :after
    AND position <= :until AND (:project = 0 OR project = :project) ORDER BY position LIMIT :most""")

SOME_DEAD = sql("""
    SELECT d.position FROM ints(:positions) v
    CROSS JOIN bus_delivery d ON d.queue = :queue AND d.position = v.value
    WHERE d.state = 'dead' AND (:project = 0 OR d.project = :project)""")

REVIVE = sql("""
    UPDATE bus_delivery SET state = 'ready', died_at = NULL, tries = 0, since = :now
    WHERE queue = :queue AND state = 'dead' AND position IN (SELECT value FROM ints(:positions) v)
    RETURNING position""")

FORGET = sql("""
    DELETE FROM bus_delivery WHERE (queue, position) IN
        (SELECT queue, position FROM bus_delivery
         WHERE state = 'dead' AND died_at < :before LIMIT :most)
    RETURNING queue""")

OLDEST = sql("""
    SELECT position, published_at FROM bus_log WHERE position > :after ORDER BY position LIMIT :most""")

CUT = sql("""
    DELETE FROM bus_log WHERE position > :after AND position <= :last
    AND NOT EXISTS (SELECT 1 FROM bus_delivery d WHERE d.position = bus_log.position)""")


class Desk:
    """The queues of a topology, as persons see them."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology

    def queues(self, conn: Connection, now: float) -> QueueList:
        """All queues, also those that another version declared and that still hold something."""
        tallies = {row.name: row for row in conn.execute(TALLIES)}
        names = list(dict.fromkeys([*self._topology.queues, *tallies]))
        views = [self._view(conn, name, tallies.get(name), now) for name in names]
        last: int = conn.execute(LAST).scalar_one()
        return QueueList([v for v in views if v.declared or v.depth or v.dead], last)

    def _view(self, conn: Connection, name: str, tally: Any, now: float) -> QueueView:
        terms = self._topology.queues.get(name)
        counts = dict(zip(tally._fields[1:], tally[1:], strict=True)) if tally is not None else {}
        died, revived = counts.get("died", 0), counts.get("revived", 0)
        depth = counts.get("arrived", 0) + revived - counts.get("acked", 0) - died
        timed = {row.state: row for row in conn.execute(TIMED, {"queue": name})} if depth else {}
        of = {state: row.n for state, row in timed.items()}
        since = [timed["leased"].since] if "leased" in timed else []
        ready = depth - sum(of.values())
        if ready:
            since += [row[0] for row in conn.execute(FIRST_READY, {"queue": name})]
        return QueueView(
            name=name,
            depth=depth,
            dead=died - revived - counts.get("forgotten", 0),
            ready=ready,
            leased=of.get("leased", 0),
            delayed=of.get("delayed", 0),
            oldest_s=max(0.0, now - min(since)) if since else None,
            **counts,
            **_terms(self._topology, terms),
        )

    def queue(self, conn: Connection, name: str, now: float) -> QueueDetail:
        """One queue, by any of its names, with the oldest in it. Raises NotFound."""
        terms = self._topology.find(name)
        tallies = [row for row in conn.execute(TALLIES) if row.name == terms.name]
        view = self._view(conn, terms.name, tallies[0] if tallies else None, now)
        rows = conn.execute(HEAD, {"queue": terms.name, "most": HEAD_SHOWN})
        return QueueDetail(view, [_message(row) for row in rows])

    def dead(
        self,
        conn: Connection,
        p: Principal,
        reach: Reach,
        queue: str | None,
        limit: int,
        cursor: str | None,
    ) -> DeadLetters:
        """Dead letters, of one queue or all: of the principal's project, with the reach of the hub of all."""
        if not 1 <= limit <= limits.PAGE_MAX:
            raise Invalid(f"limit must be 1 to {limits.PAGE_MAX}", field="limit")
        name, _, position = (cursor or ":0").rpartition(":")
        if not (position.isdecimal() and position.isascii() and len(position) < 19):
            raise Invalid("the cursor is not one that a page ended with", field="cursor")
        rows = conn.execute(
            DEAD,
            {
                "queue": name,
                "after": int(position),
                "only": self._topology.find(queue).name if queue else "",
                "project": _project(p, reach),
                "most": limit,
            },
        ).fetchall()
        end = f"{rows[-1].queue}:{rows[-1].position}" if len(rows) == limit else None
        return DeadLetters([_message(row) for row in rows], end)

    def replay(self, tx: Tx, p: Principal, name: str, body: Replay) -> ReplayReply:
        """Put what is in the log after a position into a queue once more, some at a time: also what it has
        dealt with, and its dead letters. What it holds otherwise stays as it is. Raises NotFound."""
        queue = self._topology.find(name).name
        last = tx.catalog.next_position - 1
        until = last if body.until is None else min(body.until, last)
        after = max(0, body.after)
        topics = to_json(self._topology.into(queue))
        found = tx.read(TO_REPLAY, topics=topics, after=after, until=until, most=limits.BUS_REPLAY)
        complete = len(found) < limits.BUS_REPLAY
        reached = max(until, after) if complete else found[-1].position
        rows = to_json([(row.position, row.project) for row in found])
        put = tx.write(PUT, rows=rows, queue=queue, now=tx.now)
        tx.tally(queue).arrived += len(put)
        dead = tx.read(
            ANY_DEAD, queue=queue, after=after, until=reached, project=0, most=limits.BUS_REPLAY
        )
        revived = self._revive(tx, queue, [row.position for row in dead])
        audit.record(tx, p, audit.HUB, "bus.replay", queue, after=after, until=reached)
        return ReplayReply(len(put) + revived, reached, complete)

    def revive(self, tx: Tx, p: Principal, reach: Reach, body: Revive) -> ReviveReply:
        """Have dead letters tried anew, all of a queue or some: those within reach. Raises NotFound."""
        queue, project = self._topology.find(body.queue).name, _project(p, reach)
        if body.positions is None:
            most = limits.BUS_REPLAY
            last = tx.catalog.next_position
            found = tx.read(ANY_DEAD, queue=queue, after=0, until=last, project=project, most=most)
        else:
            most = len(body.positions) + 1
            if most > limits.BUS_REPLAY:
                raise Invalid(f"name {limits.BUS_REPLAY} positions at most", field="positions")
            positions = to_json(body.positions)
            found = tx.read(SOME_DEAD, queue=queue, positions=positions, project=project)
        revived = self._revive(tx, queue, [row.position for row in found])
        if revived:
            where = audit.HUB if reach is Reach.HUB else p.project_n
            audit.record(tx, p, where, "bus.revive", queue, count=revived)
        return ReviveReply(revived, len(found) < most)

    @staticmethod
    def _revive(tx: Tx, queue: str, positions: Sequence[int]) -> int:
        if not positions:
            return 0
        done = tx.write(REVIVE, queue=queue, now=tx.now, positions=to_json(positions))
        tx.tally(queue).revived += len(done)
        return len(done)


def _project(p: Principal, reach: Reach) -> int:
    """The project whose dead letters are within reach; 0 for all."""
    return 0 if reach is Reach.HUB else p.project_n


def _terms(topology: Topology, queue: Queue | None) -> dict[str, Any]:
    if queue is None:
        return {"declared": False}
    other = queue.outside
    return {
        "topics": topology.into(queue.name),
        "others": f"{other.queue}:{other.type}" if other else "",
        "attempts": queue.attempts,
        "lease_s": queue.lease_s,
    }


def _message(row: Any) -> BusMessage:
    return BusMessage(
        queue=row.queue,
        position=row.position,
        topic=row.topic,
        state=row.state,
        tries=row.tries,
        published_at=row.published_at,
        project=row.project or "",
        until=row.until if row.state == "delayed" else None,
        died_at=row.died_at,
        reason=row.reason or "",
        body=row.body[:BODY_SHOWN],
    )


def forget(tx: Tx) -> int:
    """Forget dead letters past their term, some at a time; how many went."""
    gone = tx.write(FORGET, before=tx.now - limits.BUS_DEAD_KEPT_S, most=PURGED_AT_ONCE)
    for (queue,) in gone:
        tx.tally(queue).forgotten += 1
    return len(gone)


def cut(tx: Tx, after: int) -> int | None:
    """Cut the log after a position, some at a time: what is old, or too much, and in no queue any more.
    Where to go on, None at the end."""
    before = tx.now - limits.BUS_KEPT_S
    surplus = tx.catalog.next_position - 1 - limits.BUS_KEPT
    rows = tx.read(OLDEST, after=after, most=PURGED_AT_ONCE)
    old = [row.position for row in rows if row.published_at < before or row.position <= surplus]
    if not old:
        return None
    # A clock that was set back may have put newer ones between: they go a little early, or late.
    tx.write(CUT, after=after, last=old[-1])
    return old[-1] if len(rows) == PURGED_AT_ONCE else None


DESK = Desk(DECLARED)
