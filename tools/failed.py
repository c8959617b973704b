"""How many tests failed in the run before, as pytest's cache has it: `python -m tools.failed`.

Exit status 1 when they are none, or too many for the machine's slowness to be the reason. Standard library
only.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".pytest_cache/v/cache/lastfailed"
FEW = 10


def failed(cache: Path) -> list[str]:
    """The names of the tests that failed. Empty where the cache says nothing."""
    try:
        return sorted(json.loads(cache.read_text()))
    except FileNotFoundError:
        return []


def main() -> int:
    """Print the names, if they are a few."""
    names = failed(CACHE)
    print("\n".join(names))
    return 0 if 0 < len(names) <= FEW else 1


if __name__ == "__main__":
    sys.exit(main())
