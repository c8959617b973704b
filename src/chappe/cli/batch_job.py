"""`chappe batch-job`: our requests to the machines' schedulers."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from chappe.cli.options import duration_s, offers, size_bytes
from chappe.cli.output import Out, ago, short_ids, with_output

if TYPE_CHECKING:
    from chappe.sdk.sync import Client

F = TypeVar("F", bound=Callable[..., Any])

STATES = ("requested", "submitted", "running", "ended", "failed", "cancelled")


_WISHES = (
    click.option("--nodes", type=int, default=1, show_default=True, help="How many nodes."),
    click.option("--cores", type=int, default=0, help="Cores of each node; 0 for all."),
    click.option("--gpus", type=int, default=0, help="GPUs of each node."),
    click.option(
        "--mem",
        "mem_bytes",
        type=size_bytes,
        default=0,
        metavar="SIZE",
        help="Memory of each: 64G.",
    ),
    click.option(
        "--wall",
        "--walltime",
        "wall_s",
        type=duration_s,
        metavar="TIME",
        help="How long: 2h; as the site says without it.",
    ),
    click.option("-q", "--queue", default="", help="Queue (Slurm: partition)."),
    click.option("-A", "--account", default="", help="Account to charge."),
    click.option("--qos", default="", help="Quality of service."),
    click.option("--reservation", default="", help="Reservation to use."),
    click.option("-C", "--constraint", default="", help="Features that nodes must have."),
    click.option(
        "--job-extra-directive",
        "job_extra_directives",
        multiple=True,
        metavar="TEXT",
        help="One more directive for the scheduler, that the site's policy allows (repeatable).",
    ),
)


def _wishes(command: F) -> F:
    """Give a command the options that say what to ask a scheduler for."""
    for option in reversed(_WISHES):
        command = option(command)
    return command


@click.group("batch-job")
def command() -> None:
    """Ask for allocations, list and cancel them."""


@command.command()
@click.option("-s", "--site", shell_complete=offers("sites"), help="At this site (name or id).")
@click.option("--state", type=click.Choice(STATES), help="In this state.")
@with_output
def ls(out: Out, site: str | None, state: str | None) -> None:
    """List requests, newest first."""
    with out.client() as client:
        found = client.admin.batch_jobs(site, state)
        sites = {} if out.as_json else client.site_names()
    ids = short_ids([b.id for b in found])
    out.many(
        found,
        ("ID!", "SITE", "STATE!", "NODES>", "SCHEDULER ID", "AGE>", "MESSAGE~"),
        lambda b: (
            ids[b.id],
            sites.get(b.site, b.site),
            b.state,
            str(b.intent.nodes),
            b.scheduler_id or "",
            ago(b.created_at),
            b.message,
        ),
        "no batch jobs",
    )


@command.command()
@click.option(
    "-s", "--site", required=True, shell_complete=offers("sites"), help="Where (name or id)."
)
@_wishes
@with_output
def new(out: Out, site: str, **wishes: Any) -> None:
    """Ask a site's scheduler for an allocation, for one pilot."""
    with out.client() as client:
        made = client.admin.new_batch_job(site, **wishes)
    out.one(made, out.say, f"{made.id}  {made.state}")


@command.command()
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path), default=Path())
@_wishes
@with_output
def preview(out: Out, directory: Path, **wishes: Any) -> None:
    """Show the exact batch script that the site in DIRECTORY, on this machine, would submit."""
    from chappe.site.explain import preview  # here: `--help` does without it

    found = preview(directory, **wishes)
    out.one(found, out.say, f"# {shlex.join(found.command)}\n{found.script}")


@command.command()
@click.argument("id")
@with_output
def cancel(out: Out, id: str) -> None:
    """Take a request back; a running allocation is ended."""
    with out.client() as client:
        view = client.admin.cancel_batch_job(_full_id(client, id))
    out.one(view, out.say, f"{view.id}  {view.state}")


@command.command()
@click.argument(
    "directory", type=click.Path(exists=True, file_okay=False, path_type=Path), default=Path()
)
@with_output
def plan(out: Out, directory: Path) -> None:
    """Show what the agent of a site's DIRECTORY would ask for now, and why. Nothing is asked for.

    Which nodes are free, and how long something has not been needed, only the running agent knows.
    """
    from chappe.site.config import load  # here: `--help` does without them
    from chappe.site.elastic_inputs import dry_run

    with out.client() as client:
        demand = client.admin.demand(load(directory).site.id)
    found = dry_run(directory, demand)
    out.one(found, _plan, out, found)


def _plan(out: Out, found: dict[str, Any]) -> None:
    inputs = found["inputs"]
    out.say(f"policy {found['policy']}: {found['why']}")
    for w in inputs["waiting"]:
        time = f", {w['wall_s']} s" if w["wall_s"] else ""
        out.say(f"  wait  {w['jobs']} jobs of {w['nodes']} nodes, {w['cores']} cores{time}")
    for a in inputs["open"]:
        out.say(f"  open  {a['batch_job']}  {a['nodes']} nodes, {a['stage']}")
    for ask in found["asks"]:
        limit = "no limit" if ask["wall_s"] is None else f"{ask['wall_s']:.0f} s"
        where = f" in {ask['queue']}" if ask["queue"] else ""
        out.say(f"  ask   {ask['nodes']} nodes, {limit}{where}: {ask['why']}")
    for cancel in found["cancels"]:
        out.say(f"  back  {cancel['batch_job']}: {cancel['why']}")
    for unmet in found["unmet"]:
        out.say(f"  none  for {unmet['jobs']} jobs ({unmet['code']}): {unmet['why']}")


def _full_id(client: Client, short: str) -> str:
    from chappe.sdk.engine import one_of  # here: `--help` does without the SDK

    return one_of(short, [b.id for b in client.admin.batch_jobs()], "batch job")
