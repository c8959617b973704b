"""One transaction of the writer: statements, Events with their seq, counters and wake-ups.

Commands change rows at once; Events, counts per state and waiting counts are gathered and written in one
statement each when the group commits. If anything fails, all of it is rolled back and forgotten.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

import msgspec
from sqlalchemy import Connection, TextClause

from chappe.core import limits
from chappe.core.errors import Busy
from chappe.core.leases import Decision
from chappe.core.shapes import Shape, shape_key
from chappe.core.states import FINAL
from chappe.store import unheard
from chappe.store.catalog import Catalog, ShapeEntry
from chappe.store.dialect import sql
from chappe.store.jobrow import text_of
from chappe.store.tables import metadata

#: How a statement begins that takes its rows by PostgreSQL's COPY (postgres.copy_rows).
COPY = "COPY"


class Insert:
    """Many rows into one table, in the order of `columns`; `rest` is what follows VALUES (ON CONFLICT).

    One statement with VALUES for many rows costs 5 µs a Job; INSERT … SELECT from json_each twice that
    (for updates it is the other way round). The driver's executemany costs a little more, and returns to
    Python for every row: then each row waits for whichever thread is busy there, and a busy Hub creates
    at half the rate. It serves the rows that are left over. PostgreSQL takes a few rows as one array for
    each column, and many by COPY: arrays are quoted in Python, and a wide row so costs four times as much.
    """

    #: Rows in one statement. With 24 columns the first is near SQLite's limit of 32 766 variables.
    SIZES = (1_000, 100)
    #: COPY waits for the server twice, so it pays from so many rows on.
    COPY_FROM = 30

    def __init__(self, table: str, columns: str, rest: str = "") -> None:
        names = columns.split()
        self._types = [metadata.tables[table].c[name].type.python_type for name in names]
        marks = f"({', '.join('?' * len(names))})"
        head = f"INSERT INTO {table} ({', '.join(names)}) VALUES "
        self._one = f"{head}{marks} {rest}"
        arrays = ", ".join(f"CAST(%s AS {_ARRAYS[type]})" for type in self._types)
        #: COPY knows no ON CONFLICT.
        self._copy = None if rest else f"{COPY} {table} ({', '.join(names)}) FROM STDIN"
        self._unnest = f"{head.removesuffix('VALUES ')}SELECT * FROM unnest({arrays}) {rest}"
        self._many = [(n, f"{head}{', '.join([marks] * n)} {rest}") for n in self.SIZES]

    def run(self, conn: Connection, rows: Sequence[tuple[Any, ...]]) -> None:
        """Insert the rows, in their order."""
        if conn.dialect.name == "postgresql":
            if self._copy is not None and len(rows) >= self.COPY_FROM:
                conn.exec_driver_sql(self._copy, [self._plain(row) for row in rows])
            else:
                conn.exec_driver_sql(self._unnest, self._columns(rows))
            return
        at = 0
        for size, statement in self._many:
            while len(rows) - at >= size:
                flat = tuple(itertools.chain.from_iterable(rows[at : at + size]))
                conn.exec_driver_sql(statement, flat)
                at += size
        if at < len(rows):
            conn.exec_driver_sql(self._one, list(rows[at:]))

    def _plain(self, row: tuple[Any, ...]) -> tuple[Any, ...]:
        """A row without members of enumerations, which the driver would write as their names."""
        return tuple(
            value if type(value) in _ARRAYS or value is None else kind(value)
            for kind, value in zip(self._types, row, strict=True)
        )

    def _columns(self, rows: Sequence[tuple[Any, ...]]) -> tuple[list[Any], ...]:
        """The values column by column. The driver wants those of a list to be of one type."""
        return tuple(
            [None if value is None else kind(value) for value in column]
            if kind in (str, float)
            else list(column)
            for kind, column in zip(self._types, zip(*rows, strict=True), strict=True)
        )


#: PostgreSQL's arrays for the types of columns.
_ARRAYS = {int: "bigint[]", float: "double precision[]", str: "text[]", bytes: "bytea[]"}

INSERT_EVENTS = Insert(
    "event", "project seq kind job old new attempt epoch occurred_at received_at data"
)

INSERT_LOG = Insert("bus_log", "position project topic body published_at")
INSERT_DELIVERIES = Insert(
    "bus_delivery", "queue position project state until lease tries since died_at reason"
)

ADD_TALLIES = sql("""
    INSERT INTO bus_queue (name, arrived, acked, retried, lost, died, revived, forgotten)
    SELECT v.name, v.arrived, v.acked, v.retried, v.lost, v.died, v.revived, v.forgotten
    FROM rows(:rows, name text, arrived int, acked int, retried int, lost int, died int, revived int,
              forgotten int) v WHERE true
    ON CONFLICT (name) DO UPDATE SET
        arrived = bus_queue.arrived + excluded.arrived, acked = bus_queue.acked + excluded.acked,
        retried = bus_queue.retried + excluded.retried, lost = bus_queue.lost + excluded.lost,
        died = bus_queue.died + excluded.died, revived = bus_queue.revived + excluded.revived,
        forgotten = bus_queue.forgotten + excluded.forgotten""")

ADD_COUNTS = sql("""
    INSERT INTO counter (project, site, app, state, count)
    SELECT v.project, v.site, v.app, v.state, v.count
    FROM rows(:rows, project int, site int, app text, state text, count int) v WHERE true
    ON CONFLICT (project, site, app, state) DO UPDATE SET count = counter.count + excluded.count""")

SET_WAITING = sql("""
    UPDATE shape SET waiting = v.waiting FROM rows(:rows, n int, waiting int) v WHERE shape.n = v.n""")

SET_SEQ = sql("""
    UPDATE project SET next_seq = v.seq FROM rows(:rows, n int, seq int) v WHERE project.n = v.n""")

SET_COMMIT = sql("""
    UPDATE hub SET commit_no = :commit_no, incarnation = :incarnation, next_job = :next_job,
    next_position = :next_position, next_lease = :next_lease""")

FORGET_AGENTS = sql("UPDATE site SET agent = :nobody")

INSERT_SHAPE = sql("""
    INSERT INTO shape (project, hash, body, waiting) VALUES (:project, :hash, :body, 0) RETURNING n""")

_encode = msgspec.json.Encoder().encode


@dataclass(slots=True)
class Effects:
    """What a commit changed that somebody may be waiting for. Hints only: the truth is re-read.

    `work`: Sites with work at which a pilot may look; `left`: those where all pilots have, and some is left.
    """

    events: dict[int, int] = field(default_factory=dict)
    ends: set[int] = field(default_factory=set)
    work: set[int] = field(default_factory=set)
    left: set[int] = field(default_factory=set)
    kill: set[str] = field(default_factory=set)
    agents: set[int] = field(default_factory=set)
    revoked: set[str] = field(default_factory=set)
    acts: set[int] = field(default_factory=set)
    queues: set[str] = field(default_factory=set)
    unsettled: bool = False
    due: bool = False


@dataclass(slots=True)
class Tally:
    """What was done with a queue: how its counts change."""

    arrived: int = 0
    acked: int = 0
    retried: int = 0
    lost: int = 0
    died: int = 0
    revived: int = 0
    forgotten: int = 0


class Tx:
    """The open transaction, as commands see it. `now` is seconds since 1970, `boot` CLOCK_BOOTTIME."""

    def __init__(self, conn: Connection, catalog: Catalog, now: float, boot: float) -> None:
        self.conn = conn
        self.catalog = catalog
        self.now = now
        self.boot = boot
        self.effects = Effects()
        #: Whether the command that runs has written, and whether any of this transaction has.
        self.dirty = False
        self.written = False
        self._events: list[tuple[Any, ...]] = []
        self._counts: dict[tuple[int, int, str, str], int] = {}
        self._moves: dict[tuple[int, int, str, str, str], int] = {}
        self._shapes: set[int] = set()
        self._at_end: dict[Callable[[Tx], None], None] = {}
        self._log: list[tuple[Any, ...]] = []
        self._deliveries: list[tuple[Any, ...]] = []
        self._tallies: defaultdict[str, Tally] = defaultdict(Tally)

    # -- statements --------------------------------------------------------------------------------

    def read(self, statement: TextClause, /, **params: Any) -> Sequence[Any]:
        """Rows of a SELECT."""
        return self.conn.execute(statement, params).fetchall()

    def write(self, statement: TextClause, /, **params: Any) -> Sequence[Any]:
        """Run a statement that changes rows; what it RETURNs, if anything."""
        self.dirty = True
        done = self.conn.execute(statement, params)
        return done.fetchall() if done.returns_rows else ()

    def write_rows(self, statement: TextClause, rows: Sequence[Any]) -> Sequence[Any]:
        """One set-wise statement over `rows` (given to it as JSON under `:rows`)."""
        return self.write(statement, rows=to_json(rows)) if rows else ()

    def insert(self, into: Insert, rows: Sequence[tuple[Any, ...]]) -> None:
        """Insert rows."""
        if rows:
            self.dirty = True
            into.run(self.conn, rows)

    @property
    def commit_no(self) -> int:
        """The commit that holds all that a command has seen: this one if it writes, else the last.

        A reader is never shown a number that may not come to be: it would take the Hub that does not
        know it for a restored one.
        """
        return self.catalog.commit_no + (self.dirty or self.written)

    # -- facts -------------------------------------------------------------------------------------

    def event(
        self,
        project: int,
        kind: str,
        job: int | None = None,
        old: str | None = None,
        new: str | None = None,
        *,
        attempt: int = 0,
        epoch: int = 0,
        at: float | None = None,
        data: str | None = None,
    ) -> None:
        """Append one Event; its seq is the next of the project, without gaps."""
        self.dirty = True
        seq = self.catalog.next_seq[project]
        self.catalog.next_seq[project] = seq + 1
        self.effects.events[project] = seq
        if new in FINAL:
            self.effects.ends.add(project)
        self._events.append(
            (
                project,
                seq,
                kind,
                job,
                text_of(old),
                text_of(new),
                attempt,
                epoch,
                self.now if at is None else at,
                self.now,
                data,
            )
        )

    def created(self, project: int, job: int, state: str) -> None:
        """The first Event of a Job (its row and its count are written by the caller)."""
        seq = self.catalog.next_seq[project]
        self.catalog.next_seq[project] = seq + 1
        self.effects.events[project] = seq
        now = self.now
        self._events.append((project, seq, "job", job, None, state, 0, 0, now, now, None))

    def decided(
        self,
        project: int,
        job: int,
        site: int,
        app: str,
        old: str,
        epoch: int,
        decision: Decision,
        outcome: str | None,
    ) -> None:
        """The Events and counts of a decision about one Job (its row is updated by the caller).

        `outcome` is the decision's outcome as JSON, which the last Event shows as well.
        """
        seq = self.catalog.next_seq[project]
        for step in decision.steps:
            data = None
            if step.outcome is not None:
                same = outcome is not None and step.outcome is decision.outcome
                data = f'{{"outcome":{outcome if same else to_json(step.outcome)}}}'
            elif step.assumed:
                data = '{"assumed":true}'
            fields = ("job", job, text_of(step.old), text_of(step.new), decision.attempt, epoch)
            self._events.append((project, seq, *fields, step.at, self.now, data))
            seq += 1
        self.dirty = True
        self.catalog.next_seq[project] = seq
        self.effects.events[project] = seq - 1
        if decision.state in FINAL:
            self.effects.ends.add(project)
        moved = (project, site, app, old, decision.state)
        self._moves[moved] = self._moves.get(moved, 0) + 1

    def count(self, project: int, site: int, app: str, state: str, n: int) -> None:
        """Change the number of Jobs in a state."""
        key = (project, site, app, state)
        self._counts[key] = self._counts.get(key, 0) + n

    def published(
        self, project: int, topic: str, body: str, queues: Sequence[str], delay_s: float
    ) -> int:
        """Append a message to the bus's log, and deliver it to queues; its position (see store.queues)."""
        self.dirty = True
        position = self.catalog.next_position
        self.catalog.next_position = position + 1
        self._log.append((position, project, topic, body, self.now))
        state, until = ("delayed", self.now + delay_s) if delay_s > 0 else ("ready", None)
        since = self.now if until is None else until
        for queue in queues:
            row = (queue, position, project, state, until, 0, 0, since, None, None)
            self._deliveries.append(row)
            self.tally(queue).arrived += 1
        return position

    def tally(self, queue: str) -> Tally:
        """The counts of a queue, to be changed. Something may be there for its consumers."""
        self.effects.queues.add(queue)
        return self._tallies[queue]

    def next_lease(self) -> int:
        """The number of a lease that was never given before."""
        self.dirty = True
        lease = self.catalog.next_lease
        self.catalog.next_lease = lease + 1
        return lease

    def waiting(self, shape_n: int, n: int) -> None:
        """Change how many Jobs of a Shape could be granted now; new ones wake its Sites."""
        entry = self.catalog.shapes[shape_n]
        entry.waiting += n
        self._shapes.add(shape_n)
        if n > 0:
            for site_id in entry.shape.sites:
                site = self.catalog.site_by_id.get((entry.project, site_id))
                if site is not None:
                    self.effects.work.add(site.n)

    def has_work(self, site: int) -> bool:
        """Whether any Job that could run at this Site waits for a pilot."""
        return any(entry.waiting for entry in self.catalog.sites[site].shapes)

    def intern(self, project: int, shape: Shape) -> ShapeEntry:
        """The row of a Shape, made on first use; Busy when a project has too many."""
        entry = self.catalog.shape_by_key.get((project, shape))
        if entry is None:
            many = sum(1 for s in self.catalog.shapes.values() if s.project == project)
            if many >= limits.SHAPES_PER_PROJECT:
                raise Busy(
                    f"the project has {many} different shapes of jobs: round resources and limits, "
                    "so that fewer differ",
                    code="too_many_shapes",
                    field="resources",
                )
            (row,) = self.write(
                INSERT_SHAPE,
                project=project,
                hash=shape_key(shape),
                body=msgspec.json.encode(shape).decode(),
            )
            entry = ShapeEntry(row[0], project, shape, 0)
            self.catalog.add_shape(entry)
        return entry

    def notice(self, seen: tuple[int, int]) -> None:
        """Somebody was shown this (incarnation, commit_no). If that is a later past than ours, this store is
        an older copy: begin a new incarnation."""
        mine = self.catalog.incarnation, self.catalog.commit_no
        if mine < seen and seen[0] <= mine[0] + limits.INCARNATIONS_AHEAD:
            self.renumber(seen[0] + 1)

    def renumber(self, incarnation: int) -> None:
        """Begin a new incarnation of the Hub (after a restore). Which agents serve the Sites now, an older
        copy cannot know: each Site's is the first that speaks."""
        self.write(FORGET_AGENTS, nobody=unheard.NOBODY)
        self.catalog.incarnation = incarnation
        self.catalog.unheard = unheard.load(self.conn, incarnation)

    def heard(self, site: int | None, who: int) -> None:
        """An agent or a Session has said what it knows in this incarnation, or is over for certain."""
        if site is not None and self.catalog.unheard.heard(site, who):
            # Jobs of several Sites may have waited for this one.
            self.effects.work |= self.catalog.sites.keys()

    def settling(self) -> set[str]:
        """The ids of the Sites from which somebody is still to be heard after a restore."""
        numbers = self.catalog.unheard.sites(self.boot, limits.SETTLE_S)
        sites = self.catalog.sites
        return {sites[n].id for n in numbers if n in sites}

    def at_end(self, fn: Callable[[Tx], None]) -> None:
        """Have `fn(tx)` write, once, what all commands of this transaction gathered."""
        self._at_end[fn] = None

    def flush(self) -> None:
        """Write what was gathered. Called once, just before COMMIT."""
        if not self.written:
            return
        for fn in self._at_end:
            fn(self)
        self.insert(INSERT_EVENTS, self._events)
        for (project, site, app, old, new), n in self._moves.items():
            self.count(project, site, app, old, -n)
            self.count(project, site, app, new, n)
        counts = [(*key, n) for key, n in self._counts.items() if n]
        self.write_rows(ADD_COUNTS, counts)
        self.write_rows(SET_WAITING, [(n, self.catalog.shapes[n].waiting) for n in self._shapes])
        seqs = [(p, self.catalog.next_seq[p]) for p in self.effects.events]
        self.write_rows(SET_SEQ, seqs)
        self.insert(INSERT_LOG, self._log)
        self.insert(INSERT_DELIVERIES, self._deliveries)
        self.write_rows(ADD_TALLIES, [(q, *astuple(t)) for q, t in self._tallies.items()])
        self.catalog.commit_no += 1
        self.write(
            SET_COMMIT,
            commit_no=self.catalog.commit_no,
            incarnation=self.catalog.incarnation,
            next_job=self.catalog.next_job,
            next_position=self.catalog.next_position,
            next_lease=self.catalog.next_lease,
        )


def to_json(value: Any) -> str:
    """A value for a JSON column, or a set for a statement (store.dialect; None becomes SQL NULL)."""
    return _encode(value).decode()
