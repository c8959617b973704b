"""Whether what is shown follows from the journal, and making it so, while messages go on coming.

`compare` reads one moment: for one simulation after the other it folds all its messages anew and holds the
result against what is stored of it: the folds of simulation and jobs, facts, series. It runs beside the
writer, whom it costs nothing. Only what differs is corrected, each simulation in a transaction of its own:
the new folds, which know the journal up to the moment of the comparison, get the messages that came since,
and take the place of what was stored. An Event (`projection.corrected`) says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection

from chappe.core import cloudevents, messages
from chappe.core.messages import Message, Undecodable
from chappe.core.simulations import Fold, JobFold
from chappe.store import audit, series, simulations
from chappe.store.dialect import sql
from chappe.store.principal import Principal
from chappe.store.series import Value
from chappe.store.simulations import Cache, Entry
from chappe.store.tx import Tx, to_json

#: Messages folded for one answer, unless one simulation has more; and simulations.
SCAN = 20_000
AT_ONCE = 200
KIND = "projection.corrected"

#: What the journal knows of, and what is shown, next by name.
NEXT = sql("""
    SELECT simulation AS uid FROM (
        SELECT DISTINCT simulation FROM message WHERE project = :project AND simulation > :after
        ORDER BY simulation LIMIT :most) a
    UNION SELECT uid FROM (
        SELECT DISTINCT uid FROM simulation WHERE project = :project AND uid > :after
        ORDER BY uid LIMIT :most) b
    ORDER BY uid LIMIT :most""")

TOLD = sql("""
    SELECT producer, n, raw, received_at FROM message
    WHERE project = :project AND simulation = :uid ORDER BY n""")

TOLD_SINCE = sql("""
    SELECT n, raw, received_at FROM message
    WHERE project = :project AND simulation = :uid AND producer = :producer AND n > :after
    ORDER BY n""")

LAST = sql("SELECT COALESCE(max(n), 0) FROM message WHERE project = :project")

SHOWN = sql("""
    SELECT n, producer, fold, took FROM simulation WHERE project = :project AND uid = :uid""")

JOBS = sql("SELECT id, fold FROM sim_job WHERE simulation = :n")

FACTS = sql("SELECT family, message FROM fact WHERE simulation = :n")

VALUES = sql("""
    SELECT s.job, s.name, m.at_ns, m.message, m.value, m.step, m.time
    FROM series s CROSS JOIN metric m ON m.series = s.n
    WHERE s.project = :project AND s.simulation = :uid AND s.producer = :producer""")


@dataclass(slots=True)
class Refold:
    """What one simulation's messages come to, up to the position `last`; `differs` names what is stored
    otherwise."""

    entry: Entry
    facts: list[tuple[str, int]]
    values: list[Value]
    last: int
    differs: tuple[str, ...] = ()


@dataclass(slots=True, frozen=True)
class Comparison:
    """One page of it: how many simulations and messages were looked at, which of the latter cannot be read
    any more, and what differs."""

    simulations: int
    messages: int
    unreadable: int
    differing: list[Refold]
    cursor: str | None


def compare(conn: Connection, project: int, after: str) -> Comparison:
    """Compare simulations after a name (their simuid), in one snapshot."""
    last = conn.execute(LAST, {"project": project}).scalar_one()
    names = conn.execute(NEXT, {"project": project, "after": after, "most": AT_ONCE}).fetchall()
    differing: list[Refold] = []
    looked = unreadable = done = 0
    for (uid,) in names:
        done += 1
        found, told, bad = _refolded(conn, project, uid, last)
        looked += told
        unreadable += bad
        differing += [refold for refold in found if refold.differs]
        if looked >= SCAN:
            break
    more = done < len(names) or len(names) == AT_ONCE
    return Comparison(done, looked, unreadable, differing, names[done - 1].uid if more else None)


def correct(tx: Tx, p: Principal, refold: Refold) -> None:
    """Put it in the place of what is stored."""
    project, producer, uid = refold.entry.key
    params = {"project": project, "uid": uid, "producer": producer, "after": refold.last}
    tail = list(_read(tx.read(TOLD_SINCE, **params)))
    simulations.replace(tx, refold.entry, refold.facts, tail)
    series.drop(tx, project, producer, uid)
    values = list(refold.values)
    for n, message, received_at in tail:
        values += series.values_of(project, producer, [(n, message)], received_at)
    series.store(tx, values)
    data = {"id": uid, "differed": refold.differs}
    tx.event(project, KIND, data=to_json(data))
    audit.record(tx, p, project, "projection.correct", uid, differed=", ".join(refold.differs))


def _refolded(conn: Connection, project: int, uid: str, last: int) -> tuple[list[Refold], int, int]:
    """A simulation of each producer that speaks of it, compared; how many messages it has, and how many of
    them cannot be read."""
    whose = {"project": project, "uid": uid}
    cache = Cache(0)
    found: dict[int, Refold] = {}

    def of(producer: int) -> Refold:
        if producer not in found:
            entry = Entry(0, (project, producer, uid), Fold(uid))
            found[producer] = Refold(entry, [], [], last)
        return found[producer]

    looked = unreadable = 0
    for row in conn.execute(TOLD, whose):
        looked += 1
        read = _message(row)
        if read is None:
            unreadable += 1
            continue
        n, message, received_at = read
        refold = of(row.producer)
        simulations.apply(cache, {uid: refold.entry}, [(n, message)], received_at)
        refold.facts += [(family, at) for _, family, at in cache.facts]
        cache.facts.clear()
        refold.values += series.values_of(project, row.producer, [(n, message)], received_at)
    shown = {row.producer: row for row in conn.execute(SHOWN, whose)}
    for producer in {*shown, *found}:
        refold = of(producer)
        refold.differs = tuple(_differing(conn, refold, shown.get(producer)))
    return list(found.values()), looked, unreadable


def _read(rows: Iterable[Any]) -> Iterator[tuple[int, Message, float]]:
    return (read for row in rows if (read := _message(row)) is not None)


def _message(row: Any) -> tuple[int, Message, float] | None:
    """A message of the journal, as it was applied; None when this version cannot read it."""
    try:
        message = cloudevents.read(bytes(row.raw))
    except Undecodable:
        return None
    at = row.received_at
    return row.n, messages.received(message, int(at * 1e9)), at


def _differing(conn: Connection, refold: Refold, row: Any) -> Iterator[str]:
    """What is stored otherwise than the journal says."""
    entry = refold.entry
    if row is None:
        yield "missing"
        return
    if not entry.fold.messages:
        yield "invented"
        return
    if _decoded(row.fold, Fold) != entry.fold:
        yield "simulation"
    jobs = {job.id: _decoded(job.fold, JobFold) for job in conn.execute(JOBS, {"n": row.n})}
    if jobs != {id: job.fold for id, job in entry.jobs.items()}:
        yield "jobs"
    if {tuple(fact) for fact in conn.execute(FACTS, {"n": row.n})} != set(refold.facts):
        yield "facts"
    if _decoded(row.took, dict[int, int]) != entry.took:
        yield "latency"
    project, producer, uid = entry.key
    whose = {"project": project, "producer": producer, "uid": uid}
    stored = {tuple(value) for value in conn.execute(VALUES, whose)}
    if stored != {(*key[2:4], *value) for key, value in refold.values}:
        yield "series"


def _decoded(text: str, kind: Any) -> Any:
    """What is stored, None when it is not even of the kind."""
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.MsgspecError:
        return None
