"""Lanes: short Jobs wait at the launcher behind the one that runs, which is how 2 000 start in a second.

What was expected to be short may turn out long. Then those behind it are taken back, to start in another
slot, or to wait where the Hub can have them back.
"""

from __future__ import annotations

import asyncio

from chappe.link.clock import boottime
from chappe.pilot.crew import Crew
from chappe.pilot.holding import Phase
from chappe.pilot.holdings import Holdings

PATIENCE_S = 0.5
"""So long may nothing begin or end in a slot in which Jobs wait."""


class Lanes:
    """Looks after slots that several Jobs share. It has a timer only while there are any."""

    def __init__(self, holdings: Holdings, keeper: Crew) -> None:
        self._holdings = holdings
        self._keeper = keeper
        self._timer: asyncio.TimerHandle | None = None

    def watch(self) -> None:
        """Jobs share a slot: look again after a while."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(PATIENCE_S, self._check)

    def cancel(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check(self) -> None:
        self._timer = None
        if not self._holdings.placement.shared:
            return
        limit = boottime() - PATIENCE_S
        stuck = [
            h.key
            for h in self._holdings.all()
            if h.phase is Phase.HANDED
            and h.slot is not None
            and h.slot.jobs > 1
            and h.slot.turned_at < limit
        ]
        if stuck:
            self._keeper.withdraw(stuck)
        self.watch()
