"""`chappe site`: a directory and an agent, on the machine where Jobs are to run."""

from __future__ import annotations

import getpass
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from chappe.cli.output import FAILED, OK, Out, ago, when, with_output

if TYPE_CHECKING:
    from chappe.site.service import Service
    from chappe.site.status import AgentStatus

_DIRECTORY = click.argument(
    "directory", type=click.Path(file_okay=False, path_type=Path), default=Path()
)


@click.group("site")
def command() -> None:
    """Make, check, start and stop sites.

    A site is a directory, under your own account, on the machine where jobs are to run. DIRECTORY is
    the current one unless given.
    """


@command.command()
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@click.option("--name", help="What the hub and users call it (the directory's name).")
@click.option(
    "--trust",
    metavar="KEY",
    help="Trust this public key (chappe doctor shows it) instead of the one on this machine.",
)
@click.option(
    "--platform",
    is_flag=True,
    help="Look at this machine: write its scheduler, partitions and limits into site.toml.",
)
@with_output
def init(out: Out, directory: Path, name: str | None, trust: str | None, platform: bool) -> None:
    """Make DIRECTORY a site of the hub. It trusts your key, and runs what that key has signed.

    With --platform site.toml says what was found: scheduler, partitions and their limits, interfaces,
    modules, shared file systems. Look it over before you start the agent.
    """
    from chappe.site.init import HubAccess, init_site  # here: `--help` does without them

    with out.client() as client:
        access = HubAccess(client.settings.url, client.settings.token, client.settings.ca_file)
        key = trust or client.public_key()
        called = name or re.sub(r"[^A-Za-z0-9_.-]", "-", directory.resolve().name)
        found = None
        if platform:
            from chappe.site import machine_probe  # here: others do without it

            found = machine_probe.look()
        made = init_site(directory, called, access, key, comment=getpass.getuser(), machine=found)
        client.know_site(made.id, made.key)

    def words() -> None:
        out.say(f"{made.directory} is the site {made.name!r}; it trusts {key}")
        if found is not None:
            here = f"{found.kind or 'no scheduler'}, {len(found.partitions)} partitions"
            out.say(f"  found: {here}; look over {made.directory}/site.toml")
        out.say(f"  what can be run is described in {made.directory}/apps/*.toml (see hello.toml)")
        out.say(f"  next: chappe site start {directory}")

    out.one(made, words)


@command.command()
@_DIRECTORY
@with_output
def key(out: Out, directory: Path) -> None:
    """Show the site's own public key, by which users know what its functions returned.

    Users compare the fingerprint, its second line, with what `chappe site keys` shows them.
    """
    from chappe.site.init import public_key  # here: `--help` does without it

    found = public_key(directory)
    out.one(found, out.say, f"{found.key}\n{found.fingerprint}")


@command.command()
@with_output
def keys(out: Out) -> None:
    """List by which key each site is known here, and which one the hub tells. Exit 1 when one was changed.

    A site's key is taken when a function is first sent there, and only compared from then on.
    """
    with out.client() as client:
        found = client.site_keys()
    out.many(
        found,
        ("SITE!", "STATE!", "FINGERPRINT"),
        lambda k: (k.name, k.state, k.fingerprint or k.known),
        "no sites: make one with chappe site init DIRECTORY",
    )
    changed = [k for k in found if k.state == "changed"]
    for k in changed:
        click.echo(
            f"site {k.name} was known by {k.known}: somebody may be in between. If its owner made a new "
            f"key, ask for its fingerprint (chappe site key), then: chappe site accept {k.name} FINGERPRINT",
            err=True,
        )
    sys.exit(FAILED if changed else OK)


@command.command()
@click.argument("name")
@click.argument("fingerprint")
@with_output
def accept(out: Out, name: str, fingerprint: str) -> None:
    """Know site NAME by its new key, which has this FINGERPRINT.

    Ask the site's owner for it: `chappe site key` shows it there. Refused when the hub tells another key.
    """
    with out.client() as client:
        found = client.accept_site_key(name, fingerprint)
    out.one(found, out.say, f"{found.name}  known by {found.fingerprint}")


@command.command()
@_DIRECTORY
@with_output
def check(out: Out, directory: Path) -> None:
    """Look a site over: files, permissions, hub, scheduler, disk. Exit 1 when something is wrong."""
    from chappe.site.check import check_site  # here: `--help` does without it

    findings = check_site(directory)
    for found in findings:
        out.one(found, out.finding, "", str(found.level), found.what, found.remedy)
    sys.exit(FAILED if any(found.level == "error" for found in findings) else OK)


@command.command()
@_DIRECTORY
@click.option("--foreground", is_flag=True, help="Stay, and log to stderr.")
@click.option(
    "--if-needed", is_flag=True, help="Do nothing while an agent runs, here or on another machine."
)
@with_output
def start(out: Out, directory: Path, foreground: bool, if_needed: bool) -> None:
    """Start the site's agent; returns once it works."""
    from chappe.site import daemon  # here: `--help` does without it

    begin = daemon.start_if_needed if if_needed else daemon.start
    status = begin(directory, foreground)
    out.one(status, _status, out, status)


