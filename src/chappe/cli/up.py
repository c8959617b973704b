"""`chappe up`: a hub and a site on this machine in one go, for a laptop. Run again, it says what runs."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import click

from chappe.cli.output import Out, with_output

if TYPE_CHECKING:
    from chappe.cli.local import Part

_HERE = Path("~/chappe/here")


@click.command("up")
@click.argument(
    "directory", type=click.Path(file_okay=False, path_type=Path), default=_HERE, required=False
)
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory of the hub's files (~/.local/share/chappe).",
)
@click.option("--port", type=click.IntRange(0, 65_535), help="The hub's port (the last one, 8461).")
@click.option("--foreground", is_flag=True, help="Stay, and stop both at the end (Ctrl-C).")
@click.option("--stop", is_flag=True, help="Stop both. Jobs that run go on.")
@with_output
def command(
    out: Out, directory: Path, data: Path | None, port: int | None, foreground: bool, stop: bool
) -> None:
    """Start a hub and a site on this machine, or say that they run.

    DIRECTORY is the site's (~/chappe/here), and its last part the site's name. Both are made at the first
    time, with your key and your client's configuration, and go on when you log out.
    """
    from chappe.cli.local import Local  # here: `--help` does without it

    local = Local.of(data, directory.expanduser())
    if stop:
        _say(out, local.stop())
        return
    # Before anything is started: what ends us from here on must end it in good order.
    ended = threading.Event()
    if foreground:
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, lambda *_: ended.set())
    try:
        parts = local.start(port)
        _say(out, parts)
        out.say(f"try   chappe run {local.site} -- hostname", "dim")
        sys.stdout.flush()
        if foreground:
            ended.wait()
    finally:
        if foreground:
            _say(out, local.stop())


def _say(out: Out, parts: list[Part]) -> None:
    for part in parts:
        out.one(part, out.say, f"{part.what:<5} {part.words}")
