"""Shapes: Jobs that match alike are counted and searched as one.

A Shape is the resources a Job needs, the Sites that may run it and its wall-clock limit, rounded up on
a ladder. Matching looks at each Shape once, then at the head of each Shape that fits: a million Jobs
that do not fit cost as much as one. `why`, elasticity and the dashboard count by Shape.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left

import msgspec

from chappe.core.jobs import JobSpec

_MINUTE, _HOUR, _DAY = 60, 3_600, 86_400
#: Wall-clock limits are rounded up to these (seconds), so that Shapes stay few.
LADDER_S: tuple[int, ...] = (
    *(m * _MINUTE for m in (1, 2, 5, 10, 15, 20, 30, 45)),
    *(h * _HOUR for h in (1, 2, 3, 4, 6, 8, 10, 12, 18)),
    *(d * _DAY for d in (1, 2, 3, 5, 7, 10, 14, 21, 30, 60, 90, 180, 366)),
)


class Shape(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """What matching needs to know of a Job. `wall_s` 0 means that the Job set no limit."""

    sites: tuple[str, ...]
    cores: int = 1
    mem_bytes: int = 0
    wall_s: int = 0
    nodes: int = 1
    ranks: int = 1
    gpus: int = 0


class Capacity(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a pilot offers. `cores` and `mem_bytes` are free now; `node_*` is all that it has.

    `prefetch` is how many Jobs it takes beyond those that fit now (work for about two seconds);
    each must fit the whole node. `left_s` is the time until the allocation drains, None for ever.
    """

    cores: int
    mem_bytes: int
    node_cores: int
    node_mem_bytes: int
    prefetch: int = 0
    gpus: int = 0
    left_s: float | None = None


def shape_of(spec: JobSpec) -> Shape:
    """The Shape of a Job."""
    r = spec.resources
    return Shape(
        sites=tuple(sorted(spec.sites)),
        cores=r.cores,
        mem_bytes=r.mem_bytes,
        wall_s=round_wall(r.wall_s),
        nodes=r.nodes,
        ranks=r.ranks,
        gpus=r.gpus,
    )


def round_wall(wall_s: float | None) -> int:
    """`wall_s` rounded up on the ladder; 0 for no limit."""
    if wall_s is None:
        return 0
    return LADDER_S[min(bisect_left(LADDER_S, wall_s), len(LADDER_S) - 1)]


def shape_key(shape: Shape) -> str:
    """A stable hash of a Shape (hex)."""
    return hashlib.sha256(msgspec.json.encode(shape)).hexdigest()[:32]


def misfit(shape: Shape, cap: Capacity) -> str | None:
    """Why no Job of this Shape can ever run on a node like this, for a person; None when it can."""
    if shape.nodes > 1:
        return f"it needs {shape.nodes} nodes and the pilot has 1"
    if shape.gpus > cap.gpus:
        return f"it needs {shape.gpus} GPUs and the pilot has {cap.gpus}"
    if shape.cores > cap.node_cores:
        return f"it needs {shape.cores} cores and the pilot has {cap.node_cores}"
    if shape.mem_bytes > cap.node_mem_bytes:
        return f"it needs {shape.mem_bytes} bytes of memory and the pilot has {cap.node_mem_bytes}"
    if cap.left_s is not None and shape.wall_s > cap.left_s:
        return (
            f"its limit of {shape.wall_s} s is longer than the {max(cap.left_s, 0):.0f} s "
            "that the allocation has left"
        )
    return None


class Room:
    """A pilot's capacity while grants are being chosen: first what is free now, then the prefetch."""

    def __init__(self, cap: Capacity, most: int) -> None:
        self._cores = cap.cores
        self._mem = cap.mem_bytes
        self._prefetch = cap.prefetch
        self.left = most

    def take(self, shape: Shape) -> bool:
        """Reserve room for one Job of `shape`; False when there is none (now)."""
        if self.left <= 0:
            return False
        if shape.cores <= self._cores and shape.mem_bytes <= self._mem:
            self._cores -= shape.cores
            self._mem -= shape.mem_bytes
        elif self._prefetch > 0:
            self._prefetch -= 1
        else:
            return False
        self.left -= 1
        return True

    def most(self, shape: Shape) -> int:
        """At most how many Jobs of `shape` may still be granted: bounds the search for heads."""
        by_cores = self._cores // shape.cores
        by_mem = self._mem // shape.mem_bytes if shape.mem_bytes else by_cores
        return min(self.left, min(by_cores, by_mem) + self._prefetch)
