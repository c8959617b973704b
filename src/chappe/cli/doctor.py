"""`chappe doctor`: what is wrong, and what to do about it."""

from __future__ import annotations

import asyncio
import sys

import click

from chappe.cli.output import FAILED, Out, with_output

_MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "problem": ("✗", "bold red")}


@click.command("doctor")
@with_output
def command(out: Out) -> None:
    """Check this client, the hub and the sites; name remedies. Exit 1 when there is a problem."""
    if asyncio.run(_print_all(out)):
        sys.exit(FAILED)


async def _print_all(out: Out) -> bool:
    from chappe.sdk.doctor import Finding, examine  # here: `--help` does without the SDK

    def line(finding: Finding) -> None:
        mark, style = _MARKS[finding.status]
        out.say(f"{mark} {finding.check:<14} {finding.message}", style)
        if finding.remedy:
            out.say(f"  {'':<14} → {finding.remedy}")

    bad = False
    async for finding in examine():
        out.one(finding, line, finding)
        bad = bad or finding.status == "problem"
    return bad
