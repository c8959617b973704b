"""`chappe job`: submit Jobs, look at them, act on them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from chappe.cli import joblogs
from chappe.cli.job_acts import cancel, hold, release, retry, rm, update
from chappe.cli.options import (
    array_options,
    conditions,
    filters,
    job_options,
    moment,
    offers,
    options_of,
)
from chappe.cli.output import FAILED, Out, ago, short_ids, size, span, when, with_output

if TYPE_CHECKING:
    from chappe import Event, JobView

_SHOWN = 50


@click.group("job")
def command() -> None:
    """Submit, list, watch, cancel, retry, hold, update and delete jobs.

    A job is named by its id or by any unambiguous beginning of it (4 hex digits or more).
    """


command.add_command(joblogs.command)


@command.command()
@click.argument("app", required=False, shell_complete=offers("apps"))
@click.option(
    "-s",
    "--site",
    "sites",
    multiple=True,
    shell_complete=offers("sites"),
    help="Where it may run; repeat for several.",
)
@click.option("-p", "--param", "params", multiple=True, metavar="K=V", help="A parameter; repeat.")
@click.option(
    "--file", "file", type=click.File("rb"), help="Jobs as JSON or JSON lines; - for stdin."
)
@click.option("--wait", is_flag=True, help="Wait for the end; exit 1 unless all succeeded.")
@array_options
@job_options
@with_output
def submit(
    out: Out,
    app: str | None,
    sites: tuple[str, ...],
    params: tuple[str, ...],
    file: Any,
    wait: bool,
    array: str | None,
    dialect: str | None,
    **given: Any,
) -> None:
    """Submit one job of APP, or many from a file.

    A file may hold a whole graph. Its objects have the fields app (or command), site or sites,
    parameters, and any option of the SDK (name, cores, wall_s, tags, parents …); parents are ids, or
    names of jobs further up.
    """
    from chappe.cli import job_file  # here: `--help` does without the SDK
    from chappe.sdk.errors import Invalid

    with out.client() as client:
        options = options_of(client, given)
        if file is not None:
            if params or array:
                raise Invalid("with --file, parameters and jobs stand in the file", field="param")
            drafts = job_file.read(file.read(), app, sites, options)
        elif app is None or not sites:
            raise Invalid("give an app and a site: chappe job submit APP -s SITE", field="app")
        else:
            draft = job_file.from_texts(client, app, sites, params, options)
            drafts = [draft] if array is None else draft.array(array, dialect or "")
        jobs = client.submit(drafts)
        if wait:
            client.wait_all(jobs, progress=not out.as_json)
        for job in jobs[: None if out.as_json else _SHOWN]:
            state = {"state": job.state} if wait else {}
            line = "  ".join(filter(None, (job.id, job.name, *state.values())))
            out.one({"id": job.id, "name": job.name, **state}, out.say, line)
        if len(jobs) > _SHOWN:
            out.say(f"… {len(jobs)} jobs in all")
        if wait and not all(job.ok for job in jobs):
            sys.exit(FAILED)


@command.command()
@filters
@click.option("-n", "--limit", type=int, default=100, help="At most so many (100); 0 for all.")
@with_output
def ls(out: Out, limit: int, **given: Any) -> None:
    """List jobs, newest first."""
    with out.client() as client:
        where = conditions(client, given)
        sites = {} if out.as_json else client.site_names()
        views: list[JobView] = []
        more = False
        for view in client.views(**where):
            if limit and len(views) == limit:
                more = True
                break
            if out.as_json:
                out.line(view)
            views.append(view)
    if out.as_json:
        return
    ids = short_ids([view.id for view in views])
    columns = ("ID!", "NAME", *(["APP"] if out.wide else []), "SITE", "STATE!", "TRY>", "SINCE>")
    rows = [_row(view, ids[view.id], sites, wide=out.wide) for view in views]
    out.table(columns, rows, "no jobs")
    if more:
        out.say(f"… the newest {limit}; narrow the filter, or use --limit 0 for all", "dim")


@command.command()
@click.option(
    "--since", type=moment, metavar="TIME", help="From: 7d (ago; default 24h), 2026-05-01."
)
@click.option("--until", type=moment, metavar="TIME", help="To (now).")
@click.option(
    "--by", default="site,app", show_default=True, help="site, app, both with a comma, or nothing."
)
@with_output
def stats(out: Out, since: float | None, until: float | None, by: str) -> None:
    """Show throughput, utilisation, waiting and run times of jobs that ended."""
    with out.client() as client:
        apart = [] if by == "nothing" else [name.strip() for name in by.split(",")]
        found = client.stats(since, until, apart)
    if out.as_json:
        for row in found.rows():
            out.line(row)
        return
    if found.one_in > 1:
        out.say(f"of {found.jobs} jobs one in {found.one_in} was looked at", "dim")
    counts = ("DONE>", "FAILED>", "CANCELLED>", "PER HOUR>")
    names = ("SITE", "APP", *counts, "WAIT>", "P90>", "RUN>", "P90>", "CORE-H>", "USED>")
    out.table(names, [_figures(row) for row in found.rows()], "no job ended in that time")


def _figures(row: dict[str, Any]) -> list[str]:
    """One line of `stats`: times as people read them, and what is not known left out."""

    def time(name: str) -> str:
        return "" if row[name] is None else span(row[name])

    used = "" if row["utilisation"] is None else f"{100 * row['utilisation']:.0f} %"
    site = "all" if row["site"] is None else row["site"] or "(none)"
    app = "all" if row["app"] is None else row["app"] or "(command)"
    counts = [str(row[name]) for name in ("finished", "failed", "cancelled")]
    times = [time(name) for name in ("wait_median_s", "wait_p90_s", "run_median_s", "run_p90_s")]
    return [site, app, *counts, f"{row['per_hour']:.3g}", *times, f"{row['core_hours']:.3g}", used]


@command.command()
@filters
@with_output
def count(out: Out, **given: Any) -> None:
    """Count jobs that match; without a condition, by site, app and state."""
    with out.client() as client:
        where = conditions(client, given)
        if where:
            found = client.count(**where)
            words = f"{found.count:,}".replace(",", " ") + ("" if found.exact else "+")
            out.one(found, out.say, words)
            return
        names = client.site_names()
        rows = sorted(
            (names.get(site, site), app, state, many) for site, app, state, many in client.counts()
        )
    if out.as_json:
        for site, app, state, many in rows:
            out.line({"site": site, "app": app, "state": state, "count": many})
        return
    shown = [(site or "(any)", app or "(command)", s, str(many)) for site, app, s, many in rows]
    out.table(("SITE", "APP", "STATE!", "JOBS>"), shown, "no jobs")


def _row(view: JobView, short: str, sites: dict[str, str], *, wide: bool) -> tuple[str, ...]:
    app = view.app or "(command)"
    names = (view.name, app) if wide else (view.name or app,)
    state = "unreachable" if view.unreachable else _state(view)
    tries = f"{view.attempt}/{view.max_attempts}"
    return short, *names, _places(view, sites, "|"), state, tries, ago(view.changed_at)


@command.command()
@click.argument("id", shell_complete=offers("jobs"))
@with_output
def show(out: Out, id: str) -> None:
    """Show all that is known of one job."""
    with out.client() as client:
        view = client.job(id).refresh()
        sites = {} if out.as_json else client.site_names()
    out.one(view, out.facts, _facts(view, sites))


def _state(view: JobView) -> str:
    """The state, or that it is held where it would otherwise wait to be started."""
    held = view.held_at is not None and view.session is None
    return "held" if held and view.phase in ("waiting", "runnable") else view.state


def _places(view: JobView, sites: dict[str, str], between: str) -> str:
    """The Site that a Job belongs to, or those that may take it, by name."""
    ids = view.sites if view.site is None else [view.site]
    return between.join(sites.get(one, one) for one in ids)


def _facts(view: JobView, sites: dict[str, str]) -> list[tuple[str, str | None]]:
    from chappe.sdk.errors import words  # here: `--help` does without the SDK

    outcome, spec = view.outcome, view.spec
    usage = None if outcome is None else outcome.usage
    state = f"{view.state} ({view.phase})" + (
        ", its pilot is unreachable" if view.unreachable else ""
    )
    pairs: list[tuple[str, str | None]] = [
        ("id", view.id),
        ("name", view.name),
        ("state", state),
        ("attempt", f"{view.attempt} of {view.max_attempts}"),
        ("app", view.app),
        ("site", _places(view, sites, " or ")),
        ("workdir", view.workdir),
        ("signed", "yes" if view.signed else "no"),
        ("created", when(view.created_at)),
        ("changed", when(view.changed_at)),
        ("not before", when(view.not_before)),
        ("held since", when(view.held_at)),
        ("cancel asked", when(view.cancel_at)),
        ("waits for", f"{view.waiting_parents} parents" if view.waiting_parents else None),
        ("tags", " ".join(f"{k}={v}" for k, v in view.tags.items())),
    ]
    if spec is not None:
        import shlex

        pairs += [
            ("command", None if spec.command is None else shlex.join(spec.command)),
            ("task", f"{spec.task.index} of array {spec.task.array}" if spec.task else None),
            ("parameters", " ".join(f"{k}={v}" for k, v in spec.parameters.items())),
            ("parents", "\n".join(spec.parents)),
        ]
    if outcome is not None:
        pairs.append(("outcome", words(outcome)))
        pairs.append(("result", outcome.result_sha256 and f"sha256 {outcome.result_sha256}"))
    if usage is not None:
        pairs.append(
            (
                "used",
                f"{span(usage.wall_s)} wall, {span(usage.user_s + usage.system_s)} CPU, "
                f"{size(usage.max_rss_bytes)} memory, {size(usage.written_bytes)} written",
            )
        )
        pairs.append(("read, written", _io(usage)))
    if outcome is not None:
        pairs.append(("hook", None if outcome.hook is None else _hook(outcome.hook)))
        pairs.append(("stderr", outcome.tail.rstrip()))
    return pairs


def _io(usage: Any) -> str | None:
    io = usage.io
    if io is None:
        return None
    storage = f"{size(io.storage_read_bytes)}, {size(io.storage_written_bytes)} of it storage"
    if io.source == "rusage":
        return f"{storage} (no more is known)"
    return (
        f"{size(io.read_bytes)} in {io.read_calls} calls, {size(io.written_bytes)} in "
        f"{io.write_calls}; {storage}; {io.files} files"
    )


def _hook(hook: Any) -> str:
    what = hook.problem or (f"set {hook.state}" if hook.state else "went well")
    changed = " ".join(f"{k}={v}" for k, v in hook.parameters.items())
    return f"{hook.name} {what}" + (f" with {changed}" if changed else "")


@command.command()
@click.argument("ids", nargs=-1, required=True, shell_complete=offers("jobs"))
@with_output
def watch(out: Out, ids: tuple[str, ...]) -> None:
    """Print changes of state until all have ended.

    Exit 1 unless all succeeded.
    """
    with out.client() as client:
        jobs = {job.id: job for job in map(client.job, ids)}
        phases = {}
        for event in client.changes(jobs):
            phases[event.subject] = event.phase
            out.one(event, print_change, out, event, jobs[event.subject].name)
    if any(phase != "finished" for phase in phases.values()):
        sys.exit(FAILED)


def print_change(out: Out, event: Event, name: str) -> None:
    """One line for one change of a Job's state, with how the attempt ended."""
    from chappe.sdk.errors import words  # here: `--help` does without the SDK
    from chappe.sdk.feed import outcome_of

    outcome = outcome_of(event)
    how = f"  {words(outcome)}" if outcome is not None else ""
    label = name or event.subject
    at = when(event.occurred_at)[11:]
    out.say(f"{at}  {label}  {event.new or event.kind}{how}", _style(event.phase))


def _style(phase: str | None) -> str | None:
    from chappe.cli.output import STYLES

    return STYLES.get(phase or "")


@command.command()
@click.argument("id", shell_complete=offers("jobs"))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write it to this file.")
@with_output
def result(out: Out, id: str, output: Path | None) -> None:
    """Get a finished job's result; waits for the end. Without -o, bytes go to stdout."""
    from chappe.sdk.errors import Invalid, NotFound  # here: `--help` does without the SDK

    with out.client() as client:
        job = client.job(id)
        found = job.result_file()
    if found is None:
        raise NotFound(f"job {job.id} has no result: its app names no result file")
    about = {"id": job.id, "media": found.media, "size_bytes": len(found.body), "path": None}
    if output is not None:
        about["path"] = str(found.save(output))
        out.one(about, out.say, f"{output}  {found.media}, {size(len(found.body))}")
    elif out.as_json:
        value = found.decode()
        out.line({**about, "value": value if isinstance(value, dict | list | str | int) else None})
    elif sys.stdout.isatty() and found.media != "application/json":
        raise Invalid(f"the result is {found.media}: name a file with -o", field="output")
    else:
        sys.stdout.buffer.write(found.body)


for _act in (cancel, retry, rm, hold, release, update):
    command.add_command(_act)
