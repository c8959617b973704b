"""`chappe bus`: a hub's queues, and the brokers that it listens and speaks to."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import click

from chappe.cli.output import Out, when, with_output

if TYPE_CHECKING:
    from chappe.sdk.bus import QueueDetail

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group("bus")
def command() -> None:
    """Show queues, try dead letters again; set up a RabbitMQ broker."""


@command.command()
@with_output
def ls(out: Out) -> None:
    """List the queues of the hub: what is in them, and since when."""
    with out.client() as client:
        found = client.bus.queues()
    out.many(
        found.queues,
        (
            "QUEUE!",
            "DEPTH>",
            "WITH WORKERS>",
            "DELAYED>",
            "OLDEST>",
            "DEAD>",
            "ACKED>",
            "OTHERS SAY",
        ),
        lambda q: (
            q.name,
            str(q.depth),
            str(q.leased),
            str(q.delayed),
            "" if q.oldest_s is None else f"{q.oldest_s:.1f} s",
            str(q.dead),
            str(q.acked),
            q.others,
        ),
        "no queues",
    )


@command.command()
@click.argument("queue")
@with_output
def show(out: Out, queue: str) -> None:
    """Show QUEUE, and the oldest messages in it."""
    with out.client() as client:
        found = client.bus.queue(queue)
    out.one(found, _show, out, found)


def _show(out: Out, found: QueueDetail) -> None:
    q = found.queue
    out.facts(
        (
            ("queue", q.name + (f" (others say {q.others})" if q.others else "")),
            ("takes", " ".join(q.topics)),
            ("depth", f"{q.depth}: {q.ready} ready, {q.leased} with workers, {q.delayed} delayed"),
            ("dead", str(q.dead)),
            ("a message", f"{q.attempts} tries, for {q.lease_s:g} s each"),
            ("so far", f"{q.arrived} arrived, {q.acked} acknowledged, {q.retried} tried again"),
        )
    )
    rows = [
        (str(m.position), m.topic, m.state, str(m.tries), when(m.published_at), m.reason, m.body)
        for m in found.messages
    ]
    header = ("POSITION>", "TOPIC!", "STATE!", "TRIES>", "PUBLISHED!", "REASON", "BODY~")
    out.table(header, rows, "no messages")


@command.command()
@click.argument("queue", required=False)
@click.option("--limit", type=click.IntRange(1), default=100, help="How many (100).")
@with_output
def dead(out: Out, queue: str | None, limit: int) -> None:
    """List dead letters, of QUEUE or all, with the reason; an owner sees those of the project."""
    with out.client() as client:
        found = client.bus.dead(queue, limit)
    out.many(
        found,
        ("QUEUE!", "POSITION>", "TOPIC!", "TRIES>", "DIED!", "REASON", "BODY~"),
        lambda m: (
            m.queue,
            str(m.position),
            m.topic,
            str(m.tries),
            when(m.died_at),
            m.reason,
            m.body,
        ),
        "no dead letters",
    )


@command.command()
@click.argument("queue")
@click.argument("positions", nargs=-1, type=click.IntRange(1))
@with_output
def retry(out: Out, queue: str, positions: tuple[int, ...]) -> None:
    """Have the dead letters of QUEUE tried anew: all, or those at POSITIONS."""
    with out.client() as client:
        count = client.bus.revive(queue, positions or None)
    out.one({"queue": queue, "revived": count}, out.say, f"{queue}  {count} tried anew")


@command.command()
@click.argument("queue")
@click.option("--after", type=click.IntRange(0), required=True, help="The position to begin after.")
@click.option("--until", type=click.IntRange(0), help="The last position (the end).")
@with_output
def replay(out: Out, queue: str, after: int, until: int | None) -> None:
    """Put what was published since a position into QUEUE once more.

    What was dealt with is dealt with again; what is in the queue stays as it is.
    """
    with out.client() as client:
        count = client.bus.replay(queue, after, until)
    out.one({"queue": queue, "replayed": count}, out.say, f"{queue}  {count} put in again")


@command.command()
@with_output
def check(out: Out) -> None:
    """Send a message through the bus, and say how long it took."""
    with out.client() as client:
        done = client.bus.check()
    words = "the bus works" if done.outcome == "ok" else "no worker has taken it yet"
    out.one(done, out.say, f"{words}  {done.seconds * 1000:.0f} ms")
    if done.outcome != "ok":
        sys.exit(1)


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
