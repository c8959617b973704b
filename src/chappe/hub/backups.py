"""What an operator does with backups, beside a running Hub or without one."""

from __future__ import annotations

from pathlib import Path

from chappe.hub.main import database
from chappe.link.clock import now
from chappe.store.backup import Manifest, Restored, backups_of, verify


def backup(data: Path, db: str | None, file: Path) -> Manifest:
    """Write a backup of the Hub in `data` (or at `db`) to `file`. The Hub may work meanwhile."""
    return backups_of(database(data, db)).backup(file.absolute(), now())


def restore(data: Path, db: str | None, file: Path) -> Restored:
    """Put a backup in the place of the Hub's database. Raises Unavailable while a Hub has that open."""
    manifest = verify(file.absolute())
    return backups_of(database(data, db)).restore(file.absolute(), manifest, now())
