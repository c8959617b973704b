"""How long BatchJobs wait in a queue: learned from those that began, by queue, size and time.

Waits of a batch system are skewed, so quantiles are kept and no means: of the last few dozen waits in each
bucket. Buckets are as coarse as the difference matters: sizes by powers of two, times by the ladder's
larger steps. A bucket that has seen little asks its neighbours, the nearest first.
"""

from __future__ import annotations

import math
from bisect import bisect_left

import msgspec

KEPT = 48
"""Waits remembered in a bucket: what was long ago was another machine."""

ENOUGH = 3
"""So many waits in a bucket speak for themselves."""

BUCKETS = 400
"""Buckets at most; of more, the longest unused is forgotten."""

_TIMES_S = (1_800, 3_600, 2 * 3_600, 4 * 3_600, 8 * 3_600, 86_400, 3 * 86_400)


class Bucket(msgspec.Struct, frozen=True, array_like=True):
    """The last waits (seconds, the newest last) of BatchJobs that are alike."""

    queue: str
    size: int
    time: int
    waits_s: tuple[float, ...]


class Waits(msgspec.Struct, frozen=True):
    """What was learned; the bucket that was used last stands last."""

    buckets: tuple[Bucket, ...] = ()

    def learned(self, queue: str, nodes: int, wall_s: float | None, waited_s: float) -> Waits:
        """The same, with one more BatchJob that began after `waited_s`."""
        key = (queue, _size(nodes), _time(wall_s))
        rest = tuple(b for b in self.buckets if (b.queue, b.size, b.time) != key)
        before = next((b.waits_s for b in self.buckets if b not in rest), ())
        waits_s = (*before, max(0.0, waited_s))[-KEPT:]
        return Waits((*rest, Bucket(*key, waits_s))[-BUCKETS:])

    def expected_s(
        self, queue: str, nodes: int, wall_s: float | None, quantile: float = 0.5
    ) -> float | None:
        """How long such a BatchJob is likely to wait, in so many of all cases; None when nobody knows."""
        size, time = _size(nodes), _time(wall_s)
        near = sorted(
            (b for b in self.buckets if b.queue == queue),
            key=lambda b: (abs(b.size - size) + abs(b.time - time), b.size, b.time),
        )
        seen: list[float] = []
        for bucket in near:
            seen += bucket.waits_s
            if len(seen) >= ENOUGH:
                break
        if not seen:
            return None
        return sorted(seen)[max(0, math.ceil(quantile * len(seen)) - 1)]


def _size(nodes: int) -> int:
    return max(0, nodes - 1).bit_length()


def _time(wall_s: float | None) -> int:
    return len(_TIMES_S) if wall_s is None else bisect_left(_TIMES_S, wall_s)
