"""All crash points of Chappe, found in its sources, so that a new one is attacked as well."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import NamedTuple

import chappe

_SOURCES = Path(chappe.__file__).parent
_NAMED = re.compile(r"\breach\(\"([^\"]+)\"\)")


class Point(NamedTuple):
    """A named moment at which a process may be told to kill itself, and the module that lists it."""

    name: str
    module: str

    @property
    def part(self) -> str:
        """Whose it is: hub | agent | pilot | launcher."""
        return self.name.partition(".")[0]


def listed() -> list[Point]:
    """Every point of every tuple CRASH_POINTS."""
    found = []
    for path in sorted(_SOURCES.rglob("*.py")):
        if re.search(r"(?m)^CRASH_POINTS\b", path.read_text()):
            name = ".".join(("chappe", *path.relative_to(_SOURCES).with_suffix("").parts))
            found += [Point(p, name) for p in importlib.import_module(name).CRASH_POINTS]
    return found


def named() -> set[str]:
    """Every point that the code says it reaches."""
    return {name for path in _SOURCES.rglob("*.py") for name in _NAMED.findall(path.read_text())}
