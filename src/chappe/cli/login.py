"""`chappe login`: from a name and a password to a client that works."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from chappe.cli.options import duration_s
from chappe.cli.output import Out, when, with_output

if TYPE_CHECKING:
    from chappe.sdk.login import LoginReply


@click.command("login")
@click.argument("url", required=False)
@click.option("--user", metavar="NAME", help="Your name; asked for unless given.")
@click.option("--project", metavar="NAME", help="Which project, where you are in several.")
@click.option("--link", is_flag=True, help="Use a one-time code, and set your password.")
@click.option(
    "--ca-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The hub's certificate (its hub-cert.pem), unless a public authority signed it.",
)
@click.option(
    "--expires", "expires_in_s", type=duration_s, metavar="TIME", help="After how long (90d)."
)
@click.option("--replace", is_flag=True, help="Also when the client's file is for another hub.")
@with_output
def command(
    out: Out,
    url: str | None,
    user: str | None,
    project: str | None,
    link: bool,
    ca_file: Path | None,
    expires_in_s: float | None,
    replace: bool,
) -> None:
    """Log in to the hub at URL, and write the client's file.

    Name and password are asked for on the terminal. The token that the hub gives in exchange is for one
    project, and goes to ~/.config/chappe/client.json (or the file that CHAPPE_CONFIG names), mode 0600.
    With --link the code is asked for that an administrator made for you with `chappe user add` or `invite`.
    """
    from chappe.cli import ask  # here: `--help` does without the SDK
    from chappe.sdk import config, login
    from chappe.sdk.config import Settings

    path = config.config_path()
    url, ca = config.place(path, url, ca_file, replace=replace)
    if link:
        code = ask.ask_secret("Code").strip()
        password = ask.ask_new_password()
    else:
        name = user or ask.ask("Name").strip()
        password = ask.ask_secret("Password")

    def enter(project: str | None) -> LoginReply:
        more = {"project": project, "ca_file": ca}
        if link:
            return login.join(url, code, password, **more, expires_in_s=expires_in_s)
        return login.login(url, name, password, **more, expires_in_s=expires_in_s)

    made = _in_project(enter, project)
    login.keep(path, Settings(url=url, token=made.token, project=made.project, ca_file=ca))
    shown = {"user": made.user, "project": made.project_name, "expires_at": made.expires_at}
    until = when(made.expires_at)
    words = f"{made.user} is logged in to project {made.project_name} until {until}; wrote {path}"
    out.one({**shown, "path": str(path)}, out.say, words)


def _in_project(enter: Callable[[str | None], LoginReply], project: str | None) -> LoginReply:
    """Log in; whoever is in several projects and named none is asked which, where there is a terminal."""
    import sys

    from chappe.cli import ask
    from chappe.sdk.errors import Conflict

    try:
        return enter(project)
    except Conflict as error:
        if error.code != "which_project" or not sys.stdin.isatty():
            raise
        click.echo(error.message, err=True)
    return enter(ask.ask("Project").strip())
