"""Which waiting Jobs which allocation has room for: first fit, the widest and longest Jobs first.

Room is measured in nodes over the time in which the work is to be through: a Job of `t` seconds that takes a
quarter of a node uses, where `r` such Jobs can follow each other in that time, 1/(4 r) of a node. Jobs of
several nodes take whole nodes, so that what fitted once fits again after an allocation was cut to its size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from chappe.core.elastic import Allocation, NodeSize, Serves, Stage, Waiting
from chappe.core.shapes import Shape, gpu_parts, shape_key

_EPS = 1e-9
_ANY = 1 << 40
"""Jobs that fit on a node of which nothing is known: the first allocation is to tell."""


class Load:
    """The Jobs of a Shape that wait, as allocations see them."""

    __slots__ = ("jobs", "shape", "time_s")

    def __init__(self, waiting: Waiting, assumed_s: float, named_free: dict[str, int]) -> None:
        self.shape = waiting.shape
        self.time_s = float(waiting.shape.wall_s or waiting.shape.least_s or assumed_s)
        self.jobs = waiting.jobs
        for name, count in self.shape.named:
            self.jobs = min(self.jobs, max(0, named_free.get(name, 0)) // max(1, count))

    @property
    def order(self) -> tuple[float, ...]:
        """The first is the hardest to place."""
        return (-self.shape.nodes, -self.shape.cores, -self.shape.gpus, -self.time_s)


def in_order(loads: Iterable[Load]) -> list[Load]:
    """The widest first, then the largest, then the longest; always the same order."""
    return sorted(loads, key=lambda load: (load.order, shape_key(load.shape)))


def per_node(shape: Shape, node: NodeSize | None) -> int:
    """How many such Jobs (or parts of them) a node takes at once; 0: none, it is too small."""
    if node is None:
        return _ANY
    most = node.cores // max(1, shape.cores)
    if shape.mem_bytes and node.mem_bytes:
        most = min(most, node.mem_bytes // shape.mem_bytes)
    if parts := gpu_parts(shape.gpus):
        most = min(most, gpu_parts(node.gpus) // parts)
    return most


class Bin:
    """An allocation that is open or is to be asked for, and how much of it is spoken for."""

    def __init__(
        self,
        nodes: int,
        room_s: float | None,
        node: NodeSize | None,
        *,
        busy: bool = False,
        of: Allocation | None = None,
    ) -> None:
        self.nodes = nodes
        self.of = of
        self.serves: list[Serves] = []
        self.widest = 1
        self._room_s = math.inf if room_s is None else room_s
        self._node = node
        self._busy = busy
        self._used = 0.0

    @property
    def needed(self) -> int:
        """How many nodes do."""
        return max(self.widest, math.ceil(self._used - _EPS))

    def runs(self, time_s: float, within_s: float) -> int:
        """How many Jobs of this length can follow each other in one place; where others run now that
        may take as long, the first of them counts only if it is over in time."""
        if time_s > self._room_s:
            return 0
        turns = math.floor(min(within_s, self._room_s) / time_s + _EPS)
        return turns if self._busy else max(1, turns)

    def take(self, load: Load, within_s: float) -> None:
        """Take as many of its Jobs as there is room for."""
        shape = load.shape
        at_once = per_node(shape, self._node) * self.runs(load.time_s, within_s)
        if not at_once or not load.jobs or shape.nodes > self.nodes:
            return
        free = self.nodes - self._used
        if shape.nodes == 1:
            jobs = min(load.jobs, math.floor(free * at_once + _EPS))
            self._used += jobs / at_once
        else:
            groups = math.floor(free + _EPS) // shape.nodes
            jobs = min(load.jobs, groups * at_once)
            self._used += math.ceil(jobs / at_once) * shape.nodes
        if jobs:
            load.jobs -= jobs
            self.widest = max(self.widest, shape.nodes)
            self.serves.append(Serves(shape, jobs))


_STAGES = {Stage.ASKS: 0, Stage.FRESH: 1, Stage.QUEUED: 2}


def bins_of(
    open_: Iterable[Allocation], node: NodeSize | None, now: float, margin_s: float
) -> list[Bin]:
    """The allocations that take work; those that run first, so that what is not needed is still queued."""
    able = [a for a in open_ if a.stage in _STAGES]
    able.sort(key=lambda a: (_STAGES[a.stage], a.asked_at, a.id))
    bins = []
    for a in able:
        busy = a.stage is Stage.ASKS
        # Until its pilot asks, an allocation counts as it was asked for, or its start would call for another.
        left_s = a.left_s(now) if busy else a.wall_s
        room_s = None if left_s is None else max(0.0, left_s - margin_s)
        bins.append(Bin(a.nodes, room_s, a.node or node, busy=busy, of=a))
    return bins
