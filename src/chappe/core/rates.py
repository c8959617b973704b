"""How often something happens lately. Pure."""

from __future__ import annotations

from math import exp

OVER_S = 0.5


class Rate:
    """A mean over the last half second or so, which forgets by degrees. Times are seconds of one clock."""

    def __init__(self) -> None:
        self._recent = 0.0
        self._at = 0.0

    def add(self, count: int, at: float) -> float:
        """It happened so many times until now; how many a second that makes."""
        if at > self._at:
            self._recent *= exp((self._at - at) / OVER_S)
            self._at = at
        self._recent += count
        return self._recent / OVER_S
