"""Finding the rows of Jobs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from chappe.core.errors import NotFound
from chappe.store.dialect import sql
from chappe.store.jobrow import COLUMNS, JobRow, to_row
from chappe.store.principal import Principal
from chappe.store.tx import Tx, to_json

BY_N = sql(f"""
    SELECT {COLUMNS} FROM ints(:ns) v CROSS JOIN job ON job.n = v.value""")

BY_ID = sql(f"""
    SELECT {COLUMNS} FROM texts(:ids) v CROSS JOIN job ON job.project = :project AND job.id = v.value""")

SESSION = sql("""
    SELECT s.n, s.id, s.site, s.batch_job, s.incarnation, s.state, s.last_request, s.last_report,
           s.hard_end_at, b.cancel_at AS drain
    FROM session s JOIN batch_job b ON b.n = s.batch_job WHERE s.n = :n""")


def to_rows(tx: Tx, found: Iterable[Any]) -> list[JobRow]:
    """Rows of a SELECT of COLUMNS. A leased Job's row is the one in memory: there is only one of it."""
    leases = tx.catalog.leases
    return [to_row(r) if r.session is None else leases[r.session][r.id] for r in found]


def rows_by_n(tx: Tx, ns: Sequence[int]) -> list[JobRow]:
    """Jobs by row number, in that order."""
    return to_rows(tx, tx.read(BY_N, ns=to_json(ns))) if ns else []


def rows_by_id(tx: Tx, p: Principal, ids: Sequence[str]) -> dict[str, JobRow]:
    """The principal's Jobs by id; what does not exist is missing. Tombstones are included."""
    if not ids:
        return {}
    found = tx.read(BY_ID, project=p.project_n, ids=to_json(ids))
    return {row.id: row for row in to_rows(tx, found)}


def no_such(what: str, id: str) -> NotFound:
    """What is answered for ids that never existed and for those of others, alike."""
    return NotFound(f"there is no {what} {id[:60]!r}")
