"""Producers: who sends messages under a name, and with a token, of its own.

What one producer says touches nothing of another's: its uids and its simulations are apart. A producer that
is removed has no tokens any more; its messages stay, and its name stays its own.
"""

from __future__ import annotations

import re

from sqlalchemy import Connection

from chappe.core import limits
from chappe.core.errors import Invalid, TooLarge
from chappe.store import audit
from chappe.store.dialect import sql
from chappe.store.journal import MAIN
from chappe.store.principal import Principal
from chappe.store.rows import no_such
from chappe.store.tokens import expiry, issue
from chappe.store.tx import Tx
from chappe.wire.messages import NewProducer, ProducerList, ProducerView

#: How the project itself is called among its producers.
MAIN_NAME = "main"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")

ADD = sql("""
    INSERT INTO producer (project, name, created_at) VALUES (:project, :name, :now)
    ON CONFLICT (project, name) DO UPDATE SET removed_at = NULL RETURNING n, created_at""")

COUNT = sql("SELECT count(*) FROM producer WHERE project = :project")

ONE = sql("""
    SELECT n FROM producer WHERE project = :project AND name = :name AND removed_at IS NULL""")

REMOVE = sql("UPDATE producer SET removed_at = :now WHERE n = :n")

REVOKE = sql("""
    UPDATE token SET revoked_at = :now
    WHERE project = :project AND producer = :n AND revoked_at IS NULL RETURNING prefix""")

LIST = sql("""
    SELECT p.name, p.created_at,
           (SELECT count(*) FROM token t WHERE t.project = p.project AND t.producer = p.n
            AND t.revoked_at IS NULL AND (t.expires_at IS NULL OR t.expires_at > :now)) AS tokens
    FROM producer p WHERE p.project = :project AND p.removed_at IS NULL
    ORDER BY p.name LIMIT :most""")


def add(tx: Tx, p: Principal, new: NewProducer) -> ProducerView:
    """Make a producer, and a token for it. For one that is there: a further token."""
    expires_at = expiry(tx, new.note, new.expires_in_s)
    if not _NAME.fullmatch(new.name) or new.name == MAIN_NAME:
        raise Invalid(
            "a producer's name is letters, digits, '-', '_' and '.', at most 64; "
            f"{MAIN_NAME} is the project itself",
            field="name",
        )
    if tx.read(COUNT, project=p.project_n)[0][0] >= limits.PRODUCERS:
        raise TooLarge(
            f"the project has {limits.PRODUCERS} producers, which is the limit", field="name"
        )
    (row,) = tx.write(ADD, project=p.project_n, name=new.name, now=tx.now)
    note = new.note or new.name
    token, prefix = issue(
        tx, "producer", p.project_n, producer=row.n, note=note, expires_at=expires_at
    )
    audit.record(tx, p, p.project_n, "producer.add", new.name, token=prefix)
    return ProducerView(new.name, row.created_at, tokens=1, token=token)


def remove(tx: Tx, p: Principal, name: str) -> None:
    """Remove a producer: its tokens end at once."""
    found = tx.read(ONE, project=p.project_n, name=name)
    if not found:
        raise no_such("producer", name)
    n = found[0].n
    tx.write(REMOVE, n=n, now=tx.now)
    revoked = tx.write(REVOKE, project=p.project_n, n=n, now=tx.now)
    tx.effects.revoked |= {row.prefix for row in revoked}
    audit.record(tx, p, p.project_n, "producer.remove", name)


def listed(conn: Connection, p: Principal, now: float) -> ProducerList:
    """The project's producers, by name."""
    params = {"project": p.project_n, "now": now, "most": limits.PRODUCERS}
    return ProducerList([ProducerView(**row._mapping) for row in conn.execute(LIST, params)])


def named(conn: Connection, project: int, name: str) -> int:
    """The row number of a producer by its name, MAIN for `main`. Raises NotFound."""
    if name == MAIN_NAME:
        return MAIN
    row = conn.execute(ONE, {"project": project, "name": name}).first()
    if row is None:
        raise no_such("producer", name)
    return int(row.n)
