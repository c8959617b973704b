"""`chappe audit`: who changed what about users, projects, tokens and sites."""

from __future__ import annotations

import click

from chappe.cli.output import Out, when, with_output


@click.group("audit")
def command() -> None:
    """Show who changed what. For owners, and the hub's administrators."""


@command.command()
@click.option("--limit", type=click.IntRange(1), default=100, help="How many (100).")
@with_output
def ls(out: Out, limit: int) -> None:
    """List administrative acts, newest first: in your project, for an administrator all."""
    with out.client() as client:
        found = client.people.audit(limit)
    out.many(
        found,
        ("WHEN!", "WHO!", "ACT!", "ON", "PROJECT", "FROM", "WITH"),
        lambda e: (
            when(e.at),
            e.actor,
            e.action,
            e.subject,
            e.project,
            e.address,
            ", ".join(f"{name}={value}" for name, value in e.details.items() if value),
        ),
        "nothing yet",
    )
