"""`chappe sim`: simulations, as their messages tell of them."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

import click

from chappe.cli.output import Out, ago, short_ids, span, when, with_output

if TYPE_CHECKING:
    from chappe import Event, Simulation, SimulationJobView, SimulationView

STATES = ("queued", "running", "late", "silent", "lost_end", "complete", "error")
_KINDS = ("compute", "post", "checker")
#: How jobs are counted in a list: under which letter each state stands.
_MARKS = {
    "running": "r",
    "late": "l",
    "silent": "s",
    "lost_end": "?",
    "complete": "c",
    "error": "e",
}


@click.group("sim")
def command() -> None:
    """Follow simulations: list, show, watch, compare cards, purge.

    A simulation is named by its simuid or by any unambiguous beginning of it.
    """


def _producer(function: Any) -> Any:
    return click.option(
        "--producer", metavar="NAME", help="Whose, where several tell of the same simuid."
    )(function)


@command.command()
@click.option("--name", metavar="NAME", help="Of this name; NAME* for a beginning.")
@click.option("--state", type=click.Choice(STATES), help="In this state.")
@click.option("--experiment", metavar="NAME", help="Of this experiment.")
@click.option("--model", metavar="NAME", help="Of this model.")
@click.option("--space", metavar="NAME", help="Of this space (PROD, TEST …).")
@click.option("--machine", metavar="NAME", help="On this machine.")
@click.option("--centre", metavar="NAME", help="At this computing centre.")
@click.option("--login", metavar="NAME", help="Of this login.")
@click.option("--account", metavar="NAME", help="On this accounting project.")
@_producer
@click.option("--all", "all_", is_flag=True, help="Earlier tries and purged ones as well.")
@click.option("-n", "--limit", type=click.IntRange(1), default=100, help="At most so many (100).")
@with_output
def ls(out: Out, name: str | None, all_: bool, limit: int, **given: Any) -> None:
    """List simulations, the last heard of for the first time first."""
    where = {key: value for key, value in given.items() if value is not None}
    if name is not None:
        key = "name_prefix" if name.endswith("*") else "name"
        where[key] = name.removesuffix("*")
    with out.client() as client:
        found = list(client.simulations(limit + 1, **where, all=all_))
    ids = short_ids([view.id for view in found[:limit]])
    columns = (
        "ID!",
        "NAME",
        "TRY>",
        "STATE!",
        "COMPUTE!",
        "POST!",
        "PROGRESS>",
        "MACHINE",
        "HEARD>",
    )
    out.many(found[:limit], columns, lambda view: _row(view, ids[view.id]), "no simulations")
    if len(found) > limit:
        out.say(f"… the first {limit}; narrow the filter, or use a larger --limit", "dim")


def _row(view: SimulationView, id: str) -> tuple[str, ...]:
    return (
        id,
        view.name,
        str(view.try_number or ""),
        "purged" if view.purged else view.state,
        _counts(view, "compute"),
        _counts(view, "post"),
        _percent(view.progress),
        view.machine,
        ago(view.changed_at),
    )


def _counts(view: SimulationView, kind: str) -> str:
    """`3c 1r`: jobs of a kind by state."""
    named = ((mark, view.jobs.get(f"{kind}.{state}", 0)) for state, mark in _MARKS.items())
    return " ".join(f"{count}{mark}" for mark, count in named if count)


def _percent(progress: float | None) -> str:
    return "" if progress is None else f"{100 * progress:.0f} %"


@command.command()
@click.argument("sim")
@_producer
@with_output
def show(out: Out, sim: str, producer: str | None) -> None:
    """Show one simulation: state, progress, jobs, tries, what was told."""
    with out.client() as client:
        found = client.simulation(sim, producer).show()
    if out.as_json:
        out.line(found)
        return
    tries = [
        f"{t.number}{'*' if t.active else ''} {t.id}  {'purged' if t.purged else t.state}"
        for t in found.tries
    ]
    counts = [f"{kind}: {text}" for kind in _KINDS if (text := _counts(found, kind))]
    stuck = f"yes: {found.repeats} jobs reached {found.reached} and did not pass it"
    out.facts(
        (
            ("id", found.id),
            ("name", found.name),
            ("state", "purged" if found.purged else found.state),
            ("progress", _percent(found.progress)),
            ("reached", found.reached),
            ("calendar", found.calendar),
            ("started", when(found.started_at)),
            ("ended", when(found.ended_at)),
            ("needs a person", stuck if found.stuck else None),
            ("jobs", "\n".join(counts)),
            ("latest job", found.latest_job),
            ("tries", "\n".join(tries) if len(tries) > 1 else None),
            ("producer", found.producer),
            *((name, value) for name, value in found.fields.items() if name != "name"),
            ("metrics", "\n".join(f"{name} = {v:g}" for name, v in found.metrics.items())),
            ("messages", "\n".join(f"{n} {kind}" for kind, n in sorted(found.types.items()))),
            ("from the future", str(found.suspect or "")),
        )
    )


@command.command()
@click.argument("sim")
@click.option("--kind", type=click.Choice(_KINDS), help="Only of this kind.")
@_producer
@with_output
def jobs(out: Out, sim: str, kind: str | None, producer: str | None) -> None:
    """List the jobs of a simulation, in the order in which they began."""
    with out.client() as client:
        found = client.simulation(sim, producer).jobs()
    shown = [job for job in found if kind in (None, job.kind)]
    ids = short_ids([job.id for job in shown])
    columns = ("ID!", "KIND!", "STATE!", "STARTED!", "ENDED!", "REACHED!", "FAILED>", "I/O>", "IS")
    out.many(shown, columns, lambda job: _job(job, ids[job.id]), "no jobs")


def _job(job: SimulationJobView, id: str) -> tuple[str, ...]:
    post = job.fields.get("postProcessingName", "")
    return (
        id,
        job.kind,
        job.state,
        when(job.started_at),
        when(job.ended_at),
        job.reached or "",
        str(job.commands or ""),
        str(job.actions or ""),
        f"job {job.job}" if job.job else post or job.scheduler_id,
    )


@command.command()
@click.argument("sim")
@click.option("-n", "--limit", type=click.IntRange(1), default=50, help="At most so many (50).")
@_producer
@with_output
def messages(out: Out, sim: str, limit: int, producer: str | None) -> None:
    """List what a simulation said, newest first; `chappe message ls` has more filters."""
    with out.client() as client:
        found = client.simulation(sim, producer).messages(limit)
    out.many(
        found,
        ("N>", "SAID!", "TOOK>", "TYPE!", "CODE!", "JOB", "UID"),
        lambda m: (
            str(m.n),
            when(m.at or None),
            span(max(0.0, m.received_at - m.at)) if m.at else "",
            m.type,
            m.code,
            m.job,
            m.uid,
        ),
        "no messages",
    )


@command.command()
@click.argument("sim")
@_producer
@with_output
def watch(out: Out, sim: str, producer: str | None) -> None:
    """Print what changes of a simulation, until interrupted."""
    with out.client() as client:
        simulation = client.simulation(sim, producer)
        now = simulation.show()
        out.one(now, out.say, f"{now.name or now.id}  {now.state}  {_percent(now.progress)}")
        for event in simulation.watch():
            out.one(event, _event, out, event)


def _event(out: Out, event: Event) -> None:
    data = event.data
    told = ", ".join(f"{n} {kind}" for kind, n in data.get("types", {}).items())
    values = ", ".join(f"{name} = {v:g}" for name, v in data.get("metrics", {}).items())
    step = event.new if event.old == event.new else f"{event.old} → {event.new}"
    parts = (when(event.received_at), step, _percent(data.get("progress")), told, values)
    out.say("  ".join(part for part in parts if part))


@command.command()
@click.argument("sim")
@click.option("--diff", "other", metavar="TRY", help="Compare with this try (number or simuid).")
@_producer
@with_output
def card(out: Out, sim: str, other: str | None, producer: str | None) -> None:
    """Print a simulation's configuration card, or how it differs from that of another try."""
    with out.client() as client:
        simulation = client.simulation(sim, producer)
        text = simulation.card()
        if other is not None:
            before = client.simulation(_try(simulation, other), simulation.producer)
            text = "".join(
                difflib.unified_diff(
                    before.card().splitlines(keepends=True),
                    text.splitlines(keepends=True),
                    before.uid,
                    simulation.uid,
                )
            )
    out.one({"id": simulation.uid, "text": text}, click.echo, text, nl=not text.endswith("\n"))


def _try(simulation: Simulation, other: str) -> str:
    """The simuid of a try that is named by its number."""
    numbers = {str(t.number): t.id for t in simulation.show().tries}
    return numbers.get(other, other)


@command.command()
@click.argument("sim")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@_producer
@with_output
def purge(out: Out, sim: str, yes: bool, producer: str | None) -> None:
    """Hide a simulation for ever, with the tries before it.

    Its messages stay in the journal; what still comes does not bring it back.
    """
    with out.client() as client:
        simulation = client.simulation(sim, producer)
        if not yes:
            name = simulation.show().name or simulation.uid
            click.confirm(f"hide {name} for ever?", abort=True, err=True)
        found = simulation.purge()
    out.one(found, out.say, f"{found.id}  purged")
