"""`chappe hub`: the service itself."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.group("hub")
def command() -> None:
    """Start a hub."""


@command.command()
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory of its files (~/.local/share/chappe).",
)
@click.option("--db", metavar="URL", help="sqlite:///PATH, where it is not in the data directory.")
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
def start(data: Path | None, **given: Any) -> None:
    """Start a hub in the foreground.

    It is ready when it says so on stdout. The first start makes a certificate, a project, your token,
    and ~/.config/chappe/client.json (or the file that CHAPPE_CONFIG names), unless that is there.
    """
    try:
        from chappe.hub.main import HubOptions, default_data, run
    except ImportError as error:
        click.echo(f"error: {error}: install the hub with pip install 'chappe[hub]'", err=True)
        sys.exit(1)
    chosen = {name: value for name, value in given.items() if value is not None}
    sys.exit(run(HubOptions(data=data or default_data(), **chosen)))
