"""Say which launchers would be used here: `python -m chappe.pilot.launchers`, for `chappe site check`."""

from __future__ import annotations

import argparse
import sys

import msgspec

from chappe.core.errors import Invalid
from chappe.pilot.launchers.base import UNVERIFIED
from chappe.pilot.launchers.choose import AUTO, Choice, for_hands, for_ranks, this_machine


def describe(what: str, choice: Choice) -> str:
    """One choice in words."""
    launcher = choice.launcher
    version = ".".join(map(str, choice.version))
    tested = f"tested with {launcher.verified}" if launcher.verified else UNVERIFIED
    name = f"{launcher.title} {version}".strip()
    return f"{what}: {name}, because {choice.why} ({tested})"


def main() -> int:
    """Print the choices as a JSON list of sentences; 1 with the reason when a name is wrong."""
    parser = argparse.ArgumentParser(prog="python -m chappe.pilot.launchers", description=__doc__)
    parser.add_argument("--hands", default=AUTO)
    parser.add_argument("--ranks", default=AUTO)
    parser.add_argument("--scheduler", default="")
    given = parser.parse_args()
    machine = this_machine(given.scheduler)
    told = []
    try:
        if given.hands:
            told.append(describe("further nodes are reached by", for_hands(given.hands, machine)))
        if given.ranks:
            told.append(describe("ranks are started by", for_ranks(given.ranks, machine)))
    except Invalid as e:
        print(e.message, file=sys.stderr)
        return 1
    sys.stdout.buffer.write(msgspec.json.encode(told) + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
