"""`chappe job logs`: what a Job writes, while it runs and afterwards."""

from __future__ import annotations

import sys

import click

from chappe.cli.output import Out, plain, with_output


@click.command("logs")
@click.argument("id")
@click.option(
    "-f", "--follow", is_flag=True, help="Go on as it is written, until the job has ended."
)
@click.option("--stderr", is_flag=True, help="Standard error, where the app keeps it apart.")
@click.option("-n", "--tail", type=click.IntRange(0, 100_000), help="The last so many lines (200).")
@click.option("--from", "start", type=click.IntRange(0), help="From this byte on; 0 for all.")
@click.option("--attempt", type=click.IntRange(1), help="Of this attempt, not of the last one.")
@click.option("--raw", is_flag=True, help="Pass control characters on to the terminal.")
@with_output
def command(
    out: Out,
    id: str,
    follow: bool,
    stderr: bool,
    tail: int | None,
    start: int | None,
    attempt: int | None,
    raw: bool,
) -> None:
    """Show a job's output, read from the file at its site.

    Terminals obey control characters, so these are shown as \\x1b and the like unless --raw is given.
    """
    from chappe.sdk.logs import Text  # here: `--help` does without the SDK

    text, notes = Text(), set()
    with out.client() as client:
        job = client.job(id)
        for page in job.log_pages(
            stderr=stderr, tail=tail, start=start, attempt=attempt, follow=follow
        ):
            if page.note and page.note not in notes:
                notes.add(page.note)
                click.echo(f"note: {plain(page.note)}", err=True)
            if out.as_json:
                out.line({**_about(page), "text": text.of(page)})
            elif raw:
                sys.stdout.buffer.write(page.data)
                sys.stdout.buffer.flush()
            else:
                click.echo(plain(text.of(page)), nl=False)
                sys.stdout.flush()


def _about(page: object) -> dict[str, object]:
    names = ("attempt", "stream", "start", "next", "size", "over", "note")
    return {name: getattr(page, name) for name in names}
