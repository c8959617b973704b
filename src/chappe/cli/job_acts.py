"""`chappe job cancel|retry|rm|hold|release|update`: on Jobs by id, or on all that match a filter.

By filter, what matches is frozen and counted first, and the person is asked.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from chappe.cli.options import conditions, filters, offers
from chappe.cli.output import Out, with_output

if TYPE_CHECKING:
    from collections.abc import Callable

    from chappe.sdk.selections import ActView, Changes, Selection, Verb
    from chappe.sdk.sync import Client

#: Fewer Jobs than this are done before a bar could be read.
_BAR_FROM = 5_000
_DONE = {"retry": "retried", "delete": "deleted", "release": "released", "update": "updated"}


def _which(command: Callable[..., None]) -> Callable[..., None]:
    """Ids, or a filter and whether to ask."""
    command = click.option("-y", "--yes", is_flag=True, help="Do not ask, however many match.")(
        command
    )
    return click.argument("ids", nargs=-1, shell_complete=offers("jobs"))(filters(command))


@click.command()
@_which
@with_output
def cancel(out: Out, **given: Any) -> None:
    """Cancel jobs by id, or all that match a filter."""
    _act(out, "cancel", given)


@click.command()
@_which
@with_output
def retry(out: Out, **given: Any) -> None:
    """Run failed or cancelled jobs again, by id or filter.

    By id, a job whose signature allows no more is signed anew with your key.
    """
    _act(out, "retry", given)


@click.command()
@_which
@with_output
def rm(out: Out, **given: Any) -> None:
    """Delete jobs that have ended, by id or filter."""
    _act(out, "delete", given)


@click.command()
@_which
@with_output
def hold(out: Out, **given: Any) -> None:
    """Keep jobs from being started until they are released, by id or filter.

    What runs goes on.
    """
    _act(out, "hold", given)


@click.command()
@_which
@with_output
def release(out: Out, **given: Any) -> None:
    """Let held jobs be started again, by id or filter."""
    _act(out, "release", given)


@click.command()
@click.option("--priority", "set_priority", type=int, help="Higher runs first.")
@click.option("--set-tag", "set_tags", multiple=True, metavar="K=V", help="Set a tag; repeat.")
@click.option("--untag", multiple=True, metavar="K", help="Remove a tag; repeat.")
@click.option(
    "--set-data", multiple=True, metavar="K=JSON", help="Set a member of data; null removes it."
)
@_which
@with_output
def update(
    out: Out,
    set_priority: int | None,
    set_tags: tuple[str, ...],
    untag: tuple[str, ...],
    set_data: tuple[str, ...],
    **given: Any,
) -> None:
    """Change the priority, tags or data of jobs, by id or filter."""
    from chappe.sdk.selections import change_of  # here: `--help` does without the SDK
    from chappe.sdk.texts import pairs

    changes: Changes = {}
    if set_priority is not None:
        changes["priority"] = set_priority
    if set_tags:
        changes["tags"] = dict(pairs(set_tags, "set-tag"))
    if untag:
        changes["untag"] = list(untag)
    if set_data:
        changes["data"] = {k: _value(v) for k, v in pairs(set_data, "set-data")}
    change_of(**changes)
    _act(out, "update", given, changes)


def _value(text: str) -> Any:
    """JSON, or else the text itself, as people write texts without quotes."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _act(out: Out, verb: Verb, given: dict[str, Any], changes: Changes | None = None) -> None:
    from chappe.sdk.errors import Invalid  # here: `--help` does without the SDK
    from chappe.sdk.selections import change_of

    ids, yes = given.pop("ids"), given.pop("yes")
    with out.client() as client:
        where = conditions(client, given)
        if ids and where:
            raise Invalid("give ids or a filter, not both", field="filter")
        if ids:
            _by_ids(out, client, verb, ids, changes)
            return
        if not where:
            raise Invalid(f"say which jobs to {verb}: ids, or at least one condition", field="ids")
        selection = client.select(**where)
        if not _sure(out, verb, selection, yes=yes):
            return
        change = None if changes is None else change_of(**changes)
        counts = _with_bar(out, verb, selection, change)
    words = ", ".join(f"{n} {code}" for code, n in sorted(counts.items())) or "no job matches"
    out.one(counts, out.say, words)


def _by_ids(
    out: Out, client: Client, verb: Verb, ids: tuple[str, ...], changes: Changes | None
) -> None:
    """One by one: each may need an error, or a signature, of its own."""
    for one in ids:
        job = client.job(one)
        code = getattr(job, verb)(**(changes or {})) or _DONE[verb]
        out.one({"id": job.id, "code": code}, out.say, f"{job.id}  {code}")


def _sure(out: Out, verb: Verb, selection: Selection, *, yes: bool) -> bool:
    """Whether to go on: the person was told how many match, and said so."""
    from chappe.sdk.errors import Invalid  # here: `--help` does without the SDK

    many = f"{selection.count:,}".replace(",", " ")
    words = f"{many} job matches" if selection.count == 1 else f"{many} jobs match"
    if selection.count and not yes:
        if out.as_json or not sys.stdin.isatty():
            raise Invalid(f"{words}: add --yes to {verb} them without being asked", field="yes")
        if not click.confirm(f"{words}; {verb} them?", err=True):
            out.say("nothing was done")
            return False
    elif not out.as_json and selection.count:
        out.say(words, "dim")
    return True


def _with_bar(out: Out, verb: Verb, selection: Selection, change: Any) -> dict[str, int]:
    """The act, with a bar on a terminal when it takes long."""
    if out.as_json or selection.count < _BAR_FROM or not sys.stderr.isatty():
        return selection.act(verb, change)
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=selection.count)

        def told(act: ActView) -> None:
            bar.update(task, completed=act.done)

        return selection.act(verb, change, told)
