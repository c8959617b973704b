"""Simulations as a projection of the journal: `project` applies messages in the transaction that stores them.

The folds of simulations that are spoken of stay in memory, as rows of a cache that a rollback throws away.
A message changes its fold there; what changed is written once for each transaction, with one Event for each
simulation, just before it commits. So a hot simulation costs no more than a cold one, and a batch of
messages of one simulation little more than one of them.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from sqlalchemy import Connection

from chappe.core import lateness, simulations
from chappe.core.lateness import State
from chappe.core.messages import Message
from chappe.core.simulations import Fold, JobFold, Stamp
from chappe.core.timestamps import NS
from chappe.core.vocabulary import Phase, Scope
from chappe.store.dialect import sql
from chappe.store.tx import Insert, Tx, to_json

#: So many folds (of simulations and their jobs) are kept in memory, roughly 2 kB each.
KEPT = 50_000
#: Jobs looked at by one command of the clock's.
DUE = 500

KIND = "simulation"

FAMILIES = {
    "job.period": "period",
    "command.failed": "command",
    "post.command_failed": "command",
    "checker.command_failed": "command",
    "io": "action",
    "simulation.card": "card",
}

FIND = sql("""
    SELECT s.n, s.uid, s.state, s.try_no, s.active, s.purged, s.counts, s.took, s.fold
    FROM texts(:uids) v CROSS JOIN simulation s ON
        s.project = :project AND s.producer = :producer AND s.uid = v.value""")

JOBS = sql("""
    SELECT j.simulation, j.id, j.state, j.due_at, j.fold FROM ints(:ns) v
    CROSS JOIN sim_job j ON j.simulation = v.value""")

NUMBER = sql("""
    SELECT n, identity FROM simulation WHERE project = :project AND producer = :producer AND uid = :uid""")

DROP_FACTS = sql("DELETE FROM fact WHERE simulation = :n")
DROP_JOBS = sql("DELETE FROM sim_job WHERE simulation = :n")
DROP = sql("DELETE FROM simulation WHERE n = :n")

LAST = sql("SELECT COALESCE(max(n), 0) FROM simulation")

SAME = sql("""
    SELECT n, uid, identity, started, tombstone, state, try_no, active, purged
    FROM texts(:identities) v CROSS JOIN simulation s ON
        s.project = :project AND s.producer = :producer AND s.identity = v.value""")

SET_TRIES = sql("""
    UPDATE simulation SET try_no = v.try_no, active = v.active, purged = v.purged
    FROM rows(:rows, n int, try_no int, active int, purged int) v WHERE simulation.n = v.n""")

OVERDUE = sql("""
    SELECT DISTINCT s.project, s.producer, s.uid, j.id FROM sim_job j
    JOIN simulation s ON s.n = j.simulation WHERE j.due_at <= :now LIMIT :most""")

NEXT_DUE = sql("SELECT min(due_at) FROM sim_job WHERE due_at IS NOT NULL")

#: What most messages change of a simulation and of a job. No index holds any of it.
UPDATE = sql("""
    UPDATE simulation SET state = v.state, ended_at = v.ended_at, changed_at = v.changed_at,
        progress = v.progress, messages = v.messages, counts = v.counts, took = v.took, fold = v.fold
    FROM rows(:rows, n int, state text, ended_at float, changed_at float, progress float,
              messages int, counts text, took text, fold text) v WHERE simulation.n = v.n""")

UPDATE_JOBS = sql("""
    UPDATE sim_job SET state = v.state, fold = v.fold
    FROM rows(:rows, n int, id text, state text, fold text) v
    WHERE sim_job.simulation = v.n AND sim_job.id = v.id""")

_SIMULATION = (
    "n project producer uid state identity try_no active purged name experiment model space machine"
    " login centre account started tombstone started_at ended_at changed_at progress messages counts"
    " took fold"
)
_FIXED = ("n", "project", "producer", "uid")


def _upsert(columns: str, key: str, fixed: Sequence[str]) -> str:
    named = ", ".join(f"{c} = excluded.{c}" for c in columns.split() if c not in fixed)
    return f"ON CONFLICT ({key}) DO UPDATE SET {named}"


WRITE = Insert("simulation", _SIMULATION, _upsert(_SIMULATION, "n", _FIXED))
_JOB = "simulation id state due_at fold"
WRITE_JOBS = Insert("sim_job", _JOB, _upsert(_JOB, "simulation, id", ("simulation", "id")))
WRITE_FACTS = Insert("fact", "simulation family message", "ON CONFLICT DO NOTHING")

_encode = msgspec.json.Encoder().encode
_fold = msgspec.json.Decoder(Fold).decode
_job_fold = msgspec.json.Decoder(JobFold).decode

Key = tuple[int, int, str]
Place = tuple[Stamp, str]


@dataclass(slots=True)
class _Job:
    fold: JobFold
    state: State = State.RUNNING
    due_ns: int | None = None
    #: Where it stands among the compute jobs; None: it is none.
    place: Place | None = None
    #: Under which kind and state it is counted.
    counted: str = ""
    #: Whether it has a row, and with which `due_ns`.
    written: bool = False
    written_due_ns: int | None = None

    @property
    def key(self) -> str:
        """Its kind and state, as counted."""
        return f"{self.fold.kind or 'other'}.{self.state}"


@dataclass(slots=True)
class Entry:
    """A simulation in memory: its folds, what is written of it, and what has changed since."""

    n: int
    key: Key
    fold: Fold
    state: State = State.QUEUED
    try_no: int = 0
    active: bool = True
    purged: bool = False
    counts: dict[str, int] = field(default_factory=dict)
    took: dict[int, int] = field(default_factory=dict)
    jobs: dict[str, _Job] = field(default_factory=dict)
    #: The compute jobs by when they began.
    order: list[Place] = field(default_factory=list)
    #: Jobs whose fold has changed, and jobs at which to look for other reasons.
    changed: set[str] = field(default_factory=set)
    look: set[str] = field(default_factory=set)
    #: Since the last transaction: messages by type, and whether the tries must be numbered anew.
    told: dict[str, int] = field(default_factory=dict)
    renumber: bool = False
    #: Whether it has a row.
    written: bool = False
    progress: float | None = None

    @property
    def latest(self) -> _Job | None:
        """The compute job that began last."""
        return self.jobs[self.order[-1][1]] if self.order else None

    @property
    def shown(self) -> tuple[State, bool, bool]:
        """What an Event is worth."""
        return self.state, self.active, self.purged

    def count(self, job: _Job) -> None:
        """Count a job under its kind and state, and no longer under those it had."""
        if job.counted == job.key:
            return
        if job.counted:
            self.counts[job.counted] -= 1
            if not self.counts[job.counted]:
                del self.counts[job.counted]
        job.counted = job.key
        self.counts[job.counted] = self.counts.get(job.counted, 0) + 1

    def put(self, job: _Job) -> None:
        """Have a job stand where it began, and look at those before it: they are followed by another now."""
        place = simulations.order(job.fold) if job.fold.kind is Scope.COMPUTE else None
        if place == job.place:
            return
        if job.place is not None:
            at = bisect_left(self.order, job.place)
            del self.order[at]
            self._look_before(at)
        if place is not None:
            insort(self.order, place)
            self._look_before(bisect_left(self.order, place))
        job.place = place

    def _look_before(self, at: int) -> None:
        if at > 0:
            self.look.add(self.order[at - 1][1])

    def after(self, job: _Job) -> Stamp | None:
        """When the compute job that follows began."""
        if job.place is None:
            return None
        at = bisect_left(self.order, job.place) + 1
        return self.order[at][0] if at < len(self.order) else None


_JobRow = tuple[int, _Job]


class Cache:
    """Entries by (project, producer, uid), the last used last, and what has changed in this transaction."""

    def __init__(self, next_n: int) -> None:
        self.next_n = next_n
        self.entries: OrderedDict[Key, Entry] = OrderedDict()
        self.dirty: dict[Key, Entry] = {}
        self.facts: list[tuple[int, str, int]] = []
        self.size = 0

    def forget(self) -> None:
        """Let go of what was not used for longest. What has changed stays."""
        while self.size > KEPT and len(self.entries) > 1:
            key, entry = next(iter(self.entries.items()))
            if key in self.dirty:
                return
            del self.entries[key]
            self.size -= 1 + len(entry.jobs)


def _cache(tx: Tx) -> Cache:
    """The cache of this writer. A rollback loads the catalog anew, and with it goes the cache."""
    if tx.catalog.simulations is None:
        tx.catalog.simulations = Cache(tx.read(LAST)[0][0] + 1)
    return tx.catalog.simulations


def project(
    tx: Tx,
    project: int,
    producer: int,
    stored: Sequence[tuple[int, Message]],
    received_at: float,
) -> None:
    """Apply messages that were just stored, each with its position in the journal."""
    tx.dirty = True
    cache = _cache(tx)
    entries = _entries(tx, cache, project, producer, {m.simulation for _, m in stored})
    apply(cache, entries, stored, received_at)
    tx.at_end(write)


def apply(
    cache: Cache,
    entries: Mapping[str, Entry],
    stored: Sequence[tuple[int, Message]],
    received_at: float,
) -> None:
    """Add messages to the folds of their simulations."""
    received_ms = int(received_at * 1000)
    for n, message in stored:
        if not message.simulation:
            continue
        entry = entries[message.simulation]
        kind, at = entry.fold.add(message)
        if (job_id := simulations.job_of(message, kind)) is not None:
            job = entry.jobs.get(job_id)
            if job is None:
                job = entry.jobs[job_id] = _Job(JobFold(job_id))
                cache.size += 1
            job.fold.add(message, kind, at)
            entry.changed.add(job_id)
            entry.put(job)
        if (family := FAMILIES.get(kind.type)) is not None:
            cache.facts.append((entry.n, family, n))
        elif kind.scope is Scope.SIMULATION and kind.phase is not Phase.END:
            entry.renumber = True
        name = message.type or message.code
        entry.told[name] = entry.told.get(name, 0) + 1
        if message.at_ns > 0:
            bucket = max(0, received_ms - message.at_ns // 1_000_000).bit_length()
            entry.took[bucket] = entry.took.get(bucket, 0) + 1
        cache.dirty[entry.key] = entry


def _entries(
    tx: Tx, cache: Cache, project: int, producer: int, uids: Iterable[str]
) -> dict[str, Entry]:
    """The entries of these simulations: from memory, from the store, or new."""
    found: dict[str, Entry] = {}
    missing = []
    for uid in uids:
        entry = cache.entries.get((project, producer, uid))
        if entry is None:
            if uid:
                missing.append(uid)
        else:
            cache.entries.move_to_end(entry.key)
            found[uid] = entry
    if missing:
        whose = {"project": project, "producer": producer}
        for entry in _load(tx, tx.read(FIND, uids=to_json(missing), **whose), project, producer):
            found[entry.fold.uid] = entry
        for uid in missing:
            if uid not in found:
                found[uid] = Entry(cache.next_n, (project, producer, uid), Fold(uid))
                cache.next_n += 1
            cache.entries[project, producer, uid] = found[uid]
            cache.size += 1 + len(found[uid].jobs)
    return found


def _load(tx: Tx, rows: Sequence[Any], project: int, producer: int) -> list[Entry]:
    """Entries of rows, with their jobs."""
    by_n = {
        row.n: Entry(
            row.n,
            (project, producer, row.uid),
            _fold(row.fold),
            State(row.state),
            row.try_no,
            bool(row.active),
            bool(row.purged),
            msgspec.json.decode(row.counts),
            msgspec.json.decode(row.took, type=dict[int, int]),
            written=True,
        )
        for row in rows
    }
    for row in tx.read(JOBS, ns=to_json(list(by_n))) if by_n else ():
        entry, fold = by_n[row.simulation], _job_fold(row.fold)
        due_ns = None if row.due_at is None else int(row.due_at * NS)
        job = entry.jobs[row.id] = _Job(fold, State(row.state), due_ns)
        job.counted, job.written, job.written_due_ns = job.key, True, due_ns
        if fold.kind is Scope.COMPUTE:
            job.place = simulations.order(fold)
            entry.order.append(job.place)
    for entry in by_n.values():
        entry.order.sort()
    return list(by_n.values())


def write(tx: Tx) -> None:
    """Judge, number and write what has changed, with an Event for each simulation. At a transaction's end."""
    cache = _cache(tx)
    dirty = list(cache.dirty.values())
    cache.dirty = {}
    facts, cache.facts = cache.facts, []
    before = {entry.n: entry.shown for entry in dirty}
    jobs: list[_JobRow] = []
    whole, parts = [], []
    for entry in dirty:
        jobs += _judge(entry, int(tx.now * NS))
        if entry.fold.purged is not None:
            entry.purged, entry.active = True, False
        if entry.renumber or not entry.written:
            whole.append(_row(entry, tx.now))
            entry.written = True
        else:
            parts.append((entry.n, *_part(entry, tx.now)))
    tx.insert(WRITE, whole)
    tx.write_rows(UPDATE, parts)
    _write_jobs(tx, jobs)
    tx.insert(WRITE_FACTS, facts)
    _number(tx, cache, dirty)
    for entry in dirty:
        if entry.told or before[entry.n] != entry.shown:
            _tell(tx, entry, before[entry.n][0])
        entry.told, entry.renumber = {}, False
    cache.forget()


