"""`chappe hub`: the service itself."""

from __future__ import annotations

import click

from chappe.cli.output import Out, with_output


@click.group("hub")
def command() -> None:
    """Start a hub."""


@command.command()
@with_output
def start(out: Out) -> None:
    """Start a hub in the foreground."""
