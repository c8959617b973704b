"""Deadlines on CLOCK_BOOTTIME: one heap, one kernel timer.

epoll's own time-out stands still while the node is suspended, and a takeover deadline must not: after a
resume the Job may already run elsewhere. So the earliest deadline is given to a timerfd on CLOCK_BOOTTIME
(Linux 3.15), by ctypes, since Python has it only from 3.13. Entries are never searched for: one that
came too early (its deadline was moved back, its run has ended) is looked at and dropped when it is due.
"""

from __future__ import annotations

import ctypes
import heapq
import os
import time
from contextlib import suppress
from math import inf

from chappe.pilot.launch_wire import Key

_TFD_TIMER_ABSTIME = 1
_MIN_ENTRIES = 64


def boot_now() -> float:
    """CLOCK_BOOTTIME in seconds."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Deadlines:
    """Keys and the times when they want attention; `fd` becomes readable when the first is due."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.fd: int = self._libc.timerfd_create(time.CLOCK_BOOTTIME, os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise self._error("timerfd_create")
        self._heap: list[tuple[float, Key]] = []
        self._armed = inf

    def add(self, when: float, key: Key) -> None:
        """Give `key` attention at `when` (CLOCK_BOOTTIME seconds; infinity: never)."""
        if when == inf:
            return
        heapq.heappush(self._heap, (when, key))
        if when < self._armed:
            self._arm(when)

    def due(self, now: float) -> list[Key]:
        """The keys whose time has come, each as often as it was added. Call it when `fd` is readable."""
        with suppress(BlockingIOError):
            os.read(self.fd, 8)
        keys = []
        while self._heap and self._heap[0][0] <= now:
            keys.append(heapq.heappop(self._heap)[1])
        self._arm(self._heap[0][0] if self._heap else inf)
        return keys

    def bloated(self, live: int) -> bool:
        """Whether, with `live` keys alive, most entries must be of dead ones."""
        return len(self._heap) > 2 * live + _MIN_ENTRIES

    def clear(self) -> None:
        """Drop all entries; the timer may still fire once, for nothing."""
        self._heap.clear()

    def _arm(self, when: float) -> None:
        # All zeros disarm; a time in the past, but not zero, fires at once.
        seconds, nanoseconds = (0, 0) if when == inf else divmod(max(1, int(when * 1e9)), 10**9)
        value = (ctypes.c_long * 4)(0, 0, seconds, nanoseconds)
        if self._libc.timerfd_settime(self.fd, _TFD_TIMER_ABSTIME, value, None) != 0:
            raise self._error("timerfd_settime")
        self._armed = when

    @staticmethod
    def _error(call: str) -> OSError:
        code = ctypes.get_errno()
        return OSError(code, f"{call}: {os.strerror(code)}")
