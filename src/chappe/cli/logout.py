"""`chappe logout`: end the token of this client."""

from __future__ import annotations

import click

from chappe.cli.output import Out, with_output


@click.command("logout")
@with_output
def command(out: Out) -> None:
    """Revoke the token in the client's file, and take it out of there.

    Refused while you have no password, with which you could log in again (chappe password).
    """
    from chappe.sdk import config, login  # here: `--help` does without the SDK
    from chappe.sdk.errors import Unauthenticated

    with out.client() as client:
        try:
            client.people.logout()
        except Unauthenticated:
            out.say("the token was revoked or had expired before")
        settings = client.settings
    path = config.config_path()
    login.keep(path, config.Settings(url=settings.url, token="", ca_file=settings.ca_file))
    out.one({"path": str(path), "code": "logged_out"}, out.say, f"logged out of {settings.url}")
