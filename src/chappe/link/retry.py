"""How long to wait before the next try: full jitter, so that a thousand clients do not come back at once."""

from __future__ import annotations

import secrets

import msgspec


class RetryPolicy(msgspec.Struct, frozen=True):
    """At most `tries` tries in all, and no new one `budget_s` after the first began.

    The n-th pause is drawn from 0 to min(`most_s`, `first_s` · 2ⁿ) seconds.
    """

    tries: int = 6
    budget_s: float = 60.0
    first_s: float = 0.1
    most_s: float = 10.0

    def pause_s(
        self, failures: int, elapsed_s: float, retry_after_s: float | None = None
    ) -> float | None:
        """The pause after so many failures (≥ 1); None when it is time to give up.

        What the server asked for (Retry-After) is the least.
        """
        pause = max(jitter_s(failures - 1, self.first_s, self.most_s), retry_after_s or 0.0)
        if failures >= self.tries or elapsed_s + pause > self.budget_s:
            return None
        return pause


RETRY = RetryPolicy()
"""What a request gets unless its caller says otherwise."""
NO_RETRY = RetryPolicy(tries=1)
"""One try: for callers with a loop of their own."""


def jitter_s(failures: int, first_s: float, most_s: float) -> float:
    """A random pause in seconds, from 0 to min(`most_s`, `first_s` · 2^failures)."""
    ceiling = min(most_s, first_s * 2.0 ** min(failures, 60))
    return ceiling * secrets.randbelow(1 << 20) / (1 << 20)
