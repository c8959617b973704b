"""Projects, and who has which role in them.

Owners act in their token's project; an administrator may name another. A project that one may not name is
answered as one that never existed.
"""

from __future__ import annotations

import re

from sqlalchemy import Connection

from chappe.core import limits
from chappe.core.access import Party, Reach
from chappe.core.errors import Conflict, Invalid, TooLarge
from chappe.core.ids import check_id
from chappe.store import audit
from chappe.store.dialect import sql
from chappe.store.logins import ACCOUNT
from chappe.store.principal import Principal
from chappe.store.rows import no_such
from chappe.store.tokens import INSERT_PROJECT, SET_MEMBER
from chappe.store.tx import Tx
from chappe.wire.people import (
    MemberList,
    MemberView,
    NewProject,
    ProjectList,
    ProjectView,
    SetMember,
)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")

PROJECT = sql("SELECT n, id, name, created_at FROM project WHERE id = :which OR name = :which")

SAME = sql("SELECT id, name, created_at FROM project WHERE id = :id OR name = :name")

COUNT = sql("SELECT count(*) FROM project")

ALL = sql("""
    SELECT p.id, p.name, p.created_at, m.role FROM project p
    LEFT JOIN member m ON m.project = p.n AND m.account = :account ORDER BY p.name LIMIT :most""")

MINE = sql("""
    SELECT p.id, p.name, p.created_at, m.role FROM project p
    JOIN member m ON m.project = p.n AND m.account = :account ORDER BY p.name LIMIT :most""")

ONE = sql("SELECT id, name, created_at FROM project WHERE n = :project")

MEMBERS = sql("""
    SELECT a.name, m.role, m.created_at FROM member m JOIN account a ON a.n = m.account
    WHERE m.project = :project ORDER BY a.name LIMIT :most""")

MEMBER = sql("""
    SELECT role, created_at FROM member WHERE project = :project AND account = :account""")

OWNERS = sql("""
    SELECT count(*) FROM member WHERE project = :project AND role = 'owner' AND account <> :account""")

REMOVE = sql("DELETE FROM member WHERE project = :project AND account = :account")

TOKENS = sql("""
    SELECT prefix FROM token WHERE project = :project AND account = :account AND revoked_at IS NULL""")

REVOKE = sql("""
    UPDATE token SET revoked_at = :now
    WHERE project = :project AND account = :account AND revoked_at IS NULL RETURNING prefix""")


def create(tx: Tx, p: Principal, new: NewProject) -> ProjectView:
    """Make a project; who makes it owns it. Repeating it with the same id and name is harmless."""
    check_id(new.id, "id")
    if not _NAME.fullmatch(new.name):
        raise Invalid(
            "a project's name is letters, digits, '-', '_' and '.', at most 64", field="name"
        )
    for row in tx.read(SAME, id=new.id, name=new.name):
        if (row.id, row.name) == (new.id, new.name):
            return ProjectView(row.id, row.name, row.created_at, Party.OWNER.value)
        field = "name" if row.name == new.name else "id"
        raise Conflict(f"there is a project with this {field}; choose another", field=field)
    if tx.read(COUNT)[0][0] >= limits.PROJECTS:
        raise TooLarge(f"a hub has at most {limits.PROJECTS} projects", field="name")
    (made,) = tx.write(INSERT_PROJECT, id=new.id, name=new.name, now=tx.now)
    tx.catalog.next_seq[made.n] = 1
    owner = Party.OWNER.value
    tx.write(SET_MEMBER, project=made.n, account=p.account_n, role=owner, now=tx.now)
    audit.record(tx, p, audit.HUB, "project.create", new.name, id=new.id)
    return ProjectView(new.id, new.name, tx.now, owner)


def projects(conn: Connection, p: Principal, reach: Reach) -> ProjectList:
    """The projects that the principal's user may enter, for an administrator all; a service token's own."""
    most = {"most": limits.PROJECTS}
    if p.account_n is None:
        row = conn.execute(ONE, {"project": p.project_n}).one()
        return ProjectList([ProjectView(row.id, row.name, row.created_at, p.role)])
    rows = conn.execute(ALL if reach is Reach.HUB else MINE, {"account": p.account_n, **most})
    return ProjectList([ProjectView(*row) for row in rows])


def members(conn: Connection, p: Principal, reach: Reach, project: str | None) -> MemberList:
    """The members of the token's project, or of the one named."""
    n = _project(conn, p, reach, project)[0]
    rows = conn.execute(MEMBERS, {"project": n, "most": limits.ACCOUNTS})
    return MemberList([MemberView(*row) for row in rows])


def set_member(tx: Tx, p: Principal, reach: Reach, name: str, body: SetMember) -> MemberView:
    """Make a user a member, or change their role; it holds from their next request on."""
    n, project = _project(tx.conn, p, reach, body.project)
    who = _account_n(tx, name)
    found = tx.read(MEMBER, project=n, account=who)
    if found and found[0].role == body.role:
        return MemberView(name, body.role, found[0].created_at)
    if found and found[0].role == Party.OWNER:
        _check_owner_left(tx, n, who, project)
    tx.write(SET_MEMBER, project=n, account=who, role=body.role, now=tx.now)
    # Not revoked, but to be looked up anew.
    tx.effects.revoked |= {row.prefix for row in tx.read(TOKENS, project=n, account=who)}
    was = found[0].role if found else None
    audit.record(tx, p, n, "member.set", name, role=body.role, was=was)
    return MemberView(name, body.role, found[0].created_at if found else tx.now)


def remove_member(tx: Tx, p: Principal, reach: Reach, name: str, project: str | None) -> None:
    """End a membership, and the user's tokens for the project, at once."""
    n, project_name = _project(tx.conn, p, reach, project)
    accounts = tx.read(ACCOUNT, name=name)
    who = accounts[0].n if accounts else None
    found = tx.read(MEMBER, project=n, account=who)
    if who is None or not found:
        raise no_such("member", name)
    if found[0].role == Party.OWNER:
        _check_owner_left(tx, n, who, project_name)
    tx.write(REMOVE, project=n, account=who)
    revoked = tx.write(REVOKE, project=n, account=who, now=tx.now)
    tx.effects.revoked |= {row.prefix for row in revoked}
    audit.record(tx, p, n, "member.remove", name, was=found[0].role)


def _project(conn: Connection, p: Principal, reach: Reach, which: str | None) -> tuple[int, str]:
    """(row number, name) of the token's project, or of the one named.

    There is one path for all that it may not see, whether it exists or not.
    """
    if which is None:
        return p.project_n, p.project_name
    row = conn.execute(PROJECT, {"which": which}).first()
    if row is None or (reach is not Reach.HUB and row.n != p.project_n):
        raise no_such("project", which)
    return row.n, row.name


def _account_n(tx: Tx, name: str) -> int:
    found = tx.read(ACCOUNT, name=name)
    if not found:
        raise no_such("user", name)
    return int(found[0].n)


def _check_owner_left(tx: Tx, project: int, account: int, name: str) -> None:
    if not tx.read(OWNERS, project=project, account=account)[0][0]:
        raise Conflict(f"project {name} would have no owner: make another first", code="last_owner")
