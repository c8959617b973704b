"""The nodes of an allocation as its scheduler names them, in environment variables or in a file.

Text in, names out: who calls reads the file. Every scheduler repeats or compresses names in its own way.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from itertools import product
from typing import NamedTuple

from chappe.core.errors import Invalid

NODES_MOST = 100_000
"""A list of more names is taken for a mistake."""


class Found(NamedTuple):
    """A node, and the position of its first line in the scheduler's own list."""

    name: str
    position: int


def nodes(environ: Mapping[str, str], read: Callable[[str], str]) -> list[Found]:
    """The nodes of the allocation that this process runs in; empty when no scheduler says anything.

    Raises Invalid when it says what cannot be understood, OSError when its file cannot be read."""
    if text := environ.get("SLURM_JOB_NODELIST") or environ.get("SLURM_NODELIST"):
        return _distinct(expand(text))
    if path := environ.get("PBS_NODEFILE"):
        return _distinct(read(path).split())
    if path := environ.get("PE_HOSTFILE"):
        # host slots queue processors
        return _distinct([line.split()[0] for line in read(path).splitlines() if line.strip()])
    if path := environ.get("LSB_DJOB_HOSTFILE"):
        return _distinct(_of_lsf(read(path).split(), environ))
    return []


def _of_lsf(names: list[str], environ: Mapping[str, str]) -> list[str]:
    # Where JSM starts the ranks, the first line is the node that runs the script, and is no compute node.
    return names[1:] if "JSM_JSRUN_NO_WARN_OVERSUBSCRIBE" in environ and len(names) > 1 else names


def _distinct(names: list[str]) -> list[Found]:
    found: dict[str, int] = {}
    for index, name in enumerate(names):
        found.setdefault(name, index)
    return [Found(name, index) for name, index in found.items()]


def expand(text: str) -> list[str]:
    """The names in Slurm's short form: `n[01-03,7],m5` is n01 n02 n03 n7 m5. Raises Invalid."""
    names: list[str] = []
    for word in _words(text):
        parts = re.split(r"\[([^\[\]]*)\]", word)
        # Odd parts are what stood in brackets.
        choices = [_ranges(part) if k % 2 else [part] for k, part in enumerate(parts)]
        if any("[" in part or "]" in part for part in parts[::2]):
            raise _bad(text)
        names += ["".join(chosen) for chosen in product(*choices)]
        if len(names) > NODES_MOST:
            raise _bad(text)
    return names


def _words(text: str) -> list[str]:
    """The parts between commas that stand in no brackets."""
    return [word for word in re.split(r",(?![^\[]*\])", text.strip()) if word]


def _ranges(text: str) -> list[str]:
    found: list[str] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise _bad(text)
        low, high = int(first), int(last or first)
        if high - low >= NODES_MOST:
            raise _bad(text)
        found += [str(number).zfill(len(first)) for number in range(low, high + 1)]
    return found


def _bad(text: str) -> Invalid:
    return Invalid(f"the scheduler's list of nodes cannot be understood: {text[:200]!r}")
