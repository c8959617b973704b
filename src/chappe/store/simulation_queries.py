"""Reading simulations: lists, one with its tries, its jobs, and what its messages told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy import Connection

from chappe.core import cloudevents, lateness, simulations
from chappe.core.errors import Conflict, Invalid, NotFound
from chappe.core.ids import is_uuid7
from chappe.core.lateness import State
from chappe.core.simulations import Fold, JobFold
from chappe.core.timestamps import NS
from chappe.core.vocabulary import Scope
from chappe.store.dialect import sql
from chappe.store.journal import MAIN
from chappe.store.principal import Principal
from chappe.store.rows import no_such
from chappe.store.select import after_all
from chappe.store.simulation_tables import simulation
from chappe.store.tx import to_json
from chappe.wire.simulations import (
    CardView,
    FactPage,
    FactView,
    SimulationDetail,
    SimulationJobs,
    SimulationJobView,
    SimulationPage,
    SimulationView,
    TryView,
)

MAIN_NAME = "main"

PRODUCERS = sql("SELECT n, name FROM producer WHERE project = :project")

ROW = sql("SELECT * FROM simulation WHERE project = :project AND uid = :uid ORDER BY producer")

SAME = sql("""
    SELECT uid, state, try_no, active, purged, started_at FROM simulation
    WHERE project = :project AND producer = :producer AND identity = :identity AND identity <> ''
    ORDER BY try_no""")

FOLDS = sql("SELECT fold FROM sim_job WHERE simulation = :n")

JOBS = sql("""
    SELECT id, state, fold FROM sim_job WHERE simulation = :n AND id >= :first
    ORDER BY id LIMIT :most""")

#: Those ids that are Jobs of Chappe.
LINKED = sql("""
    SELECT job.id FROM texts(:ids) v CROSS JOIN job ON
        job.project = :project AND job.id = v.value AND job.phase <> 'deleted'""")

FACTS = sql("""
    SELECT m.n, m.uid, m.job, m.at_ns, m.raw FROM fact f
    CROSS JOIN message m ON m.project = :project AND m.n = f.message
    WHERE f.simulation = :n AND f.family = :family AND f.message > :after
    ORDER BY f.message LIMIT :most""")


class SimulationFilter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which simulations: all conditions must hold. Without `all`, only active tries."""

    id: str | None = None
    id_prefix: str | None = None
    name: str | None = None
    name_prefix: str | None = None
    state: str | None = None
    experiment: str | None = None
    model: str | None = None
    space: str | None = None
    machine: str | None = None
    login: str | None = None
    centre: str | None = None
    account: str | None = None
    producer: str | None = None
    started_since: float | None = None
    started_until: float | None = None
    all: bool = False


_EQUAL = (
    *("name", "state", "experiment", "model", "space", "machine", "login", "centre", "account"),
)


def page(
    conn: Connection, p: Principal, f: SimulationFilter, cursor: str | None, limit: int
) -> SimulationPage:
    """Simulations that match, the last heard of for the first time first. Raises Invalid, NotFound."""
    names = _producers(conn, p)
    query = (
        sa.select(simulation)
        .where(simulation.c.project == p.project_n, *_conditions(f, names))
        .order_by(simulation.c.n.desc())
        .limit(limit + 1)
    )
    if cursor is not None:
        query = query.where(simulation.c.n < _place(cursor))
    rows = conn.execute(query).fetchall()
    then = str(rows[limit - 1].n) if len(rows) > limit else None
    return SimulationPage([SimulationView(**_shown(row, names)) for row in rows[:limit]], then)


def _place(cursor: str) -> int:
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) <= 18):
        raise Invalid("the cursor is not one that a page of simulations ended with", field="cursor")
    return int(cursor)


def _conditions(f: SimulationFilter, names: dict[int, str]) -> list[sa.ColumnElement[bool]]:
    c = simulation.c
    found = [c[name] == value for name in _EQUAL if (value := getattr(f, name)) is not None]
    if f.state is not None and f.state not in [str(s) for s in State]:
        raise Invalid(f"{f.state[:40]!r} is none of {', '.join(State)}", field="state")
    if not f.all:
        found.append(c.active == 1)
    if f.id is not None:
        found.append(c.uid == f.id)
    for column, prefix, field in (
        (c.uid, f.id_prefix, "id_prefix"),
        (c.name, f.name_prefix, "name_prefix"),
    ):
        if prefix is not None:
            end = after_all(prefix)
            if not prefix or end is None:
                raise Invalid("a beginning has at least one character", field=field)
            found += [column >= prefix, column < end]
    if f.producer is not None:
        known = [n for n, name in names.items() if name == f.producer]
        if not known:
            raise NotFound(f"there is no producer {f.producer[:60]!r}", field="producer")
        found.append(c.producer == known[0])
    if f.started_since is not None:
        found.append(c.started_at >= f.started_since)
    if f.started_until is not None:
        found.append(c.started_at < f.started_until)
    return found


def _producers(conn: Connection, p: Principal) -> dict[int, str]:
    rows = conn.execute(PRODUCERS, {"project": p.project_n})
    return {MAIN: MAIN_NAME} | {row.n: row.name for row in rows}