def _judge(entry: Entry, now_ns: int) -> list[_JobRow]:
    """The jobs that are to be written; the simulation's counts, state and progress follow them."""
    slack_ns = lateness.learned_slack_ns(entry.took)
    found: list[_JobRow] = []
    for id in entry.changed | entry.look:
        job = entry.jobs[id]
        state, due_ns = lateness.judge(job.fold, entry.after(job), now_ns, slack_ns)
        if id not in entry.changed and (state, due_ns) == (job.state, job.due_ns):
            continue
        job.state, job.due_ns = state, due_ns
        entry.count(job)
        found.append((entry.n, job))
    entry.changed, entry.look = set(), set()
    latest = entry.latest
    entry.state = State.QUEUED if latest is None else lateness.state_of(latest.fold, latest.state)
    entry.progress = entry.fold.progress
    return found


def _write_jobs(tx: Tx, jobs: Sequence[_JobRow]) -> None:
    """Write jobs: where they stand in time only if that has changed, for an index holds it."""
    whole, parts = [], []
    for n, job in jobs:
        fold = _encode(job.fold).decode()
        if job.written and job.written_due_ns == job.due_ns:
            parts.append((n, job.fold.id, job.state, fold))
            continue
        due_at = None if job.due_ns is None else job.due_ns / NS
        whole.append((n, job.fold.id, str(job.state), due_at, fold))
        job.written, job.written_due_ns = True, job.due_ns
    tx.insert(WRITE_JOBS, whole)
    tx.write_rows(UPDATE_JOBS, parts)


