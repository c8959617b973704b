"""`chappe run`: one signed command at a Site, as if it ran here."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from chappe.cli.job import print_change
from chappe.cli.options import array_options, job_options, offers, options_of
from chappe.cli.output import FAILED, OK, Out, plain, with_output

if TYPE_CHECKING:
    from chappe import Client, Job, JobView

_SHOWN = 50


@click.command("run")
@click.argument("site", shell_complete=offers("sites"))
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("-d", "--detach", is_flag=True, help="Print the job's id and return at once.")
@array_options
@job_options
@with_output
def command(
    out: Out,
    site: str,
    argv: tuple[str, ...],
    detach: bool,
    array: str | None,
    dialect: str | None,
    **given: Any,
) -> None:
    """Run one command at SITE, signed with your key: chappe run paris -- hostname -f.

    It is an argument list; for a shell, say so: chappe run paris -- sh -c 'echo $HOME'. Prints the
    job's states, how it ended, and the end of its stderr; exits as the command did. With --array it
    waits for all tasks, and exits 1 unless all succeeded.
    """
    with out.client() as client:
        options = options_of(client, given)
        if array is not None:
            _run_array(
                out,
                client,
                client.run(site, argv, array=array, dialect=dialect or "", **options),
                detach,
            )
            return
        job = client.run(site, argv, **options)
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


def _run_array(out: Out, client: Client, jobs: list[Job], detach: bool) -> None:
    """Name the array; unless detached, wait for its tasks and say which failed."""
    out.one(
        {"id": jobs[0].id, "tasks": len(jobs)}, out.say, f"array {jobs[0].id}: {len(jobs)} tasks"
    )
    if detach:
        return
    client.wait_all(jobs, progress=not out.as_json)
    bad = [job for job in jobs if not job.ok]
    for job in bad[: None if out.as_json else _SHOWN]:
        named = {"id": job.id, "name": job.name, "state": job.state}
        out.one(named, out.say, f"{job.id}  {job.name}  {job.state}")
    out.say(f"{len(jobs) - len(bad)} of {len(jobs)} tasks succeeded")
    if bad:
        sys.exit(FAILED)


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
