"""Users, projects, members, and the audit of what was done to them."""

from __future__ import annotations

import msgspec

from chappe.core import limits
from chappe.hub.call import Call
from chappe.store import audit, people, projects
from chappe.wire.people import (
    AuditPage,
    Invitation,
    MemberList,
    MemberView,
    NewInvitation,
    NewProject,
    NewUser,
    ProjectList,
    ProjectView,
    SetMember,
    UserList,
)


class MembersQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of another project (name or id) than the token's: for administrators."""

    project: str | None = None


class AuditQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many acts, and where the page before this one ended."""

    limit: int = limits.PAGE_DEFAULT
    cursor: str | None = None


async def add_user(call: Call[NewUser, None]) -> Invitation:
    """Make a user of the hub, and a code with which they set their password, once."""
    return await call.hub.write(people.add, call.actor, call.body)


async def users(call: Call[None, None]) -> UserList:
    """List the users of the hub."""
    return await call.hub.read(people.users)


async def invite(call: Call[NewInvitation, None]) -> Invitation:
    """Make a new code for a user to set the password, also where one is set; an earlier one is void."""
    return await call.hub.write(people.invite, call.actor, call.path["name"], call.body)


async def disable(call: Call[None, None]) -> None:
    """Let a user in no more: all of their tokens are revoked, at once."""
    await call.hub.write(people.disable, call.actor, call.path["name"])


async def enable(call: Call[None, None]) -> None:
    """Let a disabled user log in again."""
    await call.hub.write(people.enable, call.actor, call.path["name"])


async def create_project(call: Call[NewProject, None]) -> ProjectView:
    """Make a project, owned by who makes it. Repeating it is harmless."""
    return await call.hub.write(projects.create, call.actor, call.body)


async def list_projects(call: Call[None, None]) -> ProjectList:
    """List the projects that the token's user may enter, with the role there; an administrator sees all."""
    return await call.hub.read(projects.projects, call.principal, call.reach)


async def members(call: Call[None, MembersQuery]) -> MemberList:
    """List the members of the project."""
    p, project = call.principal, call.query.project
    return await call.hub.read(projects.members, p, call.reach, project)


async def set_member(call: Call[SetMember, None]) -> MemberView:
    """Make a user a member of the project, or change their role, at once."""
    name = call.path["name"]
    return await call.hub.write(projects.set_member, call.actor, call.reach, name, call.body)


async def remove_member(call: Call[None, MembersQuery]) -> None:
    """End a membership, and with it the user's tokens for the project, at once."""
    name, project = call.path["name"], call.query.project
    await call.hub.write(projects.remove_member, call.actor, call.reach, name, project)


async def audit_page(call: Call[None, AuditQuery]) -> AuditPage:
    """List administrative acts, newest first: for an owner those in the project, for an administrator all."""
    q = call.query
    return await call.hub.read(audit.page, call.principal, call.reach, q.limit, q.cursor)
