"""`chappe doctor`: what is wrong, and what to do about it."""

from __future__ import annotations

import asyncio
import sys

import click

from chappe.cli.output import FAILED, Out, with_output


@click.command("doctor")
@with_output
def command(out: Out) -> None:
    """Check this client, the hub and the sites; name remedies. Exit 1 when something is wrong."""
    if asyncio.run(_print_all(out)):
        sys.exit(FAILED)


async def _print_all(out: Out) -> bool:
    from chappe.sdk.doctor import examine  # here: `--help` does without the SDK

    wrong = False
    async for found in examine():
        out.one(found, out.finding, found.part, found.level, found.what, found.remedy)
        wrong = wrong or found.level == "error"
    return wrong
