"""What can be wrong between a user and running Jobs, checked in the order in which it matters.

Each finding says what was looked at, whether it is well, and what to do when it is not. A check whose
ground is missing (no configuration, no Hub) is not made.
"""

from __future__ import annotations

import shutil
import stat
from collections.abc import AsyncIterator, Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Literal

import msgspec

from chappe import __version__
from chappe.link.clock import now
from chappe.link.http import HubClient
from chappe.link.keys import default_path, load
from chappe.sdk import config
from chappe.sdk.admin import Admin
from chappe.sdk.config import Settings
from chappe.sdk.errors import ChappeError, Invalid, Unauthenticated, Unavailable
from chappe.wire.events import WIRE_VERSION
from chappe.wire.sites import SessionView, SiteView, Whoami

_FREE_BYTES = 200 << 20
_CLOCK_S = 30.0


class Finding(msgspec.Struct, frozen=True, omit_defaults=True):
    """One check of `part`: how bad it is (warning: it works, but mind it), what it is, what to do."""

    part: str
    level: Literal["ok", "warning", "error"]
    what: str
    remedy: str = ""


async def examine() -> AsyncIterator[Finding]:
    """All checks by the user's configuration, each as soon as it is made."""
    for finding in _files():
        yield finding
    try:
        settings = config.load()
    except ChappeError as error:
        yield Finding("configuration", "error", error.message)
        return
    for finding in _key(settings):
        yield finding
    try:
        hub = HubClient(settings.url, settings.token, ca_file=settings.ca_file)
    except Invalid as error:
        yield Finding("configuration", "error", error.message, f"correct {config.config_path()}")
        return
    async with hub:
        async for finding in _hub(hub):
            yield finding


def _files() -> Iterator[Finding]:
    path = config.config_path()
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return  # config.load says what is missing
    if mode & 0o077:
        remedy = f"chmod 600 {path}"
        yield Finding(
            "configuration", "error", f"others can read {path}, which holds your token", remedy
        )
    else:
        yield Finding("configuration", "ok", f"{path} is private")
    free = shutil.disk_usage(path.parent).free
    if free < _FREE_BYTES:
        message = f"{free >> 20} MiB are free on the disk of {path.parent}"
        yield Finding("disk", "warning", message, "make room: keys and results are written there")
    else:
        yield Finding("disk", "ok", f"{free >> 30} GiB are free at {path.parent}")


def _key(settings: Settings) -> Iterator[Finding]:
    path = Path(settings.key) if settings.key else default_path()
    try:
        key = load(path)
    except FileNotFoundError:
        yield Finding("key", "ok", f"{path} will be made with your first submission")
    except ChappeError as error:
        yield Finding("key", "error", error.message)
    else:
        yield Finding("key", "ok", f"{path} is private; sites trust it as {key.public_b64}")


async def _hub(hub: HubClient) -> AsyncIterator[Finding]:
    try:
        answer = await hub.fetch("GET", "/readyz")
    except Unavailable as error:
        yield Finding("hub", "error", error.message, _remedy(error.code))
        return
    except ChappeError as error:
        yield Finding("hub", "error", error.message, "is this the url of a hub?")
        return
    secure = "TLS" if hub.url.startswith("https:") else "no TLS"
    yield Finding("hub", "ok", f"{hub.url} is ready ({secure})")
    yield _clock(answer.headers.get("date"))
    try:
        me = await hub.request("GET", "/v1/whoami", reply=Whoami)
    except Unauthenticated as error:
        yield Finding(
            "token", "error", error.message, "chappe login; without a password ask an administrator"
        )
        return
    yield Finding("token", "ok", f"it speaks for project {me.project_name!r} ({_who(me)})")
    yield _version(me)
    if me.scope == "user" and me.role is None:
        return  # an administrator sees nothing of a project without a role there
    admin = Admin(hub)
    sites = await admin.sites()
    if not sites:
        yield Finding("sites", "warning", "there are none", "chappe site init DIR")
    sessions = await admin.sessions()
    for site in sites:
        yield _site(site, [s for s in sessions if s.site == site.id])


def _who(me: Whoami) -> str:
    if me.scope != "user":
        return f"the token of a {me.scope}"
    name = me.user or "a service token"
    return f"{name}, {me.role or 'no role'}{', administrator' if me.administrator else ''}"


def _clock(date: str | None) -> Finding:
    if date is None:
        return Finding("clock", "ok", "the hub does not tell its time")
    ahead = now() - parsedate_to_datetime(date).timestamp()
    if abs(ahead) > _CLOCK_S:
        which = "ahead of" if ahead > 0 else "behind"
        message = f"this machine's clock is {abs(ahead):.0f} s {which} the hub's"
        return Finding("clock", "warning", message, "let both follow NTP: signatures carry times")
    return Finding("clock", "ok", "this machine and the hub agree on the time")


def _version(me: Whoami) -> Finding:
    both = f"hub {me.version}, client {__version__}"
    if me.wire == WIRE_VERSION:
        return Finding("version", "ok", both)
    older = "this client" if me.wire > WIRE_VERSION else "the hub"
    return Finding("version", "error", f"they speak differently ({both})", f"update {older}")


def _site(site: SiteView, sessions: list[SessionView]) -> Finding:
    name = f"site {site.name}"
    live = sum(s.state == "live" for s in sessions)
    silent = sum(s.state == "silent" for s in sessions)
    load_ = f"{site.running} jobs running, {site.waiting} waiting"
    if not site.online:
        where = f" on {site.agent_host}" if site.agent_host else ""
        return Finding(
            name, "warning", f"its agent is not heard; {load_}", f"chappe site start DIR{where}"
        )
    if silent:
        message = f"{silent} of {len(sessions)} pilots are not heard; {load_}"
        return Finding(name, "warning", message, "chappe session ls")
    if site.waiting and not live:
        return Finding(
            name, "warning", f"no pilot; {load_}", f"chappe batch-job new -s {site.name}"
        )
    return Finding(name, "ok", f"online, pilots: {live}, {load_}")


def _remedy(code: str) -> str:
    return {
        "tls": "name the hub's certificate (hub-cert.pem in its data directory) as ca_file",
        "unknown_host": "correct the url",
        "refused": "start it: chappe hub start; or correct the url",
        "proxy": "look at HTTPS_PROXY and NO_PROXY",
    }.get(code, "is it running, and does a firewall let you through?")
