"""Reading the EventLog by cursor, with filters."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec
from sqlalchemy import Connection

from chappe.core import limits
from chappe.core.errors import Gone
from chappe.core.states import FINAL, PHASE, State
from chappe.store.dialect import sql
from chappe.store.principal import Principal
from chappe.store.tx import to_json
from chappe.wire.events import Event

_COLUMNS = """e.seq, e.kind, job.id, e.received_at, e.occurred_at, e.old, e.new, e.attempt, e.epoch,
    e.data, e.job"""

_PHASES = {str(state): PHASE[state].value for state in State}
_FINAL = ", ".join(f"'{state}'" for state in sorted(FINAL))

PAGE = sql(f"""
    SELECT {_COLUMNS} FROM event e LEFT JOIN job ON job.n = e.job
    WHERE e.project = :project AND e.seq > :after AND e.seq <= :head
    ORDER BY e.seq LIMIT :most""")

FIRST = sql("SELECT min(seq) FROM event WHERE project = :project")

#: Most who listen wait for ends, which are one Event in four: the others are not even read.
ENDS = sql(f"""
    SELECT {_COLUMNS} FROM event e LEFT JOIN job ON job.n = e.job
    WHERE e.project = :project AND e.seq > :after AND e.seq <= :head
      AND e.kind = 'job' AND e.new IN ({_FINAL})
    ORDER BY e.seq LIMIT :most""")

OF_JOBS = sql(f"""
    SELECT {_COLUMNS} FROM event e JOIN job ON job.n = e.job
    WHERE e.project = :project AND e.seq > :after AND e.seq <= :head
      AND e.job IN (SELECT j.n FROM job j WHERE j.project = :project
                    AND j.id IN (SELECT value FROM texts(:jobs) v))
    ORDER BY e.seq LIMIT :most""")

TAGGED = sql("""
    SELECT job FROM tag WHERE project = :project AND k = :k AND v = :v
    AND job IN (SELECT value FROM ints(:jobs) v)""")

_ENDS = frozenset(str(state) for state in FINAL)
#: At most so many Events are looked at for one page, however few of them pass.
SCAN = 20_000


@dataclass(slots=True, frozen=True)
class EventFilter:
    """Which Events: of these kinds, of these Jobs, only ends (`final`), of Jobs with all these tags."""

    kinds: frozenset[str] = frozenset()
    jobs: tuple[str, ...] = ()
    final: bool = False
    tags: tuple[tuple[str, str], ...] = field(default=())


def begin(conn: Connection, p: Principal, after: int | None, head: int) -> int:
    """Where to read on after a cursor; None: before the first Event that is there.

    Raises Gone `cursor_too_old` when Events after the cursor were cut: there would be a gap.
    """
    first = conn.execute(FIRST, {"project": p.project_n}).scalar() or head + 1
    if after is None:
        return first - 1
    if after < first - 1:
        raise Gone(
            f"the events after this cursor are not kept any more; the first that is there is {first}",
            code="cursor_too_old",
            field="cursor",
            details={"first_seq": first},
        )
    return after


def page(
    conn: Connection, p: Principal, after: int | None, head: int, most: int, f: EventFilter
) -> tuple[list[Event], int]:
    """Up to `most` Events with after < seq ≤ head that pass the filter, and the last seq looked at. `after`
    None: from the first that is there. Raises Gone `cursor_too_old`."""
    most = min(most, limits.EVENTS_PER_PAGE)
    after = begin(conn, p, after, head)
    params: dict[str, Any]
    statement, params = PAGE, {"project": p.project_n, "after": after, "head": head, "most": most}
    if f.jobs:
        statement, params = OF_JOBS, {**params, "jobs": to_json(f.jobs)}
    elif f.final:
        head = params["head"] = min(head, after + SCAN)
        statement = ENDS
    rows = conn.execute(statement, params).fetchall()
    scanned = rows[-1][0] if len(rows) == most else max(head, after)
    kept = [row for row in rows if _passes(row, f)]
    for k, v in f.tags:
        numbers = to_json([row.job for row in kept if row.job is not None])
        tagged = conn.execute(TAGGED, {"project": p.project_n, "k": k, "v": v, "jobs": numbers})
        among = {row[0] for row in tagged}
        kept = [row for row in kept if row.job in among]
    return [_event(row) for row in kept], scanned


def after(conn: Connection, project: int, seq: int, head: int, most: int) -> list[Event]:
    """Up to `most` Events of a project (row number) with seq < theirs ≤ head, of all kinds."""
    params = {"project": project, "after": seq, "head": head, "most": most}
    return [_event(row) for row in conn.execute(PAGE, params)]


def _passes(row: Any, f: EventFilter) -> bool:
    if f.kinds and row[1] not in f.kinds:
        return False
    return not f.final or (row[1] == "job" and row[6] in _ENDS)


def _event(row: Any) -> Event:
    seq, kind, job, received_at, occurred_at, old, new, attempt, epoch, data, _ = row
    decoded = {} if data is None else msgspec.json.decode(data)
    subject = job if job is not None else str(decoded.get("id", ""))
    phase = _PHASES.get(new) if new is not None and kind == "job" else None
    return Event(
        seq, kind, subject, received_at, occurred_at, old, new, phase, attempt, epoch, decoded
    )
