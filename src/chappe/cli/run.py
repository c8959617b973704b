"""`chappe run`: one signed command at a Site, as if it ran here."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from chappe.cli.job import print_change
from chappe.cli.options import job_options, offers, options_of
from chappe.cli.output import FAILED, OK, Out, plain, with_output

if TYPE_CHECKING:
    from chappe import JobView


@click.command("run")
@click.argument("site", shell_complete=offers("sites"))
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("-d", "--detach", is_flag=True, help="Print the job's id and return at once.")
@job_options
@with_output
def command(out: Out, site: str, argv: tuple[str, ...], detach: bool, **given: Any) -> None:
    """Run one command at SITE, signed with your key: chappe run paris -- hostname -f.

    It is an argument list; for a shell, say so: chappe run paris -- sh -c 'echo $HOME'. Prints the
    job's states, how it ended, and the end of its stderr; exits as the command did.
    """
    with out.client() as client:
        job = client.run(site, argv, **options_of(client, given))
        if detach:
            out.one({"id": job.id}, out.say, job.id)
            return
        out.say(f"job {job.id}", "dim")
        for event in client.changes([job]):
            if not out.as_json:
                print_change(out, event, job.name or argv[0])
        view = job.refresh()
    out.one(view, _tail, view)
    sys.exit(_status(view))


def _tail(view: JobView) -> None:
    if view.outcome is not None and view.outcome.tail:
        click.echo(plain(view.outcome.tail.rstrip("\n")), err=True)


def _status(view: JobView) -> int:
    """The command's own exit status; 128 + the signal that ended it, as a shell says it; else 1."""
    outcome = view.outcome
    if view.phase == "finished":
        return OK
    if outcome is not None and outcome.reason == "exit" and outcome.exit:
        return outcome.exit
    if outcome is not None and outcome.reason == "signal" and outcome.signal:
        return 128 + outcome.signal
    return FAILED
