"""The hub's own retention: what is older than the limit is cut, as far as a verified backup holds it.

Backups are made by others (`chappe hub backup`, by cron). Several times a day the newest one in their
directory that is of this incarnation is read and compared with its digest; only then anything is cut. Without
one nothing is, and the log says so.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog

from chappe.core.errors import ChappeError
from chappe.hub.state import Hub
from chappe.store import retention
from chappe.store.backup import MANIFEST, Manifest, verify

log = structlog.get_logger("chappe.hub.retention")


@dataclass(frozen=True)
class Retention:
    """Keep what is younger than `keep_s` seconds; cut the rest behind the backups in a directory."""

    keep_s: float
    backups: Path


def newest(directory: Path, incarnation: int) -> Manifest | None:
    """The latest backup of this incarnation whose data is what was written; None when there is none. It
    reads all of its data: for a thread."""
    found: list[tuple[int, Path]] = []
    for path in directory.glob(f"*{MANIFEST}"):
        try:
            manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
        except (OSError, msgspec.MsgspecError) as e:
            log.warning("a manifest cannot be read", file=str(path), error=str(e))
            continue
        if manifest.incarnation == incarnation:
            found.append((manifest.commit_no, path))
    for _, path in sorted(found, reverse=True):
        try:
            return verify(path.with_name(path.name.removesuffix(MANIFEST)))
        except ChappeError as e:
            log.warning("a backup cannot be used", error=e.message)
    return None


async def retain(hub: Hub, rule: Retention) -> None:
    """Cut what the rule says, in many small commands."""
    incarnation = hub.store.incarnation
    held = await asyncio.to_thread(newest, rule.backups, incarnation)
    if held is None:
        log.warning("nothing is cut: no backup holds it", directory=str(rule.backups))
        return
    before = hub.clock() - rule.keep_s
    for project, head in await hub.read(retention.covered, held.heads):
        events = 0
        while not hub.stopping.is_set() and hub.store.incarnation == incarnation:
            cut = await hub.write(retention.cut_events, project, head, before, bulk=True)
            events += cut
            if not cut:
                break
        at: retention.Place | None = retention.BEGINNING
        while at is not None and not hub.stopping.is_set():
            at = await hub.write(retention.cut_jobs, project, before, at, bulk=True)
        if events:
            log.info("events cut", project=project, events=events, before=before)