def _part(entry: Entry, now: float) -> tuple[Any, ...]:
    """What most messages change of a row, in the order of UPDATE."""
    latest = entry.latest
    ended_ns = lateness.ended_ns(None if latest is None else latest.fold, entry.state)
    return (
        str(entry.state),
        None if ended_ns is None else ended_ns / NS,
        now,
        entry.progress,
        entry.fold.messages,
        to_json(entry.counts),
        to_json(entry.took),
        _encode(entry.fold).decode(),
    )


def _row(entry: Entry, now: float) -> tuple[Any, ...]:
    """All of a row, in the order of WRITE."""
    fold, fields = entry.fold, entry.fold.fields
    state, ended_at, *rest = _part(entry, now)
    named = ("name", "experiment", "model", "space", "machine", "login", "centre")
    return (
        *(entry.n, *entry.key, state, identity_of(fold)),
        *(entry.try_no, int(entry.active), int(entry.purged)),
        *(fields.get(name, "") for name in named),
        fields.get("accountingProject", ""),
        None if fold.started is None else to_json(fold.started),
        None if fold.purged is None else to_json(fold.purged),
        None if fold.started is None else fold.started.at_ns / NS,
        ended_at,
        *rest,
    )


def identity_of(fold: Fold) -> str:
    """What the tries of one simulation have in common, short; empty until the start is known."""
    identity = fold.identity
    return "" if identity is None else hashlib.sha256(_encode(identity)).hexdigest()[:32]


