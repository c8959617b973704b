"""In which order two workers share the files of tests, so that both end together and wait little.

The files that take longest begin first, whatever their order was; small ones fill what is left. The tests of
`chaos` stay in one worker: each worker that runs one of them begins the scenarios of all (see its conftest).
"""

from __future__ import annotations

from pathlib import Path

import pytest
from xdist.scheduler import LoadFileScheduling

CHAOS = "tests/chaos"

#: Measured; what is missing takes less than half a minute.
LONGEST = (
    CHAOS,
    "tests/integration/test_slurm.py",
    "tests/property/test_lease_machine.py",
    "tests/integration/test_hub_process.py",
    "tests/integration/test_hands.py",
    "tests/acceptance/test_docs.py",
    "tests/integration/test_pilot_faults.py",
    "tests/integration/test_pilot_head.py",
    "tests/integration/test_site_agent.py",
    "tests/integration/test_cli_people.py",
    "tests/integration/test_hub_feed.py",
    "tests/integration/test_scheduler_faults.py",
    "tests/integration/test_executor.py",
)


def scope(nodeid: str) -> str:
    """What a test is kept together with: its file, or `chaos`."""
    file = nodeid.split("::", 1)[0]
    return CHAOS if file.startswith(f"{CHAOS}/") else file


def longest_first(items: list[pytest.Item], root: Path) -> None:
    """Sort tests by how long their scope takes; otherwise they stay as they are."""
    rank = {name: n for n, name in enumerate(LONGEST)}

    def place(item: pytest.Item) -> int:
        file = item.path.relative_to(root) if item.path.is_relative_to(root) else item.path
        return rank.get(scope(file.as_posix()), len(rank))

    items.sort(key=place)


class Together(LoadFileScheduling):  # type: ignore[misc] # xdist has no types
    """As `--dist loadfile`, in this order."""

    def _split_scope(self, nodeid: str) -> str:
        return scope(nodeid)
