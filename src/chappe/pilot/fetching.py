"""Bringing in the results of parents for what is held, one task each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from chappe.core.errors import ChappeError
from chappe.core.leases import Reason
from chappe.link.clock import now
from chappe.link.journal import End
from chappe.pilot.holding import Holding, Phase
from chappe.pilot.holdings import Holdings
from chappe.pilot.parents import Parents


class Fetching:
    """`over` is called with what cannot begin for want of them, `ready` when something can, `due` when the
    Hub should hear something."""

    def __init__(
        self,
        holdings: Holdings,
        parents: Parents,
        *,
        over: Callable[[Holding, End], None],
        ready: Callable[[], None],
        due: Callable[[], None],
    ) -> None:
        self._holdings = holdings
        self._parents = parents
        self._over = over
        self._ready = ready
        self._due = due
        self._tasks: set[asyncio.Task[None]] = set()

    def fetch(self, h: Holding) -> None:
        """Begin to bring in what `h` needs."""
        task = asyncio.create_task(self._fetch(h))
        self._tasks.add(task)
        task.add_done_callback(self._fetched)

    def cancel(self) -> None:
        """Bring in nothing more."""
        for task in self._tasks:
            task.cancel()

    def _fetched(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.result()

    async def _fetch(self, h: Holding) -> None:
        try:
            path = await self._parents.fetch(h.job, h.spec)
        except ChappeError as e:
            if h.phase is not Phase.FETCHING:
                return
            if e.transient:
                self._holdings.give_back(h)
            else:
                self._over(h, h.refusal("parents", e.message, now()))
            self._due()
        except OSError as e:
            if h.phase is Phase.FETCHING:
                message = f"the results of its parents cannot be written: {e}"
                self._over(h, h.end(Reason.START_FAILED, now(), message))
                self._due()
        else:
            self._holdings.fetched(h, path)
            self._ready()
