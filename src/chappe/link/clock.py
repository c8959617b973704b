"""The clocks and the source of ids: the only places where `link` and its users get time and chance.

`now` is the wall clock, for what people read and what travels. `boottime` is for durations: it never jumps
and goes on counting while the machine sleeps, so that a laptop's lid does not stretch a lease.
"""

from __future__ import annotations

import os
import secrets
import threading
import time

_BATCH = 512
_COUNTERS = 4096
_VARIANT = {c: "89ab"[int(c, 16) & 3] for c in "0123456789abcdef"}


def now() -> float:
    """Seconds since the Unix epoch (UTC)."""
    return time.time()


def boottime() -> float:
    """Seconds since this machine booted, suspended time included (CLOCK_BOOTTIME)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class _Ids:
    """UUIDv7s that rise within the process: 48 bits of milliseconds, a 12-bit counter, 62 random bits.

    The counter starts anew in each millisecond, in the lower half of its range. When it runs over, or
    when the wall clock steps back, ids take the next millisecond after the last one used: they rise in
    any case. Random tails are drawn by the batch, because one system call per id would cost more than
    all the rest.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Drop what is prepared (in a forked child, so that it does not repeat its parent's ids)."""
        self._lock = threading.Lock()
        self._ms = 0
        self._head = ""
        self._count = _COUNTERS
        self._tails: list[str] = []

    def new(self) -> str:
        with self._lock:
            if not self._tails:
                self._refill()
            ms = int(time.time() * 1000)
            if ms > self._ms or self._count >= _COUNTERS:
                self._ms = max(ms, self._ms + 1)
                digits = f"{self._ms:012x}"
                self._head = f"{digits[:8]}-{digits[8:]}-7"
                self._count = secrets.randbelow(_COUNTERS // 2)
            count = self._count
            self._count = count + 1
            return f"{self._head}{count:03x}{self._tails.pop()}"

    def _refill(self) -> None:
        digits = os.urandom(8 * _BATCH).hex()
        self._tails = [
            f"-{_VARIANT[digits[i]]}{digits[i + 1 : i + 4]}-{digits[i + 4 : i + 16]}"
            for i in range(0, 16 * _BATCH, 16)
        ]


_ids = _Ids()
os.register_at_fork(after_in_child=_ids.forget)


def new_id() -> str:
    """A new UUIDv7 as canonical text; each is greater than the one before it in this process."""
    return _ids.new()
