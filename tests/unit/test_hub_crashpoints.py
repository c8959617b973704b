"""The list of crash points is what the code reaches."""

from __future__ import annotations

import re
from pathlib import Path

import chappe
from chappe.hub.crashpoints import CRASH_POINTS


def test_the_list_is_complete() -> None:
    package = Path(chappe.__file__).parent
    reached = [
        name
        for directory in ("bus", "hub", "store")
        for path in (package / directory).rglob("*.py")
        for name in re.findall(r'faults\.reach\("([^"]+)"\)', path.read_text())
    ]
    assert sorted(reached) == sorted(CRASH_POINTS)
