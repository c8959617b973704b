"""All crash points of Chappe, found in its sources, so that a new one is attacked as well."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import chappe

_ROOT = Path(chappe.__file__).parent
_REACHED = re.compile(r"\breach\(\"([^\"]+)\"\)")
_TUPLE = re.compile(r"(?m)^CRASH_POINTS\b")


class Point(NamedTuple):
    """A named moment at which a process may be told to kill itself, and the module where that is."""

    name: str
    module: str

    @property
    def part(self) -> str:
        """Whose it is: hub | agent | pilot | launcher."""
        return self.name.partition(".")[0]


def reached() -> list[Point]:
    """Every point that the code says it reaches."""
    return sorted(
        Point(name, module)
        for module, text in _sources()
        for name in dict.fromkeys(_REACHED.findall(text))
    )


def listed() -> set[str]:
    """Every point of every tuple CRASH_POINTS."""
    tuples = [
        importlib.import_module(module).CRASH_POINTS
        for module, text in _sources()
        if _TUPLE.search(text)
    ]
    return {name for names in tuples for name in names}


def _sources() -> Iterator[tuple[str, str]]:
    """Each module of Chappe and its text."""
    for path in sorted(_ROOT.rglob("*.py")):
        yield ".".join(("chappe", *path.relative_to(_ROOT).with_suffix("").parts)), path.read_text()
