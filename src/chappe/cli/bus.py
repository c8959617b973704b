"""`chappe bus`: the brokers that a hub listens and speaks to."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import click

from chappe.cli.output import Out, with_output

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group("bus")
def command() -> None:
    """Set up a RabbitMQ broker; say what its accounts may do."""


@command.command()
@click.argument("file", type=_FILE)
@with_output
def setup(out: Out, file: Path) -> None:
    """Make the exchanges, queues and bindings at the broker that FILE (amqp.toml) names.

    What is there is left as it is, and refused if it is there with other arguments. The hub does the same
    whenever it connects.
    """
    config = _module("chappe.bus.amqp_config").load(file)
    done = _module("chappe.bus.amqp_setup").setup(config)
    out.one(done, _say_done, out, done.exchanges, done.queues)


def _say_done(out: Out, exchanges: tuple[str, ...], queues: tuple[str, ...]) -> None:
    out.say(f"exchanges  {' '.join(exchanges)}")
    out.say(f"queues     {' '.join(queues)}")


@command.command()
@click.argument("account")
@click.option(
    "--role",
    type=click.Choice(["hub", "producer", "application"]),
    required=True,
    help="hub: declares, reads and writes; producer: publishes under its own name; application: "
    "reads events through queues of its own.",
)
@click.option(
    "--queue", "queues", multiple=True, help="A queue that an application reads too; repeat."
)
@click.option("--vhost", default="/", show_default=True, help="The broker's virtual host.")
@click.option("--api", metavar="URL", help="Set them through this management API.")
@click.option("--admin", default="admin", show_default=True, help="Its administrator.")
@click.option("--password-file", type=_FILE, help="The administrator's password.")
@with_output
def permissions(
    out: Out,
    account: str,
    role: str,
    queues: tuple[str, ...],
    vhost: str,
    api: str | None,
    admin: str,
    password_file: Path | None,
) -> None:
    """Print what an account of the broker may do, as commands of rabbitmqctl; with --api, set it."""
    from chappe.sdk.errors import Invalid  # here: `--help` does without the SDK

    module = _module("chappe.bus.amqp_permissions")
    given = module.permissions(account, module.Role(role), queues)
    if api is not None:
        if password_file is None:
            raise Invalid("--api wants --password-file", field="password_file")
        module.apply(given, vhost, api, admin, password_file)
    lines = module.commands(given, vhost)
    out.one(given._asdict() | {"commands": lines}, out.say, "\n".join(lines))


def _module(name: str) -> ModuleType:
    """A part of the hub, which is not installed everywhere."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        click.echo(f"error: {error}: install it with pip install 'chappe[hub,amqp]'", err=True)
        sys.exit(1)
