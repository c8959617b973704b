"""`chappe user`: who may log in to the Hub."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from chappe.cli.options import duration_s
from chappe.cli.output import Out, when, with_output

if TYPE_CHECKING:
    from chappe.sdk.people import Invitation, UserView

_EXPIRES = click.option(
    "--expires",
    "expires_in_s",
    type=duration_s,
    metavar="TIME",
    help="The code: after how long (3d).",
)


@click.group("user")
def command() -> None:
    """Add, list, invite and disable users. For the hub's administrators."""


@command.command()
@click.argument("name")
@click.option("--administrator", is_flag=True, help="May make users and projects.")
@_EXPIRES
@with_output
def add(out: Out, name: str, administrator: bool, expires_in_s: float | None) -> None:
    """Add user NAME, and print a code with which they set their password, once.

    Then make them a member of a project (chappe member add), and tell them the code.
    """
    with out.client() as client:
        made = client.people.add_user(name, administrator=administrator, expires_in_s=expires_in_s)
        out.one(made, _invitation, out, made, client.settings.url)


@command.command()
@click.argument("name")
@_EXPIRES
@with_output
def invite(out: Out, name: str, expires_in_s: float | None) -> None:
    """Print a new code for user NAME, who has lost the password or the last code; that one is void."""
    with out.client() as client:
        made = client.people.invite(name, expires_in_s)
        out.one(made, _invitation, out, made, client.settings.url)


def _invitation(out: Out, made: Invitation, url: str) -> None:
    out.say(made.code)
    out.say(f"  for {made.user}, once, until {when(made.expires_at)}: chappe login {url} --link")


@command.command()
@with_output
def ls(out: Out) -> None:
    """List the users of the hub."""
    with out.client() as client:
        users = client.people.users()
    out.many(
        users,
        ("NAME!", "STATE!", "ADMINISTRATOR!", "PROJECTS~"),
        lambda u: (
            u.name,
            _state(u),
            "yes" if u.administrator else "",
            ", ".join(f"{project} ({role})" for project, role in sorted(u.projects.items())),
        ),
        "no users",
    )


def _state(user: UserView) -> str:
    if user.disabled_at is not None:
        return "disabled"
    if user.invited_until is not None:
        return f"invited until {when(user.invited_until)}"
    return "active" if user.has_password else "no password"


@command.command()
@click.argument("name")
@with_output
def disable(out: Out, name: str) -> None:
    """Let user NAME in no more; all of their tokens end at once. Their jobs go on."""
    with out.client() as client:
        client.people.disable(name)
    out.one({"name": name, "code": "disabled"}, out.say, f"{name}  disabled")


@command.command()
@click.argument("name")
@with_output
def enable(out: Out, name: str) -> None:
    """Let user NAME log in again."""
    with out.client() as client:
        client.people.enable(name)
    out.one({"name": name, "code": "enabled"}, out.say, f"{name}  enabled")
