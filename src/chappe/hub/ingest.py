"""The one way of messages into the journal, whichever door they came by.

Doors decode, then `take`: arrivals that wait together share a command of the writer, and so its statements
and its commit. A single message beside a thousand others costs as much as its share. One command is under
way at a time; what comes meanwhile is the next. Nothing is answered before it is committed, and what waits is
bounded: beyond that a door says busy, and whoever sends keeps what it has.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from chappe.core import limits
from chappe.core.errors import Busy, ChappeError, TooLarge
from chappe.store.journal import Arrival, accept_all
from chappe.wire.messages import Verdict

#: Messages of one command, unless one arrival has more. Others wait for it, so it is short.
GROUP = 500
#: A command with more than this goes the way of bulk commands, which no acquire waits for.
QUICK = 50


class _Waiting(NamedTuple):
    arrival: Arrival
    answer: asyncio.Future[list[Verdict]]
    size: int


class Intake:
    """Arrivals on their way to the writer. Used on the Hub's event loop only."""

    def __init__(
        self, write: Callable[..., Awaitable[list[list[Verdict]]]], clock: Callable[[], float]
    ) -> None:
        self._write = write
        self._clock = clock
        self._waiting: deque[_Waiting] = deque()
        self._messages = 0
        self._bytes = 0
        self._draining: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """How many messages wait, or are being stored."""
        return self._messages

    async def take(self, arrival: Arrival) -> list[Verdict]:
        """Store and apply an arrival; the verdicts of its items, once they are committed.

        `received_at` 0 stands for the moment at which it is taken. Raises TooLarge for too many messages at
        once, Busy while too many wait; Unavailable and others as `Hub.write`. Then nothing is stored.
        """
        if len(arrival.items) > limits.MESSAGES_PER_ARRIVAL:
            raise TooLarge(
                f"{len(arrival.items)} messages at once, the limit is {limits.MESSAGES_PER_ARRIVAL}",
                field="messages",
            )
        size = sum(len(item.raw) for item in arrival.items)
        if arrival.carrier is not None:
            size += len(arrival.carrier.raw)
        if self._messages and (
            self._messages + len(arrival.items) > limits.MESSAGES_WAITING
            or self._bytes + size > limits.MESSAGES_WAITING_BYTES
        ):
            raise Busy("too many messages wait to be stored; try again in a moment")
        answer: asyncio.Future[list[Verdict]] = asyncio.get_running_loop().create_future()
        self._messages += len(arrival.items)
        self._bytes += size
        self._waiting.append(_Waiting(arrival, answer, size))
        if self._draining is None:
            self._draining = asyncio.ensure_future(self._drain())
        return await answer

    async def _drain(self) -> None:
        try:
            while self._waiting:
                await self._store(self._next())
        finally:
            self._draining = None

    def _next(self) -> list[_Waiting]:
        """Arrivals for one command; those that nobody waits for any more are stored as well."""
        group = [self._waiting.popleft()]
        room = GROUP - len(group[0].arrival.items)
        while self._waiting and len(self._waiting[0].arrival.items) <= room:
            group.append(self._waiting.popleft())
            room -= len(group[-1].arrival.items)
        return group

    async def _store(self, group: Sequence[_Waiting]) -> None:
        try:
            await self._store_all(group)
        finally:
            self._messages -= sum(len(w.arrival.items) for w in group)
            self._bytes -= sum(w.size for w in group)

    async def _store_all(self, group: Sequence[_Waiting]) -> None:
        now = self._clock()
        arrivals = [
            w.arrival if w.arrival.received_at else replace(w.arrival, received_at=now)
            for w in group
        ]
        count = sum(len(a.items) for a in arrivals)
        try:
            answers = await self._write(accept_all, arrivals, bulk=count > QUICK)
        except Exception as error:  # noqa: BLE001 - answered to each who waits
            if len(group) > 1 and not (isinstance(error, ChappeError) and error.transient):
                # One of them may be what cannot be stored: the others are not to suffer for it.
                for one in group:
                    await self._store_all([one])
                return
            for w in group:
                if not w.answer.done():
                    w.answer.set_exception(error)
            return
        for w, verdicts in zip(group, answers, strict=True):
            if not w.answer.done():
                w.answer.set_result(verdicts)
