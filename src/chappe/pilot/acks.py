"""The ends that the launcher keeps for us, until they are in the journal."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from chappe.pilot.launch_wire import Key

_MOST = 256
_WAIT_S = 1.0


class Acks:
    """What the launcher may forget, told to it by `send` at leisure: many at once."""

    def __init__(self, send: Callable[[Iterable[Key]], None]) -> None:
        self._send = send
        self._kept: set[Key] = set()
        self._due: list[Key] = []
        self._timer: asyncio.TimerHandle | None = None

    def keep(self, key: Key) -> None:
        """This end is kept by its launcher, and written nowhere else."""
        self._kept.add(key)

    def drop(self, gone: Callable[[Key], bool]) -> None:
        """Those launchers are gone, and with them what they kept."""
        self._kept = {key for key in self._kept if not gone(key)}

    def release(self, key: Key) -> None:
        """This one need not be kept any longer; to be sent with others."""
        if key in self._kept:
            self._kept.discard(key)
            self._due.append(key)

    def pace(self) -> None:
        """Send what is due, now if it is much, soon if there is any."""
        if len(self._due) >= _MOST:
            self._flush()
        elif self._due and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_WAIT_S, self._flush)

    def cancel(self) -> None:
        """Send nothing more."""
        if self._timer is not None:
            self._timer.cancel()

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._send(self._due)
        self._due = []
