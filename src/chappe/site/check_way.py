"""Whether pilots reach the Hub, directly or through the relay, and what to do about it when they do not."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import msgspec

from chappe.core.errors import Unavailable
from chappe.link.pinned import client_context
from chappe.link.relayed import RelayFiles, find
from chappe.site.config import SiteConfig
from chappe.site.finding import Finding, Level
from chappe.site.paths import SitePaths

PILOTS = 20
LOG_BYTES = 256 * 1024


class _Line(msgspec.Struct):
    """What matters here of a line in a pilot's log."""

    event: str = ""
    error: str = ""
    url: str = ""


async def pilots_way(paths: SitePaths, config: SiteConfig) -> list[Finding]:
    """What there is to say about it."""
    return [*await _relay(paths, config), *_last_pilot(paths, config)]


async def _relay(paths: SitePaths, config: SiteConfig) -> list[Finding]:
    """Whether the relay answers, where there is one."""
    if not config.relay.enabled:
        return []
    try:
        files = RelayFiles(str(paths.relay_place), str(paths.relay_cert))
        url = await find(files, client_context())
    except Unavailable as e:
        remedy = "start the agent; if it runs, its log says why the relay does not listen"
        return [Finding(Level.ERROR, e.message, remedy)]
    return [Finding(Level.OK, f"the relay for pilots answers at {url}")]


def _last_pilot(paths: SitePaths, config: SiteConfig) -> list[Finding]:
    """Whether pilots reach the Hub from where they run, as the last one that tried has logged it."""
    for log in sorted(paths.sessions.glob("*/pilot.log"), reverse=True)[:PILOTS]:
        lines = [line for line in _tail(log) if line.event in ("hub.reached", "sync.failed")]
        if not lines:
            continue
        if lines[-1].event == "hub.reached":
            return [Finding(Level.OK, f"the last pilot reached the hub ({lines[-1].url})")]
        never = all(line.event == "sync.failed" for line in lines)
        level = Level.ERROR if never else Level.WARNING
        what = f"the last pilot does not reach the hub: {lines[-1].error} (see {log})"
        if config.relay.enabled:
            remedy = "set [relay] interface in site.toml to one that compute nodes reach"
        else:
            remedy = (
                "if compute nodes have no route out: `enabled = true` under [relay] in site.toml"
            )
        return [Finding(level, what, f"{remedy}; then restart the agent, and start a new pilot")]
    return []


def _tail(log: Path) -> list[_Line]:
    """The last lines of a pilot's log, as far as they can be read."""
    lines = []
    with suppress(OSError), log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_BYTES))
        for text in file.read().splitlines():
            with suppress(msgspec.DecodeError):
                lines.append(msgspec.json.decode(text, type=_Line))
    return lines
