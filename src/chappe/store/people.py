"""The hub's users: made, invited and disabled by administrators; each sets their own password.

Disabling a user revokes their tokens for good: whoever is enabled again logs in anew. An invitation is
kept as a hash, like a token, and using it or making another ends it.
"""

from __future__ import annotations

import re
import secrets
from typing import Any

from sqlalchemy import Connection

from chappe.core import limits
from chappe.core.errors import Conflict, Invalid, TooLarge
from chappe.store import audit
from chappe.store.dialect import sql
from chappe.store.logins import ACCOUNT, hash_code
from chappe.store.principal import Principal
from chappe.store.rows import no_such
from chappe.store.tokens import INSERT_ACCOUNT
from chappe.store.tx import Tx
from chappe.wire.people import Invitation, NewInvitation, NewUser, UserList, UserView

INVITATION_S = 3 * 86_400.0
INVITATION_MAX_S = 30 * 86_400.0

_NAME = re.compile(r"[a-z0-9][a-z0-9_.@-]{0,63}")

COUNT = sql("SELECT count(*) FROM account")

ADMINS = sql("SELECT count(*) FROM account WHERE admin = 1 AND disabled_at IS NULL AND n <> :n")

DISABLE = sql("""
    UPDATE account SET disabled_at = :now, invite = NULL, invite_until = NULL WHERE n = :n""")

ENABLE = sql("UPDATE account SET disabled_at = NULL WHERE n = :n")

REVOKE = sql("""
    UPDATE token SET revoked_at = :now WHERE account = :n AND revoked_at IS NULL RETURNING prefix""")

INVITE = sql("UPDATE account SET invite = :hash, invite_until = :until WHERE n = :n")

USERS = sql("""
    SELECT n, name, created_at, admin, password IS NOT NULL AS has_password, invite_until, disabled_at
    FROM account ORDER BY name LIMIT :most""")

ROLES = sql("SELECT m.account, p.name, m.role FROM member m JOIN project p ON p.n = m.project")


def add(tx: Tx, p: Principal, new: NewUser) -> Invitation:
    """Make a user, with an invitation to set the password."""
    if not _NAME.fullmatch(new.name):
        raise Invalid(
            "a user's name is lower-case letters, digits, '-', '_', '.' and '@', at most 64",
            field="name",
        )
    until = _until(tx, new.expires_in_s)
    if tx.read(ACCOUNT, name=new.name):
        raise Conflict(f"there is a user named {new.name}; choose another name", field="name")
    if tx.read(COUNT)[0][0] >= limits.ACCOUNTS:
        raise TooLarge(f"a hub has at most {limits.ACCOUNTS} users", field="name")
    (row,) = tx.write(INSERT_ACCOUNT, name=new.name, admin=int(new.administrator), now=tx.now)
    audit.record(tx, p, audit.HUB, "user.add", new.name, administrator=new.administrator)
    return _invite(tx, row.n, new.name, until)


def invite(tx: Tx, p: Principal, name: str, new: NewInvitation) -> Invitation:
    """Make a user a new invitation; an earlier one is void. It sets the password, also where one is set."""
    row = _account(tx, name)
    until = _until(tx, new.expires_in_s)
    if row.disabled_at is not None:
        raise Conflict(f"{name} is disabled: enable them first", code="disabled")
    audit.record(tx, p, audit.HUB, "user.invite", name)
    return _invite(tx, row.n, name, until)


def disable(tx: Tx, p: Principal, name: str) -> None:
    """Let a user in no more: their tokens are revoked, at once. Repeating it is harmless."""
    row = _account(tx, name)
    if row.disabled_at is not None:
        return
    if row.admin and not tx.read(ADMINS, n=row.n)[0][0]:
        raise Conflict(
            f"{name} is the last administrator: make another first", code="last_administrator"
        )
    tx.write(DISABLE, n=row.n, now=tx.now)
    tx.effects.revoked |= {prefix for (prefix,) in tx.write(REVOKE, n=row.n, now=tx.now)}
    audit.record(tx, p, audit.HUB, "user.disable", name)


def enable(tx: Tx, p: Principal, name: str) -> None:
    """Let a disabled user log in again. Repeating it is harmless."""
    row = _account(tx, name)
    if row.disabled_at is not None:
        tx.write(ENABLE, n=row.n)
        audit.record(tx, p, audit.HUB, "user.enable", name)


def users(conn: Connection) -> UserList:
    """All users, by name, with their roles."""
    roles: dict[int, dict[str, str]] = {}
    for account, project, role in conn.execute(ROLES):
        roles.setdefault(account, {})[project] = role
    return UserList(
        [
            UserView(
                name=row.name,
                created_at=row.created_at,
                administrator=bool(row.admin),
                has_password=bool(row.has_password),
                invited_until=row.invite_until,
                disabled_at=row.disabled_at,
                projects=roles.get(row.n, {}),
            )
            for row in conn.execute(USERS, {"most": limits.ACCOUNTS})
        ]
    )


def _account(tx: Tx, name: str) -> Any:
    found = tx.read(ACCOUNT, name=name)
    if not found:
        raise no_such("user", name)
    return found[0]


def _until(tx: Tx, expires_in_s: float | None) -> float:
    wanted = INVITATION_S if expires_in_s is None else expires_in_s
    if not 0 < wanted <= INVITATION_MAX_S:
        raise Invalid(
            "an invitation lives for above 0 s, at most 30 days (seconds)", field="expires_in_s"
        )
    return tx.now + wanted


def _invite(tx: Tx, n: int, name: str, until: float) -> Invitation:
    code = f"chp_i_{secrets.token_urlsafe(32)}"
    tx.write(INVITE, n=n, hash=hash_code(code), until=until)
    return Invitation(name, code, until)
