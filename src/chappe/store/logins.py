"""From a password, or an invitation, to a token: what a log-in reads and writes.

Passwords are compared elsewhere (`hub.passwords`), outside of any transaction, because that takes long on
purpose. Here a user is read before and looked at again after.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any, NamedTuple

from sqlalchemy import Connection

from chappe.core.errors import Conflict, Forbidden, Unauthenticated
from chappe.store import audit, tokens
from chappe.store.dialect import sql
from chappe.store.principal import Principal
from chappe.store.rows import no_such
from chappe.store.tx import Tx
from chappe.wire.people import Join, Login, LoginReply

LOGIN_S = 90 * 86_400.0

_CODE = re.compile(r"chp_i_[A-Za-z0-9_-]{43}")

ACCOUNT = sql("SELECT n, name, password, admin, disabled_at FROM account WHERE name = :name")

INVITED = sql("""
    SELECT n, name, password FROM account
    WHERE invite = :hash AND invite_until > :now AND disabled_at IS NULL""")

SET_PASSWORD = sql("""
    UPDATE account SET password = :password, invite = NULL, invite_until = NULL WHERE n = :n""")

ENTERED = sql("""
    SELECT p.n, p.id, p.name, m.role FROM project p
    LEFT JOIN member m ON m.project = p.n AND m.account = :account ORDER BY p.n""")


class Account(NamedTuple):
    """What a log-in needs to know of a user. `password` is the hash, None where none is set."""

    n: int
    name: str
    password: str | None


def account(conn: Connection, name: str) -> Account | None:
    """The user who may log in under this name, if there is one."""
    row = conn.execute(ACCOUNT, {"name": name}).one_or_none()
    if row is None or row.disabled_at is not None:
        return None
    return Account(row.n, row.name, row.password)


def invited(conn: Connection, code: str, now: float) -> Account:
    """Whom an invitation is for. Raises Unauthenticated, for all that is wrong with one alike."""
    row = None
    if _CODE.fullmatch(code):
        row = conn.execute(INVITED, {"hash": hash_code(code), "now": now}).one_or_none()
    if row is None:
        raise Unauthenticated(
            "the invitation is unknown, was used, or has expired: ask for a new one",
            code="bad_invitation",
        )
    return Account(row.n, row.name, row.password)


def join(tx: Tx, wish: Join, password: str, address: str) -> LoginReply:
    """Use an invitation up: set the password (given as its hash), and log in. If that is refused, the
    invitation stays as it was."""
    found = invited(tx.conn, wish.code, tx.now)
    tx.write(SET_PASSWORD, n=found.n, password=password)
    audit.append(tx, audit.HUB, found.name, "", address, "user.join", found.name, {})
    return login(tx, found._replace(password=password), wish, address)


def set_password(tx: Tx, p: Principal, password: str) -> None:
    """Give the principal's user another password (its hash). An open invitation is void."""
    tx.write(SET_PASSWORD, n=p.account_n, password=password)
    audit.record(tx, p, audit.HUB, "user.password", p.account or "")


def login(tx: Tx, account: Account, wish: Login | Join, address: str) -> LoginReply:
    """A token for a user whose password was found right. Raises NotFound for a project that is not theirs,
    Conflict where they must name one."""
    rows = tx.read(ACCOUNT, name=account.name)
    if not rows or rows[0].disabled_at is not None or rows[0].password != account.password:
        raise Unauthenticated("the user was changed meanwhile: log in again")
    lives_s = LOGIN_S if wish.expires_in_s is None else wish.expires_in_s
    expires_at = tokens.expiry(tx, wish.note, lives_s)
    project = _entered(tx, account, bool(rows[0].admin), wish.project)
    tokens.check_room(tx, project.n, account.n)
    token, prefix = tokens.issue(
        tx, "user", project.n, account=account.n, note=wish.note, expires_at=expires_at
    )
    audit.append(
        tx, project.n, account.name, prefix, address, "login", account.name, {"note": wish.note}
    )
    return LoginReply(token, account.name, project.id, project.name, expires_at or 0.0)


def _entered(tx: Tx, account: Account, is_admin: bool, wanted: str | None) -> Any:
    """The project that a log-in is for: the one named, or the only one that there is for this user."""
    rows = tx.read(ENTERED, account=account.n)
    mine = rows if is_admin else [row for row in rows if row.role is not None]
    if wanted is not None:
        named = [row for row in mine if wanted in (row.id, row.name)]
        if not named:
            raise no_such("project", wanted)
        return named[0]
    if not mine:
        raise Forbidden(
            "you are in no project yet: ask a project's owner to make you a member",
            code="no_project",
        )
    joined = [row for row in mine if row.role is not None] or mine
    if len(joined) > 1:
        names = ", ".join(row.name for row in joined)
        raise Conflict(f"say which project: {names}", field="project", code="which_project")
    return joined[0]


def hash_code(code: str) -> str:
    """What is stored of an invitation."""
    return hashlib.sha256(code.encode()).hexdigest()
