"""When to speak to the Hub, and how much work to have at hand.

Speaking: while there are few reports each goes at once, because somebody may wait for it. Under load they
gather: a sync costs the Hub a transaction and us about a millisecond, whatever it carries. The pause
between two syncs follows how long the Hub takes (four times as long, and ten times after a sync that
carried many reports), so a busy Hub is asked less often and answers for more Jobs at a time. With nothing to
say, one long poll is always pending: that is how work, cancels and drains arrive. Only after a grant it waits
a moment: a poll would have to be ended by the report that will soon be due.

At hand: enough for one second at the present rate, never more than a few thousand Jobs, and nothing at
all while nobody knows how long Jobs take, because work that waits here could run elsewhere. Pure.
"""

from __future__ import annotations

from chappe.core import limits
from chappe.core.rates import Rate

FEW_PER_S = 150.0
FEW_TOOK_S = 0.1
"""With fewer reports than that, to a Hub that answers within that, and no Jobs at hand for which there is no
room yet, no report waits for others. One who makes one call after the other gets by with 70 a second; where
work waits in line, nobody waits for a single end of it."""

START_S = 0.02
"""How long a start may wait for the end of its Job, which is told instead of it. What is shorter than that is
nobody's to watch."""

GAP_MIN_S = 0.010
GAP_MAX_S = 1.0
"""Least and longest pause between the beginnings of two syncs while there is something to report."""

GAP_FACTOR = 4.0
GAP_FACTOR_MANY = 10.0
MANY = 20
"""A sync that carried so many reports shows a stream of short Jobs: nobody waits for a single one. With the
longer pause for such syncs alone, a Job cost the Hub 182 µs of CPU instead of 229 (in one run)."""

HASTE_MAX_S = 2.0
"""Longest pause when the Hub answers long polls at once and says nothing new: it repeats a cancel until its
Job has ended, and a drain until all have."""

POLL_S = 15.0
"""How long a long poll may be held: the heartbeat, far below the Session's TTL."""

PREFETCH_MOST = 4_000
STALE_S = 5.0
"""Work at hand that could not begin for so long goes back, so that another pilot may run it."""

RETRY_MIN_S = 0.25
RETRY_MAX_S = 5.0
_WEIGHT = 0.05


class Pacer:
    """Decides when the next sync may be sent. Times are seconds of one monotonic clock."""

    def __init__(self) -> None:
        self.next_at = 0.0
        """When the next sync may carry reports."""
        self._failures = 0
        self._hasty = 0
        self._rate = Rate()

    def answered(
        self,
        sent_at: float,
        now: float,
        took_s: float,
        granted: bool,
        reports: int = 0,
        backlog: bool = False,
    ) -> float:
        """A sync was answered; returns until when a sync that reports nothing is to wait.

        `granted`: it brought grants, so there will soon be something to report. `took_s` is what the Hub and
        the network took for the last sync that was not held. `backlog`: more is at hand than can run now.
        """
        self._failures = 0
        few = self._rate.add(reports, now) < FEW_PER_S and took_s < FEW_TOOK_S
        if few and not backlog:
            self.next_at = now
        else:
            self.next_at = sent_at + self._gap(took_s, reports)
            granted = granted or reports > 0
        if granted:
            self._hasty = 0
            return max(self.next_at, now + GAP_MIN_S)
        self._hasty = self._hasty + 1 if not reports and now - sent_at < HASTE_MAX_S else 0
        # Once or twice it is our own wake.
        return now + min(HASTE_MAX_S, GAP_MIN_S * 2**self._hasty) if self._hasty > 2 else now

    @staticmethod
    def _gap(took_s: float, reports: int) -> float:
        factor = GAP_FACTOR if reports < MANY else GAP_FACTOR_MANY
        return min(GAP_MAX_S, max(GAP_MIN_S, factor * took_s))

    def failed(self, now: float, jitter: float) -> float:
        """No answer came: when to try again. `jitter` is random in [0, 1)."""
        wait = min(RETRY_MAX_S, RETRY_MIN_S * 2 ** min(self._failures, 16))
        self._failures += 1
        self.next_at = now + wait * (0.5 + jitter)
        return self.next_at


class Estimate:
    """How long Jobs take from start to end (seconds): a moving mean, of the last twenty or so."""

    def __init__(self) -> None:
        self._mean: float | None = None

    @property
    def known_s(self) -> float | None:
        """The mean, or None before the first Job ended."""
        return self._mean

    def ended(self, wall_s: float) -> None:
        """A Job took `wall_s`."""
        self._mean = wall_s if self._mean is None else self._mean + _WEIGHT * (wall_s - self._mean)


def prefetch(estimate_s: float | None, cores: int, cores_per_job: float) -> int:
    """How many Jobs to have waiting: one second of work for `cores`, 0 while `estimate_s` is unknown."""
    if estimate_s is None:
        return 0
    at_once = max(1.0, cores / max(cores_per_job, 1.0))
    return min(PREFETCH_MOST, int(at_once * limits.PREFETCH_S / max(estimate_s, 1e-4)))
