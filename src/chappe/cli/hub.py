"""`chappe hub`: the service itself."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import click

from chappe.cli.output import Out, size, when, with_output

F = TypeVar("F", bound=Callable[..., Any])
_FILE = click.Path(dir_okay=False, path_type=Path)


def _place(command: F) -> F:
    """Where the Hub's files and its database are."""
    for option in (
        click.option(
            "--db",
            metavar="URL",
            help="sqlite:///PATH, or postgresql://USER@HOST/NAME (CHAPPE_DB).",
        ),
        click.option(
            "--data",
            type=click.Path(file_okay=False, path_type=Path),
            help="Directory of its files (~/.local/share/chappe).",
        ),
    ):
        command = option(command)
    return command


@click.group("hub")
def command() -> None:
    """Start a hub; back it up and restore it."""


@command.command()
@_place
@click.option("--host", help="Address to listen on (127.0.0.1).")
@click.option("--port", type=click.IntRange(0, 65_535), help="Port (8461); 0 for a free one.")
@click.option("--url-host", help="Name that clients use, where it is not --host.")
@click.option("--tls-cert", type=_FILE, help="Certificate (PEM), instead of a self-made one.")
@click.option("--tls-key", type=_FILE, help="Its key (PEM).")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="What to log, as JSON on stderr (info).",
)
@click.option("--ready-file", type=_FILE, help="File to write the ready line to.")
@click.option(
    "--resource",
    "resources",
    multiple=True,
    metavar="NAME=N",
    help="Count a licence or the like over all sites; repeat.",
)
@click.option("--mail", type=_FILE, help="File that says which mail to take (mail.toml).")
@click.option(
    "--amqp",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File that names a RabbitMQ broker to read from and to publish at (amqp.toml).",
)
@click.option(
    "--workers",
    type=click.IntRange(0, 64),
    help="Threads that take from the bus's queues (4).",
)
@click.option(
    "--keep-days",
    type=click.FloatRange(min=0),
    help="Cut events and ended jobs older than this (0: keep all); needs --backups.",
)
@click.option(
    "--backups",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Directory of backups; nothing is cut that the newest good one does not hold.",
)
def start(data: Path | None, **given: Any) -> None:
    """Start a hub in the foreground.

    It is ready when it says so on stdout. The first start makes a certificate, a project, your token,
    and ~/.config/chappe/client.json (or the file that CHAPPE_CONFIG names), unless that is there.
    """
    main = _module("main")
    chosen = {name: value for name, value in given.items() if value is not None}
    sys.exit(main.run(main.HubOptions(data=data or main.default_data(), **chosen)))


@command.command()
@click.argument("file", type=_FILE)
@_place
@with_output
def backup(out: Out, file: Path, data: Path | None, db: str | None) -> None:
    """Write a backup of a hub's database to FILE, which must not exist.

    The hub may run meanwhile, on this machine. The copy is of one moment, is read through before it
    counts, and has its digest beside it, in FILE.manifest.
    """
    made = _module("backups").backup(data or _module("main").default_data(), db, file)
    out.one(made, out.say, f"{file}  {size(made.size_bytes)}  sha256 {made.sha256}")


@command.command()
@click.argument("file", type=_FILE)
@_place
@with_output
def restore(out: Out, file: Path, data: Path | None, db: str | None) -> None:
    """Put the backup FILE in the place of a hub's database. Stop the hub first.

    What is replaced is kept beside it. At the next start agents and pilots tell the hub what it does
    not know any more; nothing that runs is killed.
    """
    done = _module("backups").restore(data or _module("main").default_data(), db, file)
    out.one(done, _say_restored, out, done)


def _say_restored(out: Out, done: Any) -> None:
    out.say(f"restored what was there on {when(done.manifest.made_at)}; now start the hub")
    if done.replaced is not None:
        out.say(f"the database before it is kept as {done.replaced}")


def _module(name: str) -> ModuleType:
    """A module of the Hub, which is not installed everywhere."""
    try:
        return importlib.import_module(f"chappe.hub.{name}")
    except ImportError as error:
        click.echo(f"error: {error}: install the hub with pip install 'chappe[hub]'", err=True)
        sys.exit(1)
