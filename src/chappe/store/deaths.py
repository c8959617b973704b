"""Proof of death: what happens to the Jobs of a Session that is known to be over."""

from __future__ import annotations

from chappe.core import leases
from chappe.core.leases import Reason
from chappe.store.changes import Change, apply
from chappe.store.dialect import sql
from chappe.store.tx import Tx, to_json

BURY_SESSION = sql(
    "UPDATE session SET state = 'dead' WHERE n = :n AND state <> 'dead' RETURNING id, project, site"
)

REVOKE = sql("""
    UPDATE token SET revoked_at = :now WHERE session = :session AND revoked_at IS NULL
    RETURNING prefix""")


def session_dead(tx: Tx, session_n: int, reason: Reason, message: str) -> None:
    """The Session is over for certain: its Jobs are free to be granted again, or have failed."""
    buried = tx.write(BURY_SESSION, n=session_n, now=tx.now)
    if not buried:
        return
    id, project, site = buried[0]
    rows = list(tx.catalog.leases[session_n].values())
    apply(tx, [Change(row, leases.death(row.held(), reason, tx.now, message)) for row in rows])
    del tx.catalog.leases[session_n]
    for (prefix,) in tx.write(REVOKE, session=session_n, now=tx.now):
        tx.effects.revoked.add(prefix)
    tx.effects.kill.add(id)
    tx.heard(site, session_n)
    data = {"id": id, "state": "dead", "message": message, "lost": len(rows)}
    tx.event(project, "session", data=to_json(data))