@command.command()
@_DIRECTORY
@with_output
def stop(out: Out, directory: Path) -> None:
    """Stop the site's agent. Pilots, and the jobs that run, go on."""
    from chappe.site import daemon  # here: `--help` does without it

    status = daemon.stop(directory)
    out.one(status, _status, out, status)


@command.command()
@_DIRECTORY
@with_output
def status(out: Out, directory: Path) -> None:
    """Say whether the site's agent runs. Exit 1 when it does not."""
    from chappe.site import daemon  # here: `--help` does without it

    status = daemon.status(directory)
    out.one(status, _status, out, status)
    sys.exit(OK if status.presence in ("running", "elsewhere") else FAILED)


@command.group("service")
def service() -> None:
    """Keep the agent running: after a reboot, and on login nodes that end what runs there for long.

    May be installed on several login nodes that share the site's directory: one agent works, and another
    takes over when that one is gone.
    """


_WITH = click.option(
    "--with",
    "kind",
    type=click.Choice(["systemd", "cron"]),
    help="By a unit of your own systemd, or by your crontab (what works here).",
)


@service.command("install")
@_DIRECTORY
@_WITH
@with_output
def service_install(out: Out, directory: Path, kind: Literal["systemd", "cron"] | None) -> None:
    """Start the agent whenever it does not run: a unit of systemd --user, or two lines of your crontab."""
    from chappe.site import service as services  # here: `--help` does without it

    made = services.install(directory, kind)
    out.one(made, _service, out, made)


@service.command("remove")
@_DIRECTORY
@with_output
def service_remove(out: Out, directory: Path) -> None:
    """Start it no more by itself."""
    from chappe.site import service as services  # here: `--help` does without it

    left = services.remove(directory)
    out.one(left, _service, out, left)


@service.command("show")
@_DIRECTORY
@with_output
def service_show(out: Out, directory: Path) -> None:
    """Show what starts the agent on this machine. Exit 1 when nothing does."""
    from chappe.site import service as services  # here: `--help` does without it

    found = services.find(directory)
    out.one(found, _service, out, found)
    sys.exit(OK if found.kind else FAILED)


def _service(out: Out, found: Service) -> None:
    if found.kind is None:
        out.say(f"nothing starts the agent of {found.directory} by itself")
        return
    out.say(f"{found.directory}  by {found.kind} ({found.where})")
    out.say(found.text.rstrip("\n"), "dim")


def _status(out: Out, status: AgentStatus) -> None:
    from chappe.site.explain import told  # here: `--help` does without it

    out.facts(
        (
            ("agent", str(status.presence)),
            ("directory", status.directory),
            ("since", when(status.since)),
            ("", status.message),
            ("calls", "\n".join(told(status.calls)) if status.calls else ""),
        )
    )


@command.command()
@_DIRECTORY
@with_output
def policy(out: Out, directory: Path) -> None:
    """Say in words what this site asks of its scheduler, how often, and how often it did so far.

    Set it in [policy] and [scheduler] of site.toml.
    """
    from chappe.site.explain import explain_policy, told  # here: `--help` does without it

    found = explain_policy(directory)

    def words() -> None:
        out.say(f"scheduler {found.scheduler}")
        for line in found.words:
            out.say(f"  {line}")
        if found.calls:
            out.say(f"calls since {when(found.calls.since)}")
            for line in told(found.calls):
                out.say(f"  {line}")

    out.one(found, words)


@command.command()
@with_output
def ls(out: Out) -> None:
    """List the project's sites."""
    with out.client() as client:
        sites = client.sites()
    out.many(
        sites,
        ("SITE!", "AGENT!", "HEARD>", "HOST", "PILOTS>", "RUNNING>", "WAITING>"),
        lambda s: (
            s.name,
            "online" if s.online else "offline",
            ago(s.agent_seen_at),
            s.agent_host,
            str(len(s.sessions)),
            str(s.running),
            str(s.waiting),
        ),
        "no sites: make one with chappe site init DIRECTORY",
    )


@command.command()
@click.argument("name")
@click.option(
    "--to",
    "directory",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The site's directory, if it is on this machine: the token is put there.",
)
@with_output
def token(out: Out, name: str, directory: Path | None) -> None:
    """Make the token of site NAME anew, where it was lost or somebody else may know it.

    The old one ends at once. Printed this once, it belongs into secrets/site.token (mode 0600) in the site's
    directory; then start the agent again. Pilots that run have tokens of their own, and go on.
    """
    from chappe.site.init import put_token, token_place  # here: `--help` does without it

    place = None if directory is None else token_place(directory)
    with out.client() as client:
        made = client.admin.new_site_token(name)
    if place is None:
        out.one(made, out.say, made.token)
        return
    put_token(place, made.token)
    shown = {"id": made.id, "name": made.name, "path": str(place)}
    words = f"wrote {place}; next: chappe site stop {directory}; chappe site start {directory}"
    out.one(shown, out.say, words)


@command.command()
@click.argument("name")
@with_output
def rm(out: Out, name: str) -> None:
    """Remove site NAME from the hub, not its directory.

    Refused while it has pilots, or jobs that have not ended.
    """
    with out.client() as client:
        client.admin.delete_site(name)
    out.one({"name": name, "code": "removed"}, out.say, f"{name}  removed")
