"""When each Session was last heard, and when its allocation ends, on CLOCK_BOOTTIME, in memory.

The calendar may jump; a jump must not prove anybody dead. So a hard end counts from the arrival of the sync
that named it. A starting Hub gives every Session a full TTL: what was heard before is not looked at, and a
hard end that the store remembers (by the calendar) is not believed sooner. The entry is
renewed when a sync arrives, before its transaction is queued; so a takeover that is decided on the
writer's thread after it sees the renewal, and one decided before it makes the sync answer `unknown`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from chappe.core import limits


class Liveness:
    """Row numbers of Sessions, and when they were heard. Read from the writer's thread too."""

    def __init__(self, boot: Callable[[], float], clock: Callable[[], float]) -> None:
        self._boot = boot
        self._clock = clock
        self._hard_ends: dict[int, float] = {}
        self._heard: dict[int, float] = {}
        self._marked: dict[int, float] = {}

    def heard(self, session: int) -> None:
        """A Session spoke."""
        self._heard[session] = self._boot()

    def ends(self, session: int, in_s: float | None) -> None:
        """A Session said when the scheduler kills it: in so many seconds, None for never."""
        if in_s is None:
            self._hard_ends.pop(session, None)
        else:
            self._hard_ends[session] = self._boot() + in_s

    def open(self, sessions: Mapping[int, float | None]) -> None:
        """All Sessions that are not dead, and their hard ends as stored (seconds since 1970): new ones begin
        now, those no longer there are forgotten."""
        now, today = self._boot(), self._clock()
        for session in sessions.keys() - self._heard.keys():
            self._heard[session] = now
            end = sessions[session]
            if end is not None and session not in self._hard_ends:
                self._hard_ends[session] = now + max(end - today, limits.SESSION_TTL_S)
        for session in self._heard.keys() - sessions.keys():
            del self._heard[session]
            self._marked.pop(session, None)
            self._hard_ends.pop(session, None)

    def over(self) -> list[int]:
        """Those whose allocation's hard end and kill time have passed."""
        limit = self._boot() - limits.KILL_TIME_S
        return [session for session, at in self._hard_ends.copy().items() if at <= limit]

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
