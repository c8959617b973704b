"""`chappe project`: the boundaries of Jobs, Sites and access."""

from __future__ import annotations

import click

from chappe.cli.output import Out, ago, with_output


@click.group("project")
def command() -> None:
    """List projects; as an administrator make them."""


@command.command()
@click.argument("name")
@with_output
def create(out: Out, name: str) -> None:
    """Make project NAME, which you own. To work in it: chappe login --project NAME."""
    with out.client() as client:
        made = client.people.new_project(name)
    out.one(made, out.say, f"{made.name}  created ({made.id})")


@command.command()
@with_output
def ls(out: Out) -> None:
    """List the projects that you are in; an administrator sees all."""
    with out.client() as client:
        found = client.people.projects()
    out.many(
        found,
        ("NAME!", "YOUR ROLE!", "AGE>", "ID!"),
        lambda p: (p.name, p.role or "", ago(p.created_at), p.id),
        "no projects",
    )