def find(conn: Connection, p: Principal, uid: str, producer: str | None = None) -> Any:
    """The row of a simulation. Raises NotFound, or Conflict when several producers tell of one."""
    names = _producers(conn, p)
    rows = conn.execute(ROW, {"project": p.project_n, "uid": uid}).fetchall()
    if producer is not None:
        rows = [row for row in rows if names.get(row.producer) == producer]
    if not rows:
        raise no_such("simulation", uid)
    if len(rows) > 1:
        told = ", ".join(names.get(row.producer, "?") for row in rows)
        raise Conflict(f"several producers tell of this simulation: {told}", field="producer")
    return rows[0]


def _shown(row: Any, names: dict[int, str]) -> dict[str, Any]:
    """The fields of a SimulationView."""
    same = ("name", "state", "changed_at", "messages", "started_at", "ended_at", "progress")
    return {name: getattr(row, name) for name in (*same, *_EQUAL)} | {
        "id": row.uid,
        "producer": names.get(row.producer, "?"),
        "active": bool(row.active),
        "purged": bool(row.purged),
        "try_number": row.try_no,
        "jobs": msgspec.json.decode(row.counts, type=dict[str, int]),
    }


def show(conn: Connection, p: Principal, uid: str, producer: str | None = None) -> SimulationDetail:
    """One simulation. Raises NotFound."""
    row = find(conn, p, uid, producer)
    fold = msgspec.json.decode(row.fold, type=Fold)
    folds = [msgspec.json.decode(j.fold, type=JobFold) for j in conn.execute(FOLDS, {"n": row.n})]
    latest = simulations.latest(folds)
    repeats = simulations.repeats(fold, folds)
    whose = {"project": row.project, "producer": row.producer, "identity": row.identity}
    took = msgspec.json.decode(row.took, type=dict[int, int])
    return SimulationDetail(
        **_shown(row, _producers(conn, p)),
        fields=fold.fields,
        types=fold.types,
        metrics={name: value.value for name, value in sorted(fold.metrics.items())},
        tries=[
            TryView(t.try_no, t.uid, t.state, bool(t.active), bool(t.purged), t.started_at)
            for t in conn.execute(SAME, whose)
        ],
        latest_job=None if latest is None else latest.id,
        calendar=None if fold.calendar is None else str(fold.calendar),
        reached=None if fold.period is None else str(fold.period.end),
        repeats=repeats,
        stuck=repeats > lateness.REPEATS_MAX,
        suspect=fold.suspect,
        slack_s=lateness.learned_slack_ns(took) / NS,
        has_card=fold.card_by is not None,
    )


def jobs(
    conn: Connection, p: Principal, uid: str, producer: str | None, first: str, limit: int
) -> SimulationJobs:
    """The jobs of a simulation, by id, from `first` on. Raises NotFound."""
    row = find(conn, p, uid, producer)
    params: dict[str, Any] = {"n": row.n, "first": first, "most": limit + 1}
    found = conn.execute(JOBS, params).fetchall()
    then = found[limit].id if len(found) > limit else None
    ids = [j.id for j in found[:limit] if is_uuid7(j.id)]
    linked: set[str] = set()
    if ids:
        params = {"ids": to_json(ids), "project": p.project_n}
        linked = {j.id for j in conn.execute(LINKED, params)}
    return SimulationJobs([_job(j, linked) for j in found[:limit]], then)


def _job(row: Any, linked: set[str]) -> SimulationJobView:
    fold = msgspec.json.decode(row.fold, type=JobFold)
    shown = lateness.job_view(fold, State(row.state))
    return SimulationJobView(
        id=row.id,
        kind=str(fold.kind or Scope.NONE),
        state=row.state,
        messages=fold.messages,
        commands=fold.commands,
        actions=fold.actions,
        started_at=_seconds(shown.began_ns),
        ended_at=_seconds(shown.ended_ns),
        deadline_at=_seconds(shown.deadline_ns),
        scheduler_id=fold.fields.get("jobSchedulerID", ""),
        reached=None if fold.period is None else str(fold.period.end),
        job=row.id if row.id in linked else None,
        fields=fold.fields,
    )


def _seconds(ns: int | None) -> float | None:
    return None if ns is None else ns / NS


def facts(
    conn: Connection,
    p: Principal,
    uid: str,
    producer: str | None,
    family: str,
    after: int,
    limit: int,
) -> FactPage:
    """What messages of one family (store.simulations.FAMILIES) told of a simulation. Raises NotFound."""
    row = find(conn, p, uid, producer)
    found = _facts(conn, p, row.n, family, after, limit + 1)
    then = found[limit - 1].n if len(found) > limit else None
    return FactPage(
        [
            FactView(m.n, m.uid, m.job or "", m.at_ns / NS, cloudevents.read(bytes(m.raw)).fields)
            for m in found[:limit]
        ],
        then,
    )


def _facts(
    conn: Connection, p: Principal, n: int, family: str, after: int, most: int
) -> Sequence[Any]:
    params = {"project": p.project_n, "n": n, "family": family, "after": after, "most": most}
    return conn.execute(FACTS, params).fetchall()


def card(conn: Connection, p: Principal, uid: str, producer: str | None = None) -> CardView:
    """The configuration card of a simulation. Raises NotFound when it sent none."""
    row = find(conn, p, uid, producer)
    found = [cloudevents.read(bytes(m.raw)) for m in _facts(conn, p, row.n, "card", 0, 100)]
    cards = [(simulations.stamp(m), str(m.fields["card"])) for m in found if "card" in m.fields]
    if not cards:
        raise NotFound(f"simulation {uid[:60]!r} sent no configuration card")
    return CardView(uid, max(cards)[1])
