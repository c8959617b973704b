"""`chappe events`: the EventLog."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from chappe.cli.output import STYLES, Out, when, with_output

if TYPE_CHECKING:
    from chappe import Event

KINDS = (
    "job",
    "job.deleted",
    "session",
    "batch_job",
    "site",
    "elastic",
    "simulation",
    "projection.corrected",
)


@click.command("events")
@click.option("-f", "--follow", is_flag=True, help="Print what is new, until interrupted.")
@click.option(
    "--kind", "kinds", multiple=True, type=click.Choice(KINDS), help="Only these; repeat."
)
@click.option("--job", "jobs", multiple=True, metavar="ID", help="Only of this job; repeat.")
@click.option("--tag", "tags", multiple=True, metavar="K=V", help="Of jobs with this tag; repeat.")
@click.option("--final", is_flag=True, help="Only ends of jobs.")
@click.option("--cursor", help="Go on after this cursor (incarnation:seq).")
@with_output
def command(
    out: Out,
    follow: bool,
    kinds: tuple[str, ...],
    jobs: tuple[str, ...],
    final: bool,
    tags: tuple[str, ...],
    cursor: str | None,
) -> None:
    """Print what the hub concluded, oldest first; with -f, from now on."""
    from chappe.sdk.texts import pairs  # here: `--help` does without the SDK

    with out.client() as client:
        ids = [client.job(one).id for one in jobs]
        for event in client.events(
            follow=follow,
            cursor=cursor,
            kinds=kinds,
            jobs=ids,
            final=final,
            tags=dict(pairs(tags, "tag")),
        ):
            out.one(event, _line, out, event)


def _line(out: Out, event: Event) -> None:
    said = (event.data.get(name) for name in ("name", "state", "message"))
    step = event.new or " ".join(str(text) for text in said if text)
    if event.old and event.new:
        step = f"{event.old} → {event.new}"
    attempt = f"  attempt {event.attempt}" if event.attempt else ""
    out.say(
        f"{event.seq:>7}  {when(event.received_at)}  {event.kind:<9}  {event.subject}  {step}{attempt}",
        STYLES.get(event.phase or ""),
    )
