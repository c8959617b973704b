"""When each Session was last heard, on CLOCK_BOOTTIME, in memory.

A starting Hub gives every Session a full TTL: what was heard before is not looked at. The entry is
renewed when a sync arrives, before its transaction is queued; so a takeover that is decided on the
writer's thread after it sees the renewal, and one decided before it makes the sync answer `unknown`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping


class Liveness:
    """Row numbers of Sessions, and when they were heard. Read from the writer's thread too."""

    def __init__(self, boot: Callable[[], float]) -> None:
        self._boot = boot
        self._heard: dict[int, float] = {}
        self._marked: dict[int, float] = {}

    def heard(self, session: int) -> None:
        """A Session spoke."""
        self._heard[session] = self._boot()

    def open(self, sessions: Iterable[int]) -> None:
        """All Sessions that are not dead: new ones begin now, those no longer there are forgotten."""
        now = self._boot()
        there = set(sessions)
        for session in there - self._heard.keys():
            self._heard[session] = now
        for session in self._heard.keys() - there:
            del self._heard[session]
            self._marked.pop(session, None)

    def ago_s(self) -> dict[int, float]:
        """Seconds since each was heard."""
        now = self._boot()
        return {session: now - at for session, at in self._heard.copy().items()}

    def late(self, after_s: float) -> dict[int, float]:
        """When those not heard for `after_s` were heard last (CLOCK_BOOTTIME), unless it is marked."""
        limit = self._boot() - after_s
        return {
            session: at
            for session, at in self._heard.copy().items()
            if at < limit and self._marked.get(session) != at
        }

    def mark(self, silent: Mapping[int, float]) -> None:
        """These were marked silent in the store, having been heard last at these times."""
        self._marked.update(silent)