def _number(tx: Tx, cache: Cache, dirty: Sequence[Entry]) -> None:
    """Number the tries of which one has begun or was purged; tell of those that this changes."""
    wanted: dict[tuple[int, int], set[str]] = {}
    for entry in dirty:
        if entry.renumber and (identity := identity_of(entry.fold)):
            wanted.setdefault(entry.key[:2], set()).add(identity)
    _number_again(tx, cache, wanted, {entry.n for entry in dirty})


def _number_again(
    tx: Tx, cache: Cache, wanted: Mapping[tuple[int, int], set[str]], ours: set[int]
) -> None:
    """Number all tries of these identities; `ours` are told of anyway."""
    for (project, producer), identities in wanted.items():
        same: dict[str, list[Any]] = {}
        whose = {"project": project, "producer": producer}
        for row in tx.read(SAME, identities=to_json(sorted(identities)), **whose):
            same.setdefault(row.identity, []).append(row)
        changed = []
        for rows in same.values():
            found = simulations.tries(
                [
                    Fold(row.uid, started=_stamp(row.started), purged=_stamp(row.tombstone))
                    for row in rows
                ]
            )
            for row in rows:
                number, active, purged = found[row.uid]
                if (number, active, purged) == (row.try_no, bool(row.active), bool(row.purged)):
                    continue
                changed.append((row.n, number, int(active), int(purged)))
                entry_ = cache.entries.get((project, producer, row.uid))
                if entry_ is not None:
                    entry_.try_no, entry_.active, entry_.purged = number, active, purged
                if row.n not in ours:
                    data = {"id": row.uid, "active": active, "purged": purged, "try": number}
                    tx.event(project, KIND, old=row.state, new=row.state, data=to_json(data))
        tx.write_rows(SET_TRIES, changed)


