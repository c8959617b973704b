"""How much chaos is asked for: CHAPPE_CHAOS_SEEDS, which `./run check --chaos N` sets."""

from __future__ import annotations

import os

#: The seeds to run.
SEEDS = range(1, int(os.environ.get("CHAPPE_CHAOS_SEEDS", "1")) + 1)
#: Whether somebody has the time for all of it.
MANY = len(SEEDS) > 1
