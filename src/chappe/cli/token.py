"""`chappe token`: what may speak with the Hub in your name, or in the project's."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from chappe.cli.options import ROLE, duration_s
from chappe.cli.output import Out, ago, when, with_output

if TYPE_CHECKING:
    from chappe.sdk.people import Role, TokenView


@click.group("token")
def command() -> None:
    """List, make and revoke tokens."""


@command.command()
@with_output
def ls(out: Out) -> None:
    """List tokens, without their secrets: yours, or as an owner all of the project."""
    with out.client() as client:
        tokens = client.admin.tokens()
        named = not out.as_json and any(token.site for token in tokens)
        sites = client.site_names() if named else {}

    def who(token: TokenView) -> str:
        if token.scope == "user":
            return token.user or "(service)"
        if token.scope == "producer":
            return f"producer {token.producer}"
        return (
            f"{'site' if token.scope == 'site' else 'pilot at'} {sites.get(token.site or '', '')}"
        )

    out.many(
        tokens,
        ("PREFIX!", "WHO", "ROLE!", "NOTE", "AGE>", "EXPIRES!", "STATE!"),
        lambda t: (
            t.prefix,
            who(t),
            t.role or "",
            t.note,
            ago(t.created_at),
            when(t.expires_at),
            _state(t),
        ),
        "no tokens",
    )


def _state(token: TokenView) -> str:
    if token.revoked_at:
        return "revoked"
    return "expired" if token.expires_at and token.expires_at <= time.time() else "valid"


@command.command()
@click.option("--note", default="", help="What it is for.")
@click.option(
    "--expires", "expires_in_s", type=duration_s, metavar="TIME", help="After how long: 12h, 90d."
)
@click.option("--service", type=ROLE, help="The project's own with this role, not yours.")
@with_output
def new(out: Out, note: str, expires_in_s: float | None, service: Role | None) -> None:
    """Make a further token of yours. Its secret is printed this once.

    It ends with the token that makes it, or before. With --service (for owners) it belongs to nobody: it goes
    on for programs when people leave.
    """
    with out.client() as client:
        if service is None:
            made = client.admin.new_token(note, expires_in_s)
        else:
            made = client.people.new_service_token(service, note, expires_in_s)
    out.one(made, out.say, made.token or "")


@command.command()
@click.argument("prefix")
@with_output
def revoke(out: Out, prefix: str) -> None:
    """End a token, at once. PREFIX is what `token ls` shows of it."""
    with out.client() as client:
        client.admin.revoke_token(prefix)
    out.one({"prefix": prefix, "code": "revoked"}, out.say, f"{prefix}  revoked")
