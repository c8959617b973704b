"""Selections, and acts on them: as many Jobs as you like, never many in one transaction.

A selection is made of the row numbers that match at one moment, read in one snapshot and stored in chunks;
row numbers are never given twice, so nothing that comes later can get in. An act takes chunk after chunk,
each in a transaction of its own that also says how far the act has come. So a Hub that is killed goes on
where the last commit was, no Job is acted upon twice, and no act holds the writer for long.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection

from chappe.core import limits
from chappe.core.errors import Busy, Conflict, Invalid
from chappe.core.ids import check_id
from chappe.store import acts, edits
from chappe.store.dialect import sql
from chappe.store.jobrow import JobRow
from chappe.store.principal import Principal
from chappe.store.rows import no_such, rows_by_n
from chappe.store.tx import Insert, Tx, to_json
from chappe.wire.bulk import ActView, NewAct, NewSelection, SelectionView
from chappe.wire.jobs import EnvelopeChange, JobFilter

SELECTION = sql("""
    SELECT n, id, filter, count, created_at, expires_at FROM selection
    WHERE project = :project AND id = :id""")

SELECTIONS = sql("SELECT count(*) FROM selection WHERE project = :project")

INSERT_SELECTION = sql("""
    INSERT INTO selection (project, id, filter, count, created_at, expires_at)
    VALUES (:project, :id, :filter, :count, :now, :expires_at)
    RETURNING n, id, filter, count, created_at, expires_at""")

INSERT_CHUNKS = Insert("selection_chunk", "selection pos jobs")

_ACT = """act.n, act.project, act.id, act.selection, act.selection_id, act.verb, act.change, act.state,
    act.message, act.total, act.done, act.pos, act.counts, act.created_at, act.ended_at"""

ACT = sql(f"SELECT {_ACT} FROM act WHERE project = :project AND id = :id")
ACT_BY_N = sql(f"SELECT {_ACT} FROM act WHERE n = :n")

ACTS = sql(f"SELECT {_ACT} FROM act WHERE project = :project ORDER BY n DESC LIMIT :most")

OPEN_ACTS = sql("SELECT n FROM act WHERE ended_at IS NULL ORDER BY n")

WORKED_ON = sql("SELECT 1 FROM act WHERE selection = :n AND ended_at IS NULL")

OPEN_ACTS_OF = sql("""
    SELECT count(*) FROM act WHERE project = :project AND ended_at IS NULL""")

INSERT_ACT = sql(f"""
    INSERT INTO act (project, id, selection, selection_id, verb, change, state, total, done, pos,
                     counts, created_at)
    VALUES (:project, :id, :selection, :selection_id, :verb, :change, 'running', :total, 0, 0,
            '{{}}', :now) RETURNING {_ACT.replace("act.", "")}""")

CHUNK = sql("SELECT jobs FROM selection_chunk WHERE selection = :selection AND pos = :pos")

PROGRESS = sql("""
    UPDATE act SET done = :done, pos = :pos, counts = :counts WHERE n = :n""")

END = sql("""
    UPDATE act SET state = :state, message = :message, ended_at = :now
    WHERE n = :n AND ended_at IS NULL""")

#: Selections whose time is over, except those that an act still works on.
EXPIRED = sql("""
    DELETE FROM selection WHERE expires_at <= :now
    AND n NOT IN (SELECT selection FROM act WHERE ended_at IS NULL) RETURNING n""")

#: Selections that were acted upon, where no act goes on: they make room for others.
USED = sql("""
    DELETE FROM selection WHERE project = :project
    AND n IN (SELECT selection FROM act WHERE ended_at IS NOT NULL)
    AND n NOT IN (SELECT selection FROM act WHERE ended_at IS NULL) RETURNING n""")

DROP_SELECTION = sql("DELETE FROM selection WHERE n = :n")
DROP_CHUNKS = sql("""
    DELETE FROM selection_chunk WHERE selection IN (SELECT value FROM ints(:ns) v)""")
DROP_ACTS = sql("DELETE FROM act WHERE ended_at <= :limit")

_decode_filter = msgspec.json.Decoder(JobFilter).decode
_decode_counts = msgspec.json.Decoder(dict[str, int]).decode
_decode_change = msgspec.json.Decoder(EnvelopeChange).decode


# -- selections ------------------------------------------------------------------------------------


def store_selection(tx: Tx, p: Principal, new: NewSelection, jobs: Sequence[int]) -> SelectionView:
    """Keep what matched. Repeating it with the same id and filter shows the first one."""
    check_id(new.id, "id")
    found = tx.read(SELECTION, project=p.project_n, id=new.id)
    if found:
        view = _selection(found[0])
        if view.filter != new.filter:
            raise Conflict("a selection with another filter has this id", field="id")
        return view
    if tx.read(SELECTIONS, project=p.project_n)[0][0] >= limits.SELECTIONS_PER_PROJECT:
        forget_expired(tx)
        _drop_chunks(tx, tx.write(USED, project=p.project_n))
        if tx.read(SELECTIONS, project=p.project_n)[0][0] >= limits.SELECTIONS_PER_PROJECT:
            raise Busy(
                f"the project has {limits.SELECTIONS_PER_PROJECT} selections: delete one, or wait "
                f"until some expire ({limits.SELECTION_S / 3600:.0f} h after they were made)",
                code="too_many_selections",
            )
    (row,) = tx.write(
        INSERT_SELECTION,
        project=p.project_n,
        id=new.id,
        filter=to_json(new.filter),
        count=len(jobs),
        now=tx.now,
        expires_at=tx.now + limits.SELECTION_S,
    )
    size = limits.ACT_CHUNK
    chunks = [jobs[i : i + size] for i in range(0, len(jobs), size)]
    tx.insert(INSERT_CHUNKS, [(row.n, pos, to_json(some)) for pos, some in enumerate(chunks)])
    return _selection(row)


def find_selection(conn: Connection, p: Principal, id: str) -> SelectionView | None:
    """A selection, or None: an id that is not known yet may be used for a new one."""
    row = conn.execute(SELECTION, {"project": p.project_n, "id": id}).one_or_none()
    return None if row is None else _selection(row)


def get_selection(conn: Connection, p: Principal, id: str) -> SelectionView:
    """A selection that has not expired."""
    found = find_selection(conn, p, id)
    if found is None:
        raise no_such("selection", id)
    return found


def drop_selection(tx: Tx, p: Principal, id: str) -> None:
    """Forget a selection. Conflict while an act works on it."""
    row = _selection_row(tx, p, id)
    if tx.read(WORKED_ON, n=row.n):
        raise Conflict("an act works on this selection: stop the act first", code="in_use")
    tx.write(DROP_SELECTION, n=row.n)
    tx.write(DROP_CHUNKS, ns=to_json([row.n]))


def forget_expired(tx: Tx) -> None:
    """Forget selections past their time, and acts that ended long ago."""
    _drop_chunks(tx, tx.write(EXPIRED, now=tx.now))
    tx.write(DROP_ACTS, limit=tx.now - limits.ACT_KEPT_S)


def _drop_chunks(tx: Tx, gone: Sequence[Any]) -> None:
    if gone:
        tx.write(DROP_CHUNKS, ns=to_json([row.n for row in gone]))


def _selection_row(tx: Tx, p: Principal, id: str) -> Any:
    found = tx.read(SELECTION, project=p.project_n, id=id)
    if not found:
        raise no_such("selection", id)
    return found[0]


def _selection(row: Any) -> SelectionView:
    return SelectionView(
        row.id, _decode_filter(row.filter), row.count, row.created_at, row.expires_at
    )


# -- acts ------------------------------------------------------------------------------------------


def begin_act(tx: Tx, p: Principal, new: NewAct) -> ActView:
    """Record that an act is to be done; `step` does it. Repeating it shows how far it has come."""
    check_id(new.id, "id")
    change = None
    if new.verb == "update":
        change = to_json(edits.check_change(new.change))
    elif new.change is not None:
        raise Invalid("only an update brings a change", field="change")
    found = tx.read(ACT, project=p.project_n, id=new.id)
    if found:
        row = found[0]
        if (row.selection_id, row.verb, row.change) != (new.selection, new.verb, change):
            raise Conflict("a different act has this id", field="id")
        return _act(row)
    selection = _selection_row(tx, p, new.selection)
    if tx.read(OPEN_ACTS_OF, project=p.project_n)[0][0] >= limits.ACTS_PER_PROJECT:
        raise Busy(f"{limits.ACTS_PER_PROJECT} acts are in progress; wait for one of them")
    (row,) = tx.write(
        INSERT_ACT,
        project=p.project_n,
        id=new.id,
        selection=selection.n,
        selection_id=selection.id,
        verb=new.verb,
        change=change,
        total=selection.count,
        now=tx.now,
    )
    tx.effects.acts.add(row.n)
    return _act(row)


def open_acts(conn: Connection) -> list[int]:
    """Row numbers of the acts that are not done, oldest first."""
    return [row[0] for row in conn.execute(OPEN_ACTS)]


def step(tx: Tx, n: int) -> None:
    """Do the next chunk of an act, or end it when there is none."""
    act = _open_act(tx, n)
    if act is None:
        return
    tx.effects.acts.add(n)
    found = tx.read(CHUNK, selection=act.selection, pos=act.pos)
    if not found:
        tx.write(END, n=n, state="done", message="", now=tx.now)
        return
    jobs = msgspec.json.decode(found[0].jobs, type=list[int])
    rows = [row for row in rows_by_n(tx, jobs) if not row.deleted]
    counts = _decode_counts(act.counts)
    for code in _decide(tx, act, rows).values() if rows else ():
        counts[code] = counts.get(code, 0) + 1
    if len(rows) < len(jobs):
        counts["gone"] = counts.get("gone", 0) + len(jobs) - len(rows)
    done = act.done + len(jobs)
    tx.write(PROGRESS, n=n, done=done, pos=act.pos + 1, counts=to_json(counts))
    if done == act.total:
        tx.write(END, n=n, state="done", message="", now=tx.now)


def _decide(tx: Tx, act: Any, rows: list[JobRow]) -> dict[int, str]:
    match act.verb:
        case "cancel":
            return acts.cancel_rows(tx, rows)
        case "retry":
            return acts.retry_rows(tx, rows)
        case "delete":
            return acts.delete_rows(tx, rows)
        case "hold":
            return edits.hold_rows(tx, rows)
        case "release":
            return edits.release_rows(tx, rows)
        case _:
            return edits.update_rows(tx, rows, _decode_change(act.change))


def fail(tx: Tx, n: int, message: str) -> None:
    """End an act that cannot go on."""
    tx.write(END, n=n, state="failed", message=message, now=tx.now)
    tx.effects.acts.add(n)


def stop_act(tx: Tx, p: Principal, id: str) -> ActView:
    """Go no further with an act. What it has done stays done. Harmless when it has ended."""
    found = tx.read(ACT, project=p.project_n, id=id)
    if not found:
        raise no_such("act", id)
    tx.write(END, n=found[0].n, state="stopped", message="", now=tx.now)
    tx.effects.acts.add(found[0].n)
    return _act(tx.read(ACT_BY_N, n=found[0].n)[0])


def get_act(conn: Connection, p: Principal, id: str) -> tuple[int, ActView]:
    """An act's row number, which its hints name, and how far it has come."""
    row = conn.execute(ACT, {"project": p.project_n, "id": id}).one_or_none()
    if row is None:
        raise no_such("act", id)
    return row.n, _act(row)


def list_acts(conn: Connection, p: Principal) -> list[ActView]:
    """Acts, newest first."""
    found = conn.execute(ACTS, {"project": p.project_n, "most": limits.PAGE_DEFAULT})
    return [_act(row) for row in found]


def _open_act(tx: Tx, n: int) -> Any:
    found = tx.read(ACT_BY_N, n=n)
    return found[0] if found and found[0].ended_at is None else None


def _act(row: Any) -> ActView:
    return ActView(
        row.id,
        row.selection_id,
        row.verb,
        row.state,
        row.total,
        row.done,
        _decode_counts(row.counts),
        row.created_at,
        row.ended_at,
        row.message,
    )
