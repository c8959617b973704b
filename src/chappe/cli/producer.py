"""`chappe producer`: who may send messages, and nothing else."""

from __future__ import annotations

import click

from chappe.cli.options import duration_s
from chappe.cli.output import Out, ago, with_output


@click.group("producer")
def command() -> None:
    """Add, list and remove producers of messages."""


@command.command()
@click.argument("name")
@click.option("--note", default="", help="What its token is for.")
@click.option(
    "--expires", "expires_in_s", type=duration_s, metavar="TIME", help="After how long: 12h, 90d."
)
@with_output
def add(out: Out, name: str, note: str, expires_in_s: float | None) -> None:
    """Make producer NAME; print its token, this once. For one that is there: a further token.

    With it messages can be sent, and nothing can be read. What one producer says of a simulation touches
    nothing of another producer's.
    """
    with out.client() as client:
        made = client.messages.add_producer(name, note, expires_in_s)
    out.one(made, out.say, made.token or "")


@command.command()
@with_output
def ls(out: Out) -> None:
    """List producers, with the number of their valid tokens."""
    with out.client() as client:
        found = client.messages.producers()
    out.many(
        found,
        ("NAME!", "TOKENS>", "SINCE>"),
        lambda p: (p.name, str(p.tokens), ago(p.created_at)),
        "no producers: messages come with tokens of users and sites only",
    )


@command.command()
@click.argument("name")
@with_output
def rm(out: Out, name: str) -> None:
    """Remove producer NAME: its tokens end at once, its messages stay."""
    with out.client() as client:
        client.messages.remove_producer(name)
    out.one({"name": name, "code": "removed"}, out.say, f"{name}  removed")
