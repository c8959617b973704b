"""`chappe password`: set one's own password."""

from __future__ import annotations

import click

from chappe.cli.output import Out, with_output


@click.command("password")
@with_output
def command(out: Out) -> None:
    """Set your password; the old one is asked for first.

    Your tokens stay as they are: `chappe token ls` and `chappe token revoke` end those that others may know.
    """
    from chappe.cli import ask  # here: `--help` does without the SDK

    with out.client() as client:
        old = ask.ask_secret("Old password (empty if you have none)", may_be_empty=True)
        client.people.change_password(ask.ask_new_password(), old or None)
    out.one({"code": "changed"}, out.say, "the password is set")
