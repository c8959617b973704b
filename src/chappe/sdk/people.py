"""Users, projects, members and the audit: what a project's owners and the hub's administrators look after."""

from __future__ import annotations

from urllib.parse import quote

from chappe.core import limits
from chappe.link.clock import new_id
from chappe.link.http import NO_RETRY, HubClient
from chappe.wire.people import (
    AuditEntry,
    AuditPage,
    ChangePassword,
    Invitation,
    MemberList,
    MemberView,
    NewInvitation,
    NewProject,
    NewServiceToken,
    NewUser,
    ProjectList,
    ProjectView,
    Role,
    SetMember,
    UserList,
    UserView,
)
from chappe.wire.sites import TokenView

__all__ = [
    "AuditEntry",
    "Invitation",
    "MemberView",
    "People",
    "ProjectView",
    "Role",
    "TokenView",
    "UserView",
]


class People:
    """Requests about who may do what. Async; users are named by their names, projects by name or id."""

    def __init__(self, hub: HubClient) -> None:
        self._hub = hub

    async def users(self) -> list[UserView]:
        """All users of the hub. For administrators."""
        return (await self._hub.request("GET", "/v1/users", reply=UserList)).users

    async def add_user(
        self, name: str, *, administrator: bool = False, expires_in_s: float | None = None
    ) -> Invitation:
        """Make a user; the reply holds the code that sets the password, this once. For administrators."""
        new = NewUser(name, administrator, expires_in_s)
        # Not repeated: it could not be told whether the user that is there now is the one meant.
        return await self._hub.request("POST", "/v1/users", new, Invitation, retry=NO_RETRY)

    async def invite(self, name: str, expires_in_s: float | None = None) -> Invitation:
        """Make a new code for a user, which sets the password also where one is set. For administrators."""
        new = NewInvitation(expires_in_s)
        return await self._hub.request(
            "POST", f"/v1/users/{_in_path(name)}/invite", new, Invitation
        )

    async def disable(self, name: str) -> None:
        """Let a user in no more; their tokens end at once. For administrators."""
        await self._hub.request("POST", f"/v1/users/{_in_path(name)}/disable")

    async def enable(self, name: str) -> None:
        """Let a disabled user log in again. For administrators."""
        await self._hub.request("POST", f"/v1/users/{_in_path(name)}/enable")

    async def projects(self) -> list[ProjectView]:
        """The projects that you may enter; an administrator's are all."""
        return (await self._hub.request("GET", "/v1/projects", reply=ProjectList)).projects

    async def new_project(self, name: str) -> ProjectView:
        """Make a project, which you own. For administrators."""
        new = NewProject(new_id(), name)
        return await self._hub.request("POST", "/v1/projects", new, ProjectView)

    async def members(self, project: str | None = None) -> list[MemberView]:
        """The members of your token's project, or as an administrator of another."""
        params = {"project": project}
        return (
            await self._hub.request("GET", "/v1/members", reply=MemberList, params=params)
        ).members

    async def set_member(self, name: str, role: Role, project: str | None = None) -> MemberView:
        """Make a user a member, or change their role. For owners."""
        path = f"/v1/members/{_in_path(name)}"
        return await self._hub.request("PUT", path, SetMember(role, project), MemberView)

    async def remove_member(self, name: str, project: str | None = None) -> None:
        """End a membership, and the user's tokens for the project. For owners."""
        path = f"/v1/members/{_in_path(name)}"
        await self._hub.request("DELETE", path, params={"project": project})

    async def new_service_token(
        self, role: Role, note: str = "", expires_in_s: float | None = None
    ) -> TokenView:
        """Make a token of the project itself, for a program; the reply holds its secret, this once."""
        new = NewServiceToken(role, note, expires_in_s)
        return await self._hub.request("POST", "/v1/tokens/service", new, TokenView)

    async def audit(self, limit: int = limits.PAGE_DEFAULT) -> list[AuditEntry]:
        """The last administrative acts, newest first: in your project, for an administrator all."""
        found: list[AuditEntry] = []
        cursor: str | None = None
        while len(found) < limit:
            params = {"limit": min(limit - len(found), limits.PAGE_MAX), "cursor": cursor}
            page = await self._hub.request("GET", "/v1/audit", reply=AuditPage, params=params)
            found += page.entries
            cursor = page.next
            if cursor is None:
                break
        return found

    async def logout(self) -> None:
        """Revoke the token of this client. Raises Conflict while you have no password."""
        await self._hub.request("POST", "/v1/logout")

    async def change_password(self, new: str, old: str | None = None) -> None:
        """Set your password; `old` may be None only where none was set. Your tokens stay."""
        body = ChangePassword(new, old)
        await self._hub.request("PUT", "/v1/password", body, retry=NO_RETRY)


def _in_path(name: str) -> str:
    return quote(name, safe="@") or "-"
