"""Users, projects, members, logins and the audit on the wire."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from chappe.core.hidden import HidesToken

Role = Literal["viewer", "operator", "owner"]


class NewUser(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """`POST /v1/users`: a user of the hub. The name is lower-case letters, digits, `-`, `_`, `.`, `@`."""

    name: str
    administrator: bool = False
    expires_in_s: float | None = None


class NewInvitation(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """`POST /v1/users/{name}/invite`: how long it may be used (3 days unless given)."""

    expires_in_s: float | None = None


class Invitation(HidesToken, msgspec.Struct, frozen=True):
    """A code that sets a user's password, once, until `expires_at`; shown this once."""

    user: str
    code: str
    expires_at: float


class UserView(msgspec.Struct, frozen=True, omit_defaults=True):
    """A user, with the roles in projects (by their names). `invited_until` while an invitation is open."""

    name: str
    created_at: float
    administrator: bool = False
    has_password: bool = False
    invited_until: float | None = None
    disabled_at: float | None = None
    projects: dict[str, str] = {}


class UserList(msgspec.Struct, frozen=True):
    """All users of the hub, by name."""

    users: list[UserView]


class NewProject(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /v1/projects`: a project named `name` (letters, digits, `-`, `_`, `.`), owned by who makes it."""

    id: str
    name: str


class ProjectView(msgspec.Struct, frozen=True, omit_defaults=True):
    """A project: the boundary of ids, Events and access. `role` is that of who asks."""

    id: str
    name: str
    created_at: float
    role: str | None = None


class ProjectList(msgspec.Struct, frozen=True):
    """The projects that who asks may enter; for an administrator all."""

    projects: list[ProjectView]


class SetMember(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """`PUT /v1/members/{name}`: the role of a user in the token's project (an administrator may name
    another)."""

    role: Role
    project: str | None = None


class MemberView(msgspec.Struct, frozen=True):
    """A user's role in a project."""

    name: str
    role: str
    created_at: float


class MemberList(msgspec.Struct, frozen=True):
    """The members of a project, by name."""

    members: list[MemberView]


class NewServiceToken(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """`POST /v1/tokens/service`: a token of the project itself, for a program. `expires_in_s` None: until
    revoked."""

    role: Role
    note: str = ""
    expires_in_s: float | None = None


class Login(
    HidesToken, msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True
):
    """`POST /v1/login`. `project` is a name or id, needed by members of several. The token lives for
    `expires_in_s` (90 days unless given)."""

    name: str
    password: str
    project: str | None = None
    note: str = ""
    expires_in_s: float | None = None


class Join(HidesToken, msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """`POST /v1/join`: use an invitation's `code` to set the password, and log in."""

    code: str
    password: str
    project: str | None = None
    note: str = ""
    expires_in_s: float | None = None


class LoginReply(HidesToken, msgspec.Struct, frozen=True):
    """A token of the user for one project, shown this once."""

    token: str
    user: str
    project: str
    project_name: str
    expires_at: float


class ChangePassword(
    HidesToken, msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True
):
    """`PUT /v1/password`: the old one may be missing only where none was set."""

    new_password: str
    old_password: str | None = None


class AuditEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who did what, on what, when (seconds since 1970), with the token of that prefix, from which address.
    `project` is a name, "" for the hub itself; `no` counts within it."""

    no: int
    at: float
    actor: str
    action: str
    subject: str
    project: str = ""
    token_prefix: str = ""
    address: str = ""
    details: dict[str, Any] = {}


class AuditPage(msgspec.Struct, frozen=True, omit_defaults=True):
    """Administrative acts, newest first; `next` is the cursor of the next page."""

    entries: list[AuditEntry]
    next: str | None = None
