"""What commands print: tables and words for people, or with --json stable fields for programs.

One thing is one JSON document; a list is one object a line, so that it can be long and piped. Errors go
to stderr, in the same two forms.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec

import click
import msgspec

if TYPE_CHECKING:
    from rich.console import Console

    from chappe.sdk.errors import ChappeError
    from chappe.sdk.sync import Client

P = ParamSpec("P")

OK, FAILED, USAGE, NOT_FOUND, UNREACHABLE, REFUSED = range(6)

#: How phases, states and the like look in a terminal.
STYLES = {
    "waiting": "dim",
    "AWAITING_PARENTS": "dim",
    "runnable": "cyan",
    "PREPROCESSED": "cyan",
    "RESTART_READY": "cyan",
    "running": "bold blue",
    "RUNNING": "bold blue",
    "finished": "green",
    "JOB_FINISHED": "green",
    "failed": "bold red",
    "FAILED": "bold red",
    "cancelled": "yellow",
    "CANCELLED": "yellow",
    "revoked": "dim",
    "live": "green",
    "silent": "magenta",
    "unreachable": "magenta",
    "online": "green",
    "offline": "yellow",
}

#: Control characters as they are shown; a line's end and a tabulator are what they are.
_SHOWN = {c: f"\\x{c:02x}" for c in (*range(32), *range(127, 160)) if chr(c) not in "\n\t"}

_MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "error": ("✗", "bold red")}


def plain(text: str) -> str:
    """A text that others chose (a tag, a host's name, the end of an error output) as it may be printed:
    a terminal obeys control characters, so they are shown and not sent."""
    return text.replace("\r\n", "\n").translate(_SHOWN)


class Out:
    """Where one command writes, and in which form."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json

    @functools.cached_property
    def console(self) -> Console:
        """The terminal on stdout. Into a pipe nothing is cut or wrapped; NO_COLOR is respected."""
        from rich.console import Console  # here: `--help` and `--json` do without it

        return Console(highlight=False, width=None if sys.stdout.isatty() else 240)

    @property
    def wide(self) -> bool:
        """Whether there is room for what is not essential."""
        return self.console.width >= 100

    def client(self) -> Client:
        """A client by the user's configuration."""
        from chappe.sdk.sync import Client  # here: `--help` does without it

        return Client()

    def one(self, thing: Any, words: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Print one thing: its document, or what `words` (called with the rest) prints."""
        if self.as_json:
            self.line(thing)
        else:
            words(*args, **kwargs)

    def line(self, thing: Any) -> None:
        """Print one JSON document on a line of its own, at once: readers may be waiting for it."""
        click.echo(msgspec.json.encode(thing).decode())
        sys.stdout.flush()

    def say(self, text: str = "", style: str | None = None) -> None:
        """Print words (not with --json)."""
        if not self.as_json:
            self.console.print(plain(text), style=style, markup=False, soft_wrap=True)

    def many(
        self,
        things: Iterable[Any],
        columns: Sequence[str],
        row: Callable[[Any], Sequence[str]],
        empty: str,
    ) -> None:
        """Print a list: an object a line, or a table of `row`s, or `empty` when there are none."""
        if self.as_json:
            for thing in things:
                click.echo(msgspec.json.encode(thing).decode())
            return
        self.table(columns, [row(thing) for thing in things], empty)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]], empty: str) -> None:
        """Print a table; phases and states have their colours.

        A column's name may end in `!` (never cut), `>` (never cut, aligned right) or `~` (wrapped);
        the others are cut where the terminal is too narrow.
        """
        from rich.table import Table  # here: `--help` and `--json` do without it
        from rich.text import Text

        if not rows:
            self.say(empty)
            return
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
        for i, name in enumerate(columns):
            label, kind = name.rstrip("!>~"), name[-1]
            widest = max(len(label), *(len(cells[i]) for cells in rows))
            table.add_column(
                label,
                justify="right" if kind == ">" else "left",
                no_wrap=kind in "!>",
                width=widest if kind in "!>" else None,
            )
        for cells in rows:
            # Not the column is kept from wrapping but its text: rich narrows only columns that may wrap.
            table.add_row(
                *(
                    Text(
                        plain(cell),
                        STYLES.get(cell, ""),
                        no_wrap=not name.endswith("~"),
                        overflow="fold" if name.endswith("~") else "ellipsis",
                    )
                    for name, cell in zip(columns, cells, strict=True)
                )
            )
        self.console.print(table)

    def finding(self, part: str, level: str, what: str, remedy: str) -> None:
        """Print one finding of a check, with its remedy below it."""
        mark, style = _MARKS[level]
        self.say(f"{mark} {part + ': ' if part else ''}{what}", style)
        if remedy:
            self.say(f"  → {remedy}")

    def facts(self, pairs: Iterable[tuple[str, str | None]]) -> None:
        """Print names and values below each other; what is None or empty is left out."""
        from rich.table import Table  # here: `--help` and `--json` do without it
        from rich.text import Text

        shown = [(name, value) for name, value in pairs if value]
        if self.console.is_terminal:
            table = Table.grid(padding=(0, 2, 0, 0))
            for name, value in shown:
                table.add_row(name, Text(plain(value), STYLES.get(value, ""), overflow="fold"))
            self.console.print(table)
            return
        width = max((len(name) for name, _ in shown), default=0)
        for name, value in shown:
            first, *more = value.splitlines()
            self.say(
                "\n".join([f"{name:<{width}}  {first}", *(f"{'':<{width}}  {m}" for m in more)])
            )


def with_output(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command its `--json` and its `Out`, and turn errors into words and exit statuses."""

    @click.option("--json", "as_json", is_flag=True, help="Print JSON with stable fields.")
    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        from chappe.sdk.errors import ChappeError  # here: `--help` does without it

        out = Out(kwargs.pop("as_json"))
        try:
            command(out, *args, **kwargs)
        except ChappeError as error:
            fail(out, error)
        except KeyboardInterrupt:
            click.echo("stopped (jobs go on)", err=True)
            sys.exit(130)

    return wrapped


def fail(out: Out, error: ChappeError) -> NoReturn:
    """Print an error to stderr and exit with its status."""
    if out.as_json:
        body = {
            "code": error.code,
            "message": error.message,
            "field": error.field,
            "transient": error.transient,
        }
        text = msgspec.json.encode({"error": body}).decode()
    else:
        text = click.style("error: ", fg="red") + plain(error.message)
        if error.field and error.field not in error.message:
            text += plain(f"\n  field: {error.field}")
        text += plain(_items(error.details))
    click.echo(text, err=True)
    sys.exit(exit_status(error))


def _items(details: Any) -> str:
    """The first few items that a refused batch names."""
    if not isinstance(details, list):
        return ""
    bad = [d for d in details if isinstance(d, dict) and d.get("message")]
    lines = [f"\n  {d.get('id', '')} {d.get('field') or ''}: {d['message']}" for d in bad[:5]]
    more = f"\n  … and {len(bad) - 5} more" if len(bad) > 5 else ""
    return "".join(lines) + more


def exit_status(error: ChappeError) -> int:
    """The exit status that tells a script what kind of error it was."""
    from chappe.sdk import errors  # here: `--help` does without it

    for kind, status in (
        (errors.JobError, FAILED),
        (errors.WaitTimeout, FAILED),
        ((errors.Invalid, errors.ConfigMissing), USAGE),
        ((errors.NotFound, errors.Gone), NOT_FOUND),
        ((errors.Unavailable, errors.Busy), UNREACHABLE),
        ((errors.Unauthenticated, errors.Forbidden, errors.Conflict), REFUSED),
    ):
        if isinstance(error, kind):
            return status
    return FAILED


def ago(at: float | None) -> str:
    """How long ago an instant was (seconds since 1970): `5 s`, `3 min`, `2 h`, `9 d`."""
    return "" if at is None else span(max(0.0, time.time() - at))


def span(seconds: float) -> str:
    """A duration, short: `0.5 s`, `42 s`, `3 min`, `2.5 h`, `9 d`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    for size, unit, below in ((1, "s", 120), (60, "min", 7_200), (3_600, "h", 172_800)):
        if seconds < below:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"


def size(number: float) -> str:
    """A number of bytes, short: `512 B`, `3.4 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


def when(at: float | None) -> str:
    """An instant in the reader's own time zone, to the second."""
    return "" if at is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def short_ids(ids: Sequence[str]) -> dict[str, str]:
    """Each id's shortest prefix (at least its time, 13 characters) that is its own among `ids`.

    Ids begin with the time in milliseconds. Less of it would be unique in this list, and ambiguous
    among all that there is, where the prefix will be looked up.
    """
    ordered = sorted(set(ids))
    found: dict[str, str] = {}
    for i, one in enumerate(ordered):
        near = [*ordered[max(i - 1, 0) : i], *ordered[i + 1 : i + 2]]
        shared = max((_common(one, other) for other in near), default=0)
        found[one] = one[: max(13, shared + 1)].rstrip("-")
    return found


def _common(a: str, b: str) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), len(a))
