"""`chappe app`: what can be run, where, with which parameters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from chappe.cli.output import Out, with_output

if TYPE_CHECKING:
    from chappe import AppView, Parameter


@click.group("app")
def command() -> None:
    """Show the apps that sites offer; check an app's file."""


@command.command()
@click.option("-s", "--site", help="Of this site (name or id).")
@with_output
def ls(out: Out, site: str | None) -> None:
    """List apps."""
    with out.client() as client:
        apps = client.apps(site)
        sites = {} if out.as_json else client.site_names()
    out.many(
        apps,
        ("APP!", "VERSION!", "SITE!", "DESCRIPTION~"),
        lambda app: (app.name, app.version, sites.get(app.site, app.site), app.description),
        "no apps: put apps/NAME.toml into a site's directory",
    )


@command.command()
@click.argument("name")
@click.option("-s", "--site", help="At this site (name or id).")
@with_output
def show(out: Out, name: str, site: str | None) -> None:
    """Show an app's parameters, at each site that offers it."""
    from chappe.sdk.errors import NotFound  # here: `--help` does without the SDK

    with out.client() as client:
        found = [app for app in client.apps(site) if app.name == name]
        sites = {} if out.as_json else client.site_names()
    if not found:
        where = f"site {site} offers" if site else "no site offers"
        raise NotFound(f"{where} {'no ' if site else ''}app {name!r}")
    if out.as_json:
        for app in found:
            out.line(app)
        return
    # Sites with the same definition are shown together.
    for digest in dict.fromkeys(app.digest for app in found):
        same = [app for app in found if app.digest == digest]
        _show(out, same[0], ", ".join(sites.get(app.site, app.site) for app in same))


@command.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@with_output
def check(out: Out, file: Path) -> None:
    """Check an app's TOML file without a hub; errors name the line."""
    from chappe.sdk.apps import check_app  # here: `--help` does without the SDK

    app = check_app(file)
    out.one(app, _show, out, app, "")


def _show(out: Out, app: AppView, site: str) -> None:
    out.facts(
        (
            ("app", f"{app.name} {app.version}" + (f" at {site}" if site else "")),
            ("about", app.description),
            ("unsigned jobs", "allowed" if app.unsigned else None),
            ("result", app.result),
            ("env", " ".join(app.allow_env)),
        )
    )
    rows = [(name, _type(p), _default(p), p.help) for name, p in app.parameters.items()]
    out.table(("PARAMETER!", "TYPE!", "DEFAULT!", "HELP~"), rows, "no parameters")
    out.say()


def _type(p: Parameter) -> str:
    """A parameter's type and bounds: `int 8…4096`, `float ≥ 0`, `rossby|inviscid`."""
    if p.choices:
        return "|".join(p.choices) if len(p.choices) < 3 else f"one of {len(p.choices)}"
    kind = f"list of {p.items}" if p.type == "list" else str(p.type)
    if p.min is not None and p.max is not None:
        return f"{kind} {p.min:g}…{p.max:g}"
    if p.min is not None:
        return f"{kind} ≥ {p.min:g}"
    return kind if p.max is None else f"{kind} ≤ {p.max:g}"


def _default(p: Parameter) -> str:
    text = "(required)" if p.required else "" if p.default is None else str(p.default)
    return text if len(text) <= 24 else "…" + text[-23:]
