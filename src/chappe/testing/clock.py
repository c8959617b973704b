"""A clock that stands still until it is told otherwise."""

from __future__ import annotations

#: Where a FakeClock begins unless told otherwise: 2027-01-15 08:00 UTC.
BEGIN = 1_800_000_000.0


class FakeClock:
    """Seconds since 1970 (or since boot), as a function without arguments, like `time.time`."""

    def __init__(self, now: float = BEGIN) -> None:
        self.now = now

    def __call__(self) -> float:
        """The time now."""
        return self.now

    def advance(self, seconds: float) -> float:
        """Let time pass; the time then. ValueError if it were to go back."""
        if seconds < 0:
            raise ValueError("a clock does not go back")
        self.now += seconds
        return self.now
