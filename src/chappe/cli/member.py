"""`chappe member`: who may do what in a project."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from chappe.cli.options import ROLE
from chappe.cli.output import Out, ago, with_output

if TYPE_CHECKING:
    from chappe.sdk.people import Role

_PROJECT = click.option(
    "--project", metavar="NAME", help="Another than yours (for administrators)."
)


@click.group("member")
def command() -> None:
    """Add, list and remove members of the project."""


@command.command()
@click.argument("name")
@click.option("--role", type=ROLE, required=True, help="What they may do.")
@_PROJECT
@with_output
def add(out: Out, name: str, role: Role, project: str | None) -> None:
    """Make user NAME a member, or change their role.

    A viewer reads. An operator also submits, acts on jobs, and asks for allocations. An owner also looks
    after sites, members and tokens.
    """
    with out.client() as client:
        made = client.people.set_member(name, role, project)
    out.one(made, out.say, f"{made.name}  {made.role}")


@command.command()
@click.argument("name")
@_PROJECT
@with_output
def rm(out: Out, name: str, project: str | None) -> None:
    """Remove user NAME from the project; their tokens for it end at once. Their jobs go on."""
    with out.client() as client:
        client.people.remove_member(name, project)
    out.one({"name": name, "code": "removed"}, out.say, f"{name}  removed")


@command.command()
@_PROJECT
@with_output
def ls(out: Out, project: str | None) -> None:
    """List the members of the project."""
    with out.client() as client:
        found = client.people.members(project)
    out.many(
        found,
        ("NAME!", "ROLE!", "SINCE>"),
        lambda m: (m.name, m.role, ago(m.created_at)),
        "no members",
    )
