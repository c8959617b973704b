"""The synchronous face of `people`: the same lists and acts, blocking."""

from __future__ import annotations

from chappe.core import limits
from chappe.sdk.loop import Loop
from chappe.sdk.people import People
from chappe.wire.people import (
    AuditEntry,
    Invitation,
    MemberView,
    ProjectView,
    Role,
    UserView,
)
from chappe.wire.sites import TokenView


class SyncPeople:
    """Users, projects, members and the audit; see People for what each does and raises."""

    def __init__(self, loop: Loop, people: People) -> None:
        self._run = loop.run
        self._people = people

    def users(self) -> list[UserView]:
        """All users of the hub. For administrators."""
        return self._run(self._people.users())

    def add_user(
        self, name: str, *, administrator: bool = False, expires_in_s: float | None = None
    ) -> Invitation:
        """Make a user; the reply holds the code that sets the password, this once. For administrators."""
        made = self._people.add_user(name, administrator=administrator, expires_in_s=expires_in_s)
        return self._run(made)

    def invite(self, name: str, expires_in_s: float | None = None) -> Invitation:
        """Make a new code for a user, which sets the password also where one is set. For administrators."""
        return self._run(self._people.invite(name, expires_in_s))

    def disable(self, name: str) -> None:
        """Let a user in no more; their tokens end at once. For administrators."""
        self._run(self._people.disable(name))

    def enable(self, name: str) -> None:
        """Let a disabled user log in again. For administrators."""
        self._run(self._people.enable(name))

    def projects(self) -> list[ProjectView]:
        """The projects that you may enter; an administrator's are all."""
        return self._run(self._people.projects())

    def new_project(self, name: str) -> ProjectView:
        """Make a project, which you own. For administrators."""
        return self._run(self._people.new_project(name))

    def members(self, project: str | None = None) -> list[MemberView]:
        """The members of your token's project, or as an administrator of another."""
        return self._run(self._people.members(project))

    def set_member(self, name: str, role: Role, project: str | None = None) -> MemberView:
        """Make a user a member, or change their role. For owners."""
        return self._run(self._people.set_member(name, role, project))

    def remove_member(self, name: str, project: str | None = None) -> None:
        """End a membership, and the user's tokens for the project. For owners."""
        self._run(self._people.remove_member(name, project))

    def new_service_token(
        self, role: Role, note: str = "", expires_in_s: float | None = None
    ) -> TokenView:
        """Make a token of the project itself, for a program; the reply holds its secret, this once."""
        return self._run(self._people.new_service_token(role, note, expires_in_s))

    def audit(self, limit: int = limits.PAGE_DEFAULT) -> list[AuditEntry]:
        """The last administrative acts, newest first: in your project, for an administrator all."""
        return self._run(self._people.audit(limit))

    def logout(self) -> None:
        """Revoke the token of this client. Raises Conflict while you have no password."""
        self._run(self._people.logout())

    def change_password(self, new: str, old: str | None = None) -> None:
        """Set your password; `old` may be None only where none was set. Your tokens stay."""
        self._run(self._people.change_password(new, old))
