"""How long the pilot goes on: the allocation's end, SIGTERM, idleness.

Before the end (E) of an allocation, with D = `drain_s`: from E - 1.5 D nothing new is asked for, at E - D
what runs gets TERM, at E - D/2 KILL, and what is left until E is for reports. SIGTERM moves E to `kill_s`
from then; a second one ends what runs at once. Pure; times are CLOCK_BOOTTIME seconds.
"""

from __future__ import annotations

from enum import Enum, auto
from math import inf

from chappe.pilot.session import Options

_EARLY_S = 300.0


class Step(Enum):
    """What is due."""

    DRAIN = auto()
    END_JOBS = auto()
    GIVE_UP = auto()


class Lifetime:
    """Says when to drain, when to end what runs, and when to give up. Each step is due once."""

    def __init__(self, options: Options, ends_at: float = inf) -> None:
        self._options = options
        self._ends_at = ends_at
        self._jobs_end_at = ends_at - options.drain_s
        self._idle_since: float | None = None
        self._job_ends_begun = False
        self.draining = False
        self.termed = False
        """Whether SIGTERM came."""
        self.cancelled = False
        """Whether somebody ended the allocation before its time."""

    @property
    def grace_s(self) -> float:
        """From TERM to KILL when the allocation ends."""
        return self._options.drain_s / 2

    @property
    def jobs_end_at(self) -> float | None:
        """When what runs is ended, because the allocation is; None for never."""
        return None if self._jobs_end_at == inf else self._jobs_end_at

    def sigterm(self, now: float) -> None:
        """The scheduler (or a person) wants the allocation to end."""
        self.termed = True
        # Schedulers send it at the end of the time as well, some of them minutes before.
        self.cancelled = self.cancelled or now < self._ends_at - max(
            _EARLY_S, 1.5 * self._options.drain_s
        )
        if self.draining and self._options.kill_s == 0:
            self._jobs_end_at = min(self._jobs_end_at, now)
        elif self._options.kill_s > 0:
            again = self.draining
            self._ends_at = min(self._ends_at, now + self._options.kill_s)
            self._jobs_end_at = min(
                self._jobs_end_at, now if again else self._ends_at - self._options.drain_s
            )
        self.draining = True

    def drain(self) -> None:
        """Nothing more is to be asked for."""
        self.draining = True

    def busy(self, busy: bool, now: float) -> bool:
        """Whether anything is held; idleness counts from the first time that nothing is. The answer is
        whether `next_at` may have changed."""
        was = self._idle_since
        if busy:
            self._idle_since = None
        elif was is None:
            self._idle_since = now
        return self._idle_since != was

    def left_s(self, now: float) -> float | None:
        """How long a Job that begins now may run; None for ever."""
        return None if self._jobs_end_at == inf else max(0.0, self._jobs_end_at - now)

    def ends_in_s(self, now: float) -> float | None:
        """How long until the scheduler ends the allocation; None for never."""
        return None if self._ends_at == inf else max(0.0, self._ends_at - now)

    def due(self, now: float) -> Step | None:
        """What is to be done now; ask again until it is None."""
        if now >= self._ends_at:
            return Step.GIVE_UP
        if now >= self._jobs_end_at and not self._job_ends_begun:
            self._job_ends_begun = True
            self.draining = True
            return Step.END_JOBS
        if not self.draining and now >= min(self._drain_at(), self._idle_at()):
            self.draining = True
            return Step.DRAIN
        return None

    def next_at(self) -> float:
        """When something will be due; infinity for never."""
        times = [self._ends_at]
        if not self._job_ends_begun:
            times.append(self._jobs_end_at)
        if not self.draining:
            times += [self._drain_at(), self._idle_at()]
        return min(times)

    def _drain_at(self) -> float:
        return self._jobs_end_at - self._options.drain_s / 2

    def _idle_at(self) -> float:
        if self._idle_since is None or self._options.idle_s == 0:
            return inf
        return self._idle_since + self._options.idle_s
