"""`chappe why`: what a Job waits for."""

from __future__ import annotations

import click

from chappe.cli.options import offers
from chappe.cli.output import Out, with_output


@click.command("why")
@click.argument("id", shell_complete=offers("jobs"))
@with_output
def command(out: Out, id: str) -> None:
    """Say exactly what job ID waits for, most important first."""
    with out.client() as client:
        job = client.job(id)
        answer = job.why()

    def words() -> None:
        label = f"{job.name} ({job.id})" if job.name else job.id
        out.say(f"{label} is {answer.state}")
        for reason in answer.reasons:
            out.say(f"  – {reason}")

    out.one(answer, words)
