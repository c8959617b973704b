"""Tokens, and the first start of a Hub."""

from __future__ import annotations

import os

from chappe.core.access import Party
from chappe.core.errors import Invalid
from chappe.core.ids import uuid7
from chappe.store.dialect import sql
from chappe.store.principal import Principal, make_token
from chappe.store.rows import no_such
from chappe.store.tx import Tx
from chappe.wire.sites import NewToken, TokenView

INSERT = sql("""
    INSERT INTO token (prefix, hash, scope, project, site, session, note, created_at, expires_at,
                       account, role)
    VALUES (:prefix, :hash, :scope, :project, :site, :session, :note, :now, :expires_at,
            :account, :role)""")

REVOKE = sql("""
    UPDATE token SET revoked_at = :now WHERE prefix = :prefix AND project = :project
    AND revoked_at IS NULL RETURNING prefix""")

KNOWN = sql("SELECT prefix FROM token WHERE prefix = :prefix AND project = :project")

INSERT_PROJECT = sql("""
    INSERT INTO project (id, name, next_seq, created_at) VALUES (:id, :name, 1, :now) RETURNING n""")

PROJECTS = sql("SELECT n FROM project")

INSERT_ACCOUNT = sql("""
    INSERT INTO account (name, admin, created_at) VALUES (:name, :admin, :now) RETURNING n""")

SET_MEMBER = sql("""
    INSERT INTO member (project, account, role, created_at) VALUES (:project, :account, :role, :now)
    ON CONFLICT (project, account) DO UPDATE SET role = excluded.role""")


def issue(
    tx: Tx,
    scope: str,
    project: int,
    *,
    site: int | None = None,
    session: int | None = None,
    account: int | None = None,
    role: str | None = None,
    note: str = "",
    expires_at: float | None = None,
) -> tuple[str, str]:
    """Make a token; (its text, shown this once; its prefix). `role` is that of a service token."""
    token, prefix, hashed = make_token(scope)
    tx.write(
        INSERT,
        prefix=prefix,
        hash=hashed,
        scope=scope,
        project=project,
        site=site,
        session=session,
        note=note,
        now=tx.now,
        expires_at=expires_at,
        account=account,
        role=role,
    )
    return token, prefix


def create_token(tx: Tx, p: Principal, new: NewToken) -> TokenView:
    """A further token of the same user."""
    if len(new.note) > 200:
        raise Invalid("a note is at most 200 characters", field="note")
    if new.expires_in_s is not None and not 0 < new.expires_in_s < 1e9:
        raise Invalid("expires_in_s must be above 0 (seconds)", field="expires_in_s")
    expires_at = None if new.expires_in_s is None else tx.now + new.expires_in_s
    token, prefix = issue(
        tx, "user", p.project_n, account=p.account_n, note=new.note, expires_at=expires_at
    )
    return TokenView(prefix, "user", tx.now, note=new.note, expires_at=expires_at, token=token)


def revoke_token(tx: Tx, p: Principal, prefix: str) -> None:
    """Revoke a token of the project, at once. Repeating it is harmless."""
    if not tx.read(KNOWN, prefix=prefix, project=p.project_n):
        raise no_such("token", prefix)
    tx.write(REVOKE, prefix=prefix, project=p.project_n, now=tx.now)
    tx.effects.revoked.add(prefix)


def bootstrap(tx: Tx) -> tuple[str, str] | None:
    """First start: make the project, its owner (an administrator named `admin`) and the owner's token;
    (project id, token), or None when done before."""
    if tx.read(PROJECTS):
        return None
    id = uuid7(int(tx.now * 1000), os.urandom(10))
    (row,) = tx.write(INSERT_PROJECT, id=id, name="default", now=tx.now)
    tx.catalog.next_seq[row.n] = 1
    (owner,) = tx.write(INSERT_ACCOUNT, name="admin", admin=1, now=tx.now)
    tx.write(SET_MEMBER, project=row.n, account=owner.n, role=Party.OWNER, now=tx.now)
    token, _ = issue(tx, "user", row.n, account=owner.n, note="owner")
    return id, token
