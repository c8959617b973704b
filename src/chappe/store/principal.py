"""Tokens and who they stand for.

A token is `chp_<u|s|p|m>_<prefix>_<secret>`: 12 characters to find it by, 256 random bits, of which only the
sha256 is stored. (A secret of that size needs no slow hash.)
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row

from chappe.core.access import Party
from chappe.core.errors import SessionDead
from chappe.store.dialect import sql

_FORM = re.compile(r"chp_[uspm]_([A-Za-z0-9]{12})_[A-Za-z0-9_-]{43}")
_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"
_LETTER = {"user": "u", "site": "s", "session": "p", "producer": "m"}
_PARTIES = {
    "site": frozenset({Party.SITE}),
    "session": frozenset({Party.SESSION}),
    "producer": frozenset({Party.PRODUCER}),
}

FIND = sql("""
    SELECT t.prefix, t.hash, t.scope, t.project, p.id AS project_id, p.name AS project_name,
           t.site, s.id AS site_id, s.name AS site_name, t.session, se.id AS session_id,
           se.state AS session_state, t.expires_at, t.revoked_at, t.account,
           a.name AS account_name, a.admin, a.disabled_at,
           COALESCE(t.role, m.role) AS role, t.producer, pr.name AS producer_name,
           pr.removed_at AS producer_removed_at
    FROM token t JOIN project p ON p.n = t.project LEFT JOIN producer pr ON pr.n = t.producer
         LEFT JOIN site s ON s.n = t.site LEFT JOIN session se ON se.n = t.session
         LEFT JOIN account a ON a.n = t.account
         LEFT JOIN member m ON m.project = t.project AND m.account = t.account
    WHERE t.prefix = :prefix""")


@dataclass(slots=True, frozen=True)
class Principal:
    """Whoever holds a token: a user of a project, a Site's agent, the pilot of one Session, or a producer of
    messages.

    A user's token (`scope` user) acts for an account with its role in the project, or is a service token
    with a role of its own and no account. `address` is where a request came from, known only where an audit
    row is to name it.
    """

    scope: str
    project_n: int
    project_id: str
    project_name: str
    token_prefix: str
    site_n: int | None = None
    site_id: str | None = None
    session_n: int | None = None
    session_id: str | None = None
    expires_at: float | None = None
    account_n: int | None = None
    account: str | None = None
    role: str | None = None
    is_admin: bool = False
    address: str = ""
    site_name: str | None = None
    producer_n: int | None = None
    producer: str | None = None

    @property
    def name(self) -> str:
        """How what it sends is told from what others send."""
        if self.producer is not None:
            return f"producer {self.producer}"
        if self.site_name is not None:
            return f"site {self.site_name}"
        return (
            f"service token {self.token_prefix}" if self.account is None else f"user {self.account}"
        )

    @property
    def parties(self) -> frozenset[Party]:
        """What it is in the table of rules."""
        if self.scope != "user":
            return _PARTIES[self.scope]
        found = set() if self.role is None else {Party(self.role)}
        if self.account_n is not None:
            found.add(Party.PERSON)
        if self.is_admin:
            found.add(Party.ADMINISTRATOR)
        return frozenset(found)


def make_token(scope: str) -> tuple[str, str, str]:
    """A new token as (text, prefix, hash)."""
    prefix = "".join(secrets.choice(_ALPHABET) for _ in range(12))
    token = f"chp_{_LETTER[scope]}_{prefix}_{secrets.token_urlsafe(32)}"
    return token, prefix, hash_token(token)


def hash_token(token: str) -> str:
    """What is stored of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def find(conn: Connection, token: str) -> Principal | None:
    """Whom `token` stands for; None when it is unknown, wrong or revoked, or its user is disabled or not (any
    longer) a member of its project. Expiry is the caller's to check.

    Raises SessionDead for a pilot whose Session was proven dead: its token was revoked with it, and yet
    it must be told to kill what it holds, whichever way it asks.
    """
    form = _FORM.fullmatch(token)
    if form is None:
        return None
    row = conn.execute(FIND, {"prefix": form.group(1)}).one_or_none()
    if row is None or not hmac.compare_digest(row.hash, hash_token(token)):
        return None
    if row.session_state == "dead":
        raise SessionDead("this session was proven dead; what it held is no longer its own")
    return _principal(row)


def holder(conn: Connection, prefix: str) -> tuple[str, Principal] | None:
    """What is stored of the token with this prefix, and whom it stands for, as `find` says it: for who has
    seen something that only the token's holder can make, and not the token."""
    row = conn.execute(FIND, {"prefix": prefix}).one_or_none()
    if row is None or row.session_state == "dead":
        return None
    found = _principal(row)
    return None if found is None else (row.hash, found)


def _principal(row: Row[Any]) -> Principal | None:
    if row.revoked_at or row.disabled_at or row.producer_removed_at:
        return None
    if row.scope == "user" and row.role is None and not row.admin:
        return None
    return Principal(
        scope=row.scope,
        project_n=row.project,
        project_id=row.project_id,
        project_name=row.project_name,
        token_prefix=row.prefix,
        site_n=row.site,
        site_id=row.site_id,
        session_n=row.session,
        session_id=row.session_id,
        expires_at=row.expires_at,
        account_n=row.account,
        account=row.account_name,
        role=row.role,
        is_admin=bool(row.admin),
        site_name=row.site_name,
        producer_n=row.producer,
        producer=row.producer_name,
    )
