"""Answers wishes for logs: the same for a pilot, which has the running Jobs, and for a Site's agent.

Each wish is a task of its own beside everything else, its reading is done on threads of its own, and there
are few of both: who reads logs holds up nobody who runs Jobs. Nothing tells of the growth of a file on a
parallel file system, so a wish that may wait looks again four times a second, for its time and no longer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import msgspec

from chappe.core import limits
from chappe.core.errors import ChappeError
from chappe.link.clock import boottime
from chappe.link.http import HubClient, RetryPolicy
from chappe.link.joblogs import Found, JobLogs, NoLog
from chappe.wire.logs import LogPiece, LogWish

_LOOK_S = 0.25
_THREADS = 2
_SEND = RetryPolicy(tries=3, budget_s=10.0)


class LogDesk:
    """`running` tells whether an attempt of a Job may still write. `failed` hears of pieces that could not
    be sent; their readers will ask again. `seen` is the highest wish that was read."""

    def __init__(
        self,
        hub: HubClient,
        logs: JobLogs,
        running: Callable[[str, int], bool],
        failed: Callable[[ChappeError], None],
    ) -> None:
        self._hub = hub
        self._logs = logs
        self._running = running
        self._failed = failed
        self._pool = ThreadPoolExecutor(_THREADS, "logs")
        self._tasks: set[asyncio.Task[None]] = set()
        self.seen = 0

    def take(self, wishes: Iterable[LogWish]) -> bool:
        """Begin to answer those of these that are new; whether there were any."""
        before = self.seen
        for wish in sorted(wishes, key=lambda wish: wish.no):
            if wish.no > self.seen:
                self.seen = wish.no
                task = asyncio.create_task(self._answer(wish))
                self._tasks.add(task)
                task.add_done_callback(self._done)
        return self.seen > before

    def close(self) -> None:
        """Answer no more."""
        for task in self._tasks:
            task.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.result()

    async def _answer(self, wish: LogWish) -> None:
        try:
            if len(self._tasks) > limits.LOG_READERS_EACH:
                raise NoLog("too many read logs here at once; try again", code="busy")
            piece = await self._piece(wish)
        except ChappeError as e:
            piece = LogPiece(wish.no, note=e.message, problem=e.code)
        except OSError as e:
            piece = LogPiece(wish.no, note=f"the site cannot read it: {e}", problem="no_file")
        try:
            await self._hub.request("POST", "/v1/logs", piece, retry=_SEND)
        except ChappeError as e:
            self._failed(e)

    async def _piece(self, wish: LogWish) -> LogPiece:
        loop = asyncio.get_running_loop()
        found: Found = await loop.run_in_executor(self._pool, self._logs.find, wish)
        until = boottime() + min(wish.wait_s, limits.WAIT_MAX_S)
        while True:
            # Before reading: what ends in between has written all by then.
            running = self._running(wish.job, wish.attempt)
            try:
                piece = await loop.run_in_executor(self._pool, self._logs.read, found, wish)
            except NoLog:
                # Between the start of a Job and its first word there may be no file yet.
                if not running:
                    raise
                piece = LogPiece(wish.no, start=wish.start or 0, note=found.note)
            if piece.data or not running or boottime() >= until:
                end = piece.start + len(piece.data)
                over = not running and end >= piece.size
                return msgspec.structs.replace(piece, over=over)
            if piece.size:
                # Where "the last lines" begin is decided once, or all that came later would be among them.
                wish = msgspec.structs.replace(wish, start=piece.start)
            await asyncio.sleep(_LOOK_S)
