"""The audit: one row for each administrative act, written in the transaction that does it.

Rows are numbered within their project, so that owners learn nothing of other projects from the numbers;
acts on the hub itself (users, projects) have a numbering of their own, that of project 0.
"""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import Connection

from chappe.core import limits
from chappe.core.access import Reach
from chappe.core.errors import Invalid
from chappe.store.dialect import sql
from chappe.store.principal import Principal
from chappe.store.tx import Tx, to_json
from chappe.wire.people import AuditEntry, AuditPage

HUB = 0

LAST = sql("SELECT COALESCE(max(no), 0) FROM audit WHERE project = :project")

INSERT = sql("""
    INSERT INTO audit (project, no, at, actor, token, address, action, subject, details)
    VALUES (:project, :no, :now, :actor, :token, :address, :action, :subject, :details)""")

_COLUMNS = """a.n, a.no, a.at, a.actor, a.token, a.address, a.action, a.subject, a.details,
    p.name AS project"""

OF_PROJECT = sql(f"""
    SELECT {_COLUMNS} FROM audit a JOIN project p ON p.n = a.project
    WHERE a.project = :project AND a.no < :before ORDER BY a.no DESC LIMIT :most""")

OF_HUB = sql(f"""
    SELECT {_COLUMNS} FROM audit a LEFT JOIN project p ON p.n = a.project
    WHERE a.n < :before ORDER BY a.n DESC LIMIT :most""")


def actor_of(p: Principal) -> str:
    """How an audit row names whoever holds a token."""
    return p.account or f"service token {p.token_prefix}"


def record(tx: Tx, p: Principal, project: int, action: str, subject: str, **details: Any) -> None:
    """Write down what the principal does to `subject`, in a project (row number) or HUB."""
    append(tx, project, actor_of(p), p.token_prefix, p.address, action, subject, details)


def append(
    tx: Tx,
    project: int,
    actor: str,
    token: str,
    address: str,
    action: str,
    subject: str,
    details: dict[str, Any],
) -> None:
    """The same, for who has no token yet."""
    ((last,),) = tx.read(LAST, project=project)
    tx.write(
        INSERT,
        project=project,
        no=last + 1,
        now=tx.now,
        actor=actor,
        token=token,
        address=address,
        action=action,
        subject=subject,
        details=to_json(details) if details else None,
    )


def page(conn: Connection, p: Principal, reach: Reach, limit: int, cursor: str | None) -> AuditPage:
    """Acts in the principal's project, or with the reach of the hub all there are; newest first."""
    if not 1 <= limit <= limits.PAGE_MAX:
        raise Invalid(f"limit must be 1 to {limits.PAGE_MAX}", field="limit")
    if cursor is not None and not (cursor.isdecimal() and cursor.isascii() and len(cursor) < 16):
        raise Invalid("the cursor is not one that a page of the audit ended with", field="cursor")
    before = 10**15 if cursor is None else int(cursor)
    whole = reach is Reach.HUB
    params = {"before": before, "most": limit} | ({} if whole else {"project": p.project_n})
    rows = conn.execute(OF_HUB if whole else OF_PROJECT, params).fetchall()
    end = None
    if len(rows) == limit:
        end = str(rows[-1].n if whole else rows[-1].no)
    return AuditPage([_entry(row) for row in rows], end)


def _entry(row: Any) -> AuditEntry:
    return AuditEntry(
        no=row.no,
        at=row.at,
        actor=row.actor,
        action=row.action,
        subject=row.subject,
        project=row.project or "",
        token_prefix=row.token,
        address=row.address,
        details={} if row.details is None else msgspec.json.decode(row.details),
    )
