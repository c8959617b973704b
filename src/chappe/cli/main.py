"""`chappe`: the root command. Sub-commands are loaded when used, so that `chappe --help` is quick."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import click

from chappe import __version__

#: Name → (module, one line of help). The line is here so that --help needs no import.
COMMANDS: dict[str, tuple[str, str]] = {
    "hub": ("chappe.cli.hub", "Start a hub; back it up and restore it."),
    "site": ("chappe.cli.site", "Make, check, start and stop sites."),
    "app": ("chappe.cli.app", "Show the apps that sites offer; check an app's file."),
    "job": ("chappe.cli.job", "Submit, list, watch, cancel, retry, hold, update and delete jobs."),
    "sim": ("chappe.cli.sim", "Follow simulations: list, show, watch, compare cards, purge."),
    "up": ("chappe.cli.up", "Start a hub and a site on this machine in one go."),
    "run": ("chappe.cli.run", "Run one command at a site, signed with your key."),
    "events": ("chappe.cli.events", "Print what the hub concluded; -f follows."),
    "why": ("chappe.cli.why", "Say exactly what a job waits for."),
    "doctor": ("chappe.cli.doctor", "Check this client, the hub and the sites; name remedies."),
    "login": ("chappe.cli.login", "Log in to a hub."),
    "logout": ("chappe.cli.logout", "End this client's token."),
    "password": ("chappe.cli.password", "Set your password."),
    "message": ("chappe.cli.message", "List, show, check and import messages of simulations."),
    "producer": ("chappe.cli.producer", "Add, list and remove producers of messages."),
    "admin": ("chappe.cli.admin", "Prove that what is shown follows from what was received."),
    "token": ("chappe.cli.token", "List, make and revoke tokens."),
    "user": ("chappe.cli.user", "Add, list, invite and disable users."),
    "project": ("chappe.cli.project", "List projects, make them."),
    "member": ("chappe.cli.member", "Add, list and remove members of the project."),
    "bus": ("chappe.cli.bus", "Show queues, try dead letters again; set up a RabbitMQ broker."),
    "audit": ("chappe.cli.audit", "Show who changed what."),
    "batch-job": ("chappe.cli.batch_job", "Ask for allocations, list and cancel them."),
    "session": ("chappe.cli.session", "List pilots' sessions; declare one dead."),
    "completion": (
        "chappe.cli.completion",
        "Complete commands, sites, apps and job ids in your shell.",
    ),
}

EPILOG = """\b
Exit status: 0 done · 1 a job or a check failed · 2 wrong usage or input
3 not found · 4 the hub cannot be reached · 5 refused
`run` exits as its command did.

\b
Environment: CHAPPE_CONFIG (the client's file), CHAPPE_KEY (the signing key),
NO_COLOR.
Completion: chappe completion --help
"""


class Root(click.Group):
    """A group whose commands are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module and return its `command`."""
        if cmd_name not in COMMANDS:
            return None
        module: Any = importlib.import_module(COMMANDS[cmd_name][0])
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.command(cls=Root, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="chappe")
def root() -> None:
    """One control plane for simulations and analyses on many supercomputers.

    All but `hub start` take --json: one JSON document, or one object a line for lists.
    """


def main() -> None:
    """Run the command line (the `chappe` script)."""
    try:
        root(prog_name="chappe")
    except BrokenPipeError:
        # The reader (head, less) has had enough; Python's own flush at exit must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


if __name__ == "__main__":
    main()
