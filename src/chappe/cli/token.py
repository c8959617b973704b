"""`chappe token`: what may speak with the Hub in your name."""

from __future__ import annotations

import click

from chappe.cli.options import duration_s
from chappe.cli.output import Out, ago, when, with_output


@click.group("token")
def command() -> None:
    """List, make and revoke tokens."""


@command.command()
@with_output
def ls(out: Out) -> None:
    """List tokens, without their secrets."""
    with out.client() as client:
        tokens = client.admin.tokens()
        sites = {} if out.as_json else client.site_names()
    out.many(
        tokens,
        ("PREFIX!", "SCOPE!", "SITE", "NOTE", "AGE>", "EXPIRES!", "STATE!"),
        lambda t: (
            t.prefix,
            t.scope,
            sites.get(t.site or "", ""),
            t.note,
            ago(t.created_at),
            when(t.expires_at),
            "revoked" if t.revoked_at else "valid",
        ),
        "no tokens",
    )


@command.command()
@click.option("--note", default="", help="What it is for.")
@click.option(
    "--expires", "expires_in_s", type=duration_s, metavar="TIME", help="After how long: 12h, 90d."
)
@with_output
def new(out: Out, note: str, expires_in_s: float | None) -> None:
    """Make a further token of yours. Its secret is printed this once."""
    with out.client() as client:
        made = client.admin.new_token(note, expires_in_s)
    out.one(made, out.say, made.token or "")


@command.command()
@click.argument("prefix")
@with_output
def revoke(out: Out, prefix: str) -> None:
    """End a token, at once. PREFIX is what `token ls` shows of it."""
    with out.client() as client:
        client.admin.revoke_token(prefix)
    out.one({"prefix": prefix, "code": "revoked"}, out.say, f"{prefix}  revoked")
