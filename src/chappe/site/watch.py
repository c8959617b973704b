"""Asks the scheduler how the BatchJobs are: one query for all, seldom, and none while there are none.

Pilots tell the Hub themselves when they start and end, so nothing waits for an answer here, except what a
pilot cannot tell any more. What the queue does not list is looked for in the history, at the slow interval.
"""

from __future__ import annotations

import asyncio
import os

import structlog

from chappe.core.errors import ChappeError
from chappe.core.policy import status_wait_s
from chappe.link.clock import boottime
from chappe.site.batch import BatchJobs
from chappe.site.calls import Calls
from chappe.site.config import SchedulerConfig
from chappe.site.schedulers.base import OVER, BatchState, Phase, Scheduler
from chappe.site.wakeup import Wakeups, wait_for

log = structlog.get_logger()

AFTER_END_S = 1.0
SAFETY_NET = 30


async def watch(
    jobs: BatchJobs,
    scheduler: Scheduler,
    calls: Calls,
    wakeups: Wakeups,
    pace: SchedulerConfig,
) -> None:
    """Ask at the interval of the configuration; before it passed only when somebody has a reason.

    Reasons are a new BatchJob, a Session that the Hub no longer hears, a limit that is reached, and the end
    of a local process that the scheduler named; where it names one for all, the interval is a safety net.
    With a scheduler that others use, no reason brings two queries closer together than the shorter interval.
    """
    hints = ProcessHints(wakeups.watch)
    look = Look(jobs, scheduler, calls, pace)
    try:
        while True:
            if not jobs.watched():
                hints.set(set())
                await wait_for(wakeups.watch)
                continue
            try:
                await asyncio.sleep(look.too_early_s())
                states = await look.once()
            except (ChappeError, OSError) as e:
                log.warning("the scheduler did not say how the batch jobs are", error=str(e))
                states = {}
            hints.set({s.watch_pid for s in states.values() if s.watch_pid})
            hinted = all(i in states and states[i].watch_pid for i in jobs.watched())
            patience_s = look.wait_s() * (SAFETY_NET if hinted else 1)
            end_s = jobs.next_end_s()
            await wait_for(
                wakeups.watch, patience_s if end_s is None else min(patience_s, end_s + AFTER_END_S)
            )
    finally:
        hints.set(set())


class Look:
    """Looks at the scheduler, and knows how soon it may again."""

    def __init__(
        self, jobs: BatchJobs, scheduler: Scheduler, calls: Calls, pace: SchedulerConfig
    ) -> None:
        self._jobs = jobs
        self._scheduler = scheduler
        self._calls = calls
        self._pace = pace
        self._history_after = 0.0
        self._after = 0.0
        self._query_s = 0.0

    async def once(self) -> dict[str, BatchState]:
        """One query for all, one of the history for what it does not list. Raises ChappeError, OSError."""
        adapter = self._scheduler
        ids = sorted(self._jobs.watched())
        began = boottime()
        try:
            command = adapter.status_command(ids)
            states = await self._calls.ask("status", command, adapter.parse_status)
        finally:
            self._query_s = boottime() - began
            self._after = boottime() + self._pause_s(waiting=True)
        unknown = BatchState(Phase.UNKNOWN)
        unseen = [i for i in ids if states.get(i, unknown).phase is Phase.UNKNOWN]
        states |= await self._history(unseen)
        self._jobs.said(states, adapter.quirks)
        # Only now: what this query did not list is not there.
        self._jobs.pass_hard_ends()
        return states

    async def _history(self, ids: list[str]) -> dict[str, BatchState]:
        """The ends that are on record of these; nothing when it is too early, or it cannot be asked."""
        command = self._scheduler.history_command(ids) if ids else []
        if not command or boottime() < self._history_after:
            return {}
        try:
            ended = await self._calls.ask("history", command, self._scheduler.parse_history)
        except (ChappeError, OSError) as e:
            log.warning("the scheduler's history could not be read", error=str(e))
            return {}
        finally:
            self._history_after = boottime() + self._pause_s(waiting=True)
        return {i: state for i, state in ended.items() if state.phase in OVER}

    def too_early_s(self) -> float:
        """How long the scheduler is to be left alone whatever happens."""
        shared = self._scheduler.quirks.shared
        return max(0.0, self._after - boottime()) if shared else 0.0

    def wait_s(self) -> float:
        """How long it is left alone when nothing happens."""
        return self._pause_s(waiting=self._jobs.unsettled())

    def _pause_s(self, *, waiting: bool) -> float:
        pace = self._pace
        return status_wait_s(
            pace.status_interval_s, pace.status_fast_s, waiting=waiting, query_s=self._query_s
        )


class ProcessHints:
    """Sets an event when one of some processes ends (pidfd); they need not be our children."""

    def __init__(self, event: asyncio.Event) -> None:
        self._event = event
        self._fds: dict[int, int] = {}

    def set(self, pids: set[int]) -> None:
        """Watch exactly these from now on."""
        for pid in set(self._fds) - pids:
            self._drop(pid)
        for pid in pids - set(self._fds):
            try:
                fd = os.pidfd_open(pid)
            except ProcessLookupError:
                self._event.set()
                continue
            except OSError:
                continue  # a kernel before 5.3: the interval finds it
            self._fds[pid] = fd
            asyncio.get_running_loop().add_reader(fd, self._ended, pid)

    def _ended(self, pid: int) -> None:
        self._drop(pid)
        self._event.set()

    def _drop(self, pid: int) -> None:
        fd = self._fds.pop(pid)
        asyncio.get_running_loop().remove_reader(fd)
        os.close(fd)
