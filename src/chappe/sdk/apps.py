"""Checking an App's file where there is no Site and no Hub."""

from __future__ import annotations

from pathlib import Path

from chappe.link.apps import load_app, to_view
from chappe.wire.sites import AppView


def check_app(path: str | Path) -> AppView:
    """What a Site would publish of `path`. Raises Invalid naming file, line, field and remedy."""
    return to_view(load_app(Path(path)))