def _stamp(text: str | None) -> Stamp | None:
    return None if text is None else msgspec.json.decode(text, type=Stamp)


def _tell(tx: Tx, entry: Entry, old: State) -> None:
    """One Event for all that a transaction changed of a simulation."""
    fold = entry.fold
    data: dict[str, Any] = {
        "id": fold.uid,
        "name": fold.fields.get("name", ""),
        "messages": fold.messages,
        "types": entry.told,
        "progress": entry.progress,
        "active": entry.active,
        "purged": entry.purged,
        "try": entry.try_no,
    }
    if "metric" in entry.told:
        data["metrics"] = {name: value.value for name, value in fold.metrics.items()}
    tx.event(entry.key[0], KIND, old=old, new=entry.state, data=to_json(data))


def look_again(tx: Tx) -> int:
    """Judge jobs whose time has come: late, silent, lost end. How many there were."""
    cache = _cache(tx)
    rows = tx.read(OVERDUE, now=tx.now, most=DUE)
    by_producer: dict[tuple[int, int], list[tuple[str, str]]] = {}
    for row in rows:
        by_producer.setdefault((row.project, row.producer), []).append((row.uid, row.id))
    for (project, producer), jobs in by_producer.items():
        entries = _entries(tx, cache, project, producer, {uid for uid, _ in jobs})
        for uid, id in jobs:
            entries[uid].look.add(id)
            cache.dirty[entries[uid].key] = entries[uid]
    if rows:
        tx.dirty = True
        tx.at_end(write)
    return len(rows)


def next_look(conn: Connection) -> float | None:
    """When (since 1970) the next job is to be judged again."""
    at = conn.execute(NEXT_DUE).scalar()
    return None if at is None else float(at)


def replace(
    tx: Tx,
    entry: Entry,
    facts: Sequence[tuple[str, int]],
    tail: Sequence[tuple[int, Message, float]],
) -> None:
    """Put what a simulation's messages come to in the place of what is stored of it. `facts` are (family,
    position); `tail` are messages that came since."""
    write(tx)
    cache = _cache(tx)
    project, producer, uid = entry.key
    found = tx.read(NUMBER, project=project, producer=producer, uid=uid)
    number = found[0].n if found else cache.next_n
    # Also of one that has no row: others may be left.
    for statement in (DROP_FACTS, DROP_JOBS, DROP):
        tx.write(statement, n=number)
    old = cache.entries.pop(entry.key, None)
    cache.size -= 0 if old is None else 1 + len(old.jobs)
    if not (entry.fold.messages or tail):
        if found and found[0].identity:
            _number_again(tx, cache, {(project, producer): {found[0].identity}}, set())
        return
    entry.n = number
    cache.next_n += not found
    cache.entries[entry.key] = cache.dirty[entry.key] = entry
    cache.size += 1 + len(entry.jobs)
    cache.facts += [(entry.n, family, n) for family, n in facts]
    entry.told, entry.renumber = {}, True
    for n, message, received_at in tail:
        apply(cache, {uid: entry}, [(n, message)], received_at)
    tx.at_end(write)
