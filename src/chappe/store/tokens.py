"""Tokens, and the first start of a Hub."""

from __future__ import annotations

import os
from typing import Any

from sqlalchemy import Connection

from chappe.core import limits
from chappe.core.access import Party, Reach
from chappe.core.errors import Conflict, Invalid, TooLarge
from chappe.core.ids import uuid7
from chappe.store import audit
from chappe.store.dialect import sql
from chappe.store.principal import Principal, make_token
from chappe.store.rows import no_such
from chappe.store.tx import Tx
from chappe.wire.people import NewServiceToken
from chappe.wire.sites import NewToken, TokenList, TokenView

INSERT = sql("""
    INSERT INTO token (prefix, hash, scope, project, site, session, note, created_at, expires_at,
                       account, role, producer)
    VALUES (:prefix, :hash, :scope, :project, :site, :session, :note, :now, :expires_at,
            :account, :role, :producer)""")

REVOKE = sql("""
    UPDATE token SET revoked_at = :now WHERE prefix = :prefix AND project = :project
    AND revoked_at IS NULL RETURNING prefix""")

KNOWN = sql("""
    SELECT t.account, t.note, a.password FROM token t LEFT JOIN account a ON a.n = t.account
    WHERE t.prefix = :prefix AND t.project = :project""")

_VIEW = """
    SELECT t.prefix, t.scope, t.created_at, t.note, site.id AS site, s.id AS session, t.expires_at,
           t.revoked_at, a.name AS "user", COALESCE(t.role, m.role) AS role,
           (SELECT name FROM producer WHERE producer.n = t.producer) AS producer
    FROM token t LEFT JOIN site ON site.n = t.site LEFT JOIN session s ON s.n = t.session
         LEFT JOIN account a ON a.n = t.account
         LEFT JOIN member m ON m.project = t.project AND m.account = t.account
    WHERE t.project = :project"""

TOKENS = sql(f"{_VIEW} ORDER BY t.created_at DESC LIMIT :most")

OWN_TOKENS = sql(f"""{_VIEW} AND (t.account = :account OR t.prefix = :prefix)
    ORDER BY t.created_at DESC LIMIT :most""")

_VALID = """
    SELECT count(*) FROM token WHERE project = :project AND scope = 'user' AND revoked_at IS NULL
    AND (expires_at IS NULL OR expires_at > :now)"""

TOKENS_VALID = sql(f"{_VALID} AND account = :account")
SERVICE_TOKENS_VALID = sql(f"{_VALID} AND account IS NULL")

ENDED = sql("""
    DELETE FROM token WHERE prefix IN (
        SELECT prefix FROM token WHERE revoked_at < :limit OR expires_at < :limit LIMIT 1000)
    RETURNING prefix""")

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
    producer: int | None = None,
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
        producer=producer,
    )
    return token, prefix


def create_token(tx: Tx, p: Principal, new: NewToken) -> TokenView:
    """A further token of the same user. It does not outlive the one that makes it."""
    expires_at = expiry(tx, new.note, new.expires_in_s)
    check_room(tx, p.project_n, p.account_n)
    if p.expires_at is not None:
        expires_at = min(expires_at or p.expires_at, p.expires_at)
    token, prefix = issue(
        tx, "user", p.project_n, account=p.account_n, note=new.note, expires_at=expires_at
    )
    audit.record(tx, p, p.project_n, "token.create", prefix, note=new.note)
    return TokenView(
        prefix,
        "user",
        tx.now,
        note=new.note,
        expires_at=expires_at,
        token=token,
        user=p.account,
        role=p.role,
    )


def create_service_token(tx: Tx, p: Principal, new: NewServiceToken) -> TokenView:
    """A token of the project itself, with a role, for a program."""
    expires_at = expiry(tx, new.note, new.expires_in_s)
    check_room(tx, p.project_n, None)
    token, prefix = issue(
        tx, "user", p.project_n, role=new.role, note=new.note, expires_at=expires_at
    )
    audit.record(tx, p, p.project_n, "token.create", prefix, note=new.note, role=new.role)
    return TokenView(
        prefix, "user", tx.now, note=new.note, expires_at=expires_at, token=token, role=new.role
    )


def revoke_token(tx: Tx, p: Principal, reach: Reach, prefix: str) -> None:
    """Revoke a token of the project, or with the reach of one's own only one's own; at once.

    Repeating it is harmless. Raises Conflict for the token that asks, while its user could not log in again.
    """
    found = tx.read(KNOWN, prefix=prefix, project=p.project_n)
    if not found or (reach is Reach.OWN and not _is_own(p, prefix, found[0].account)):
        raise no_such("token", prefix)
    if prefix == p.token_prefix and p.account_n is not None and not found[0].password:
        raise Conflict(
            "nobody could log in for you again: set a password first (chappe password)",
            code="no_password",
        )
    if tx.write(REVOKE, prefix=prefix, project=p.project_n, now=tx.now):
        tx.effects.revoked.add(prefix)
        audit.record(tx, p, p.project_n, "token.revoke", prefix, note=found[0].note)


def check_room(tx: Tx, project: int, account: int | None) -> None:
    """Raise TooLarge when a user, or the project itself (None), has as many valid tokens as there may be."""
    whose = {"project": project, "now": tx.now}
    if account is None:
        valid = tx.read(SERVICE_TOKENS_VALID, **whose)[0][0]
    else:
        valid = tx.read(TOKENS_VALID, account=account, **whose)[0][0]
    if valid >= limits.TOKENS:
        raise TooLarge(
            f"there are {valid} valid tokens, which is the limit: revoke some (chappe token ls)",
            field="token",
        )


def _is_own(p: Principal, prefix: str, account: int | None) -> bool:
    return prefix == p.token_prefix or (account is not None and account == p.account_n)


def expiry(tx: Tx, note: str, expires_in_s: float | None) -> float | None:
    """When a token ends that is to live so long (seconds); None: never. Raises Invalid, also for the note."""
    if len(note) > 200:
        raise Invalid("a note is at most 200 characters", field="note")
    if expires_in_s is not None and not 0 < expires_in_s < 1e9:
        raise Invalid("expires_in_s must be above 0 (seconds)", field="expires_in_s")
    return None if expires_in_s is None else tx.now + expires_in_s


def tokens(conn: Connection, p: Principal, reach: Reach) -> TokenList:
    """The project's tokens, newest first, without secrets; with the reach of one's own only one's own."""
    params: dict[str, Any] = {"project": p.project_n, "most": limits.PAGE_MAX}
    if reach is Reach.OWN:
        params |= {"account": p.account_n, "prefix": p.token_prefix}
    rows = conn.execute(OWN_TOKENS if reach is Reach.OWN else TOKENS, params)
    return TokenList([TokenView(**row._mapping) for row in rows])


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


def purge(tx: Tx) -> int:
    """Forget tokens that ended long ago, revoked or expired, a thousand at a time; how many were forgotten.

    The audit names them all the same. A pilot whose token is forgotten is no longer told that its Session is
    dead, only that its token is unknown; no allocation lives so long.
    """
    return len(tx.write(ENDED, limit=tx.now - limits.TOKEN_KEPT_S))
