"""Asks the scheduler how the BatchJobs are: one query for all, seldom, and none while there are none."""

from __future__ import annotations

import asyncio
import os

from chappe.site.batch import BatchJobs
from chappe.site.command import checked
from chappe.site.schedulers.base import Scheduler
from chappe.site.wakeup import Wakeups, wait_for

AFTER_END_S = 1.0
SLOWEST = 10
SAFETY_NET = 30


async def watch(jobs: BatchJobs, scheduler: Scheduler, wakeups: Wakeups, interval_s: float) -> None:
    """Ask at an interval that grows while nothing changes, and at once when somebody has a reason.

    Reasons are a new BatchJob, a Session that the Hub no longer hears, a limit that is reached, and the end
    of a local process that the scheduler named; where it names one for all, the interval is a safety net.
    """
    hints = ProcessHints(wakeups.watch)
    wait_s = interval_s
    try:
        while True:
            ids = sorted(jobs.watched())
            if not ids:
                hints.set(set())
                await wait_for(wakeups.watch)
                continue
            states = scheduler.parse_status((await checked(scheduler.status_command(ids))).stdout)
            changed = jobs.said(states)
            hints.set({s.watch_pid for s in states.values() if s.watch_pid})
            hinted = all(i in states and states[i].watch_pid for i in jobs.watched())
            wait_s = interval_s if changed else min(2 * wait_s, SLOWEST * interval_s)
            end_s = jobs.next_end_s()
            patience_s = SAFETY_NET * interval_s if hinted else wait_s
            await wait_for(
                wakeups.watch, patience_s if end_s is None else min(patience_s, end_s + AFTER_END_S)
            )
    finally:
        hints.set(set())


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
