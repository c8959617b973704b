"""Wishes for logs, while their readers wait: from a reader to whoever has the file, and the piece back.

All in memory, on the event loop, and nothing kept: a wish lives as long as its reader waits, a piece goes
straight into the reader's answer. Numbers rise also from one process to the next (they begin at the time in
microseconds), so that a holder's "read up to here" stays true.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from chappe.core import limits
from chappe.core.errors import Busy
from chappe.hub.polls import Polls
from chappe.wire.logs import LogPiece, LogWish

#: Who can read a file: ("session", its id) or ("agent", the Site's row number). Also its polls' group.
Holder = tuple[str, Hashable]


class Open:
    """A wish whose reader waits for `piece`: the first that comes."""

    __slots__ = ("holders", "piece", "wish")

    def __init__(self, holders: Iterable[Holder], wish: LogWish) -> None:
        self.holders = set(holders)
        self.wish = wish
        self.piece: asyncio.Future[LogPiece] = asyncio.get_running_loop().create_future()


class Wishes:
    """The open wishes."""

    def __init__(self, polls: Polls, clock: Callable[[], float]) -> None:
        self._polls = polls
        self._clock = clock
        self._open: dict[int, Open] = {}
        self._count: Counter[Holder] = Counter()
        self._last = 0

    def __len__(self) -> int:
        return len(self._open)

    @contextmanager
    def ask(
        self, holders: Collection[Holder], fields: Mapping[str, Any]
    ) -> Iterator[asyncio.Future[LogPiece]]:
        """Make a wish of all of these; it is open until the body is left. Raises Busy."""
        most = max(self._count[holder] for holder in holders)
        if len(self._open) >= limits.LOG_READERS or most >= limits.LOG_READERS_EACH:
            raise Busy("too many read logs at once; try again in a moment")
        self._last = max(self._last + 1, int(self._clock() * 1e6))
        wish = Open(holders, LogWish(no=self._last, **fields))
        self._open[wish.wish.no] = wish
        self._count.update(holders)
        self._polls.hint(holders)
        try:
            yield wish.piece
        finally:
            del self._open[wish.wish.no]
            self._count.subtract(holders)
            for holder in holders:
                if not self._count[holder]:
                    del self._count[holder]

    def of(self, holder: Holder, seen: int) -> list[LogWish]:
        """What is wished of this holder beyond what it has read."""
        if holder not in self._count:
            return []
        if seen > self._last:
            seen = 0  # a number of a process before this one, whose clock was ahead
        return [o.wish for no, o in self._open.items() if no > seen and holder in o.holders]

    def bring(self, holder: Holder, piece: LogPiece) -> None:
        """A piece came. One that nobody waits for (any more), or waits for from another, is dropped."""
        found = self._open.get(piece.wish)
        if found is None or holder not in found.holders:
            return
        found.holders.discard(holder)
        # All of them read the same files, so the first answer counts; only one may be too busy to look.
        if not found.piece.done() and (piece.problem != "busy" or not found.holders):
            found.piece.set_result(piece)
