"""How much of a pilot's capacity is left while Jobs are being chosen for it.

Jobs are taken best first. One that does not fit now is passed over, and smaller ones after it may have the
room: that is right for a moment, and wrong for ever, because with enough small Jobs the large one would
never begin. So a Job that has waited long enough for every pilot to have had its chance is not overtaken
again: the pilot takes it as its *reservation*, gathers room for it, and offers what it gathered meanwhile
only to Jobs that will be over in time (`NodeRoom.within_s`).
"""

from __future__ import annotations

from collections.abc import Mapping

from chappe.core import limits
from chappe.core.shapes import Capacity, NodeRoom, Shape, gpu_parts


class _Rooms:
    """Nodes that are alike, and what is left on each."""

    __slots__ = ("cores", "count", "gpus", "mem_bytes", "within_s")

    def __init__(self, room: NodeRoom) -> None:
        self.count = room.count
        self.cores = room.cores
        self.mem_bytes = room.mem_bytes
        self.gpus = sorted(room.gpus)
        self.within_s = room.within_s

    def fits(self, shape: Shape) -> bool:
        """Whether one of these nodes has room for a node's part of the Job."""
        if self.count <= 0 or shape.cores > self.cores or shape.mem_bytes > self.mem_bytes:
            return False
        if self.within_s is not None and not 0 < shape.wall_s <= self.within_s:
            return False
        parts = gpu_parts(shape.gpus)
        if parts > 100:
            return self.gpus.count(100) * 100 >= parts
        return parts == 0 or (len(self.gpus) > 0 and self.gpus[-1] >= parts)

    def most(self, shape: Shape) -> int:
        """At most how many such parts fit here."""
        if not self.fits(shape):
            return 0
        each = self.cores // shape.cores
        if shape.mem_bytes:
            each = min(each, self.mem_bytes // shape.mem_bytes)
        if parts := gpu_parts(shape.gpus):
            each = min(each, sum(self.gpus) // parts)
        return each * self.count

    def without(self, shape: Shape) -> NodeRoom:
        """What one of these nodes has left beside one more part."""
        gpus = list(self.gpus)
        parts = gpu_parts(shape.gpus)
        while parts >= 100:
            gpus.remove(100)
            parts -= 100
        if parts:
            # The GPU that it fills best: whole ones stay whole.
            free = next(g for g in gpus if g >= parts)
            gpus[gpus.index(free)] -= parts
        cores, mem = self.cores - shape.cores, self.mem_bytes - shape.mem_bytes
        return NodeRoom(1, cores, mem, tuple(gpus), self.within_s)


class Room:
    """A pilot's capacity while grants are being chosen: first what is free now, then the prefetch.

    `used` is how much of the Site's named resources is in use, by whichever of its pilots.
    """

    def __init__(self, cap: Capacity, most: int, used: Mapping[str, int] | None = None) -> None:
        rooms = cap.rooms or (NodeRoom(1, cap.cores, cap.mem_bytes),)
        self._rooms = [_Rooms(room) for room in rooms]
        self._prefetch = cap.prefetch
        self._reserve = cap.reserve
        used = used or {}
        self._named = {name: have - used.get(name, 0) for name, have in cap.named.items()}
        self.left = most
        #: The Shape that was last found to have no room: rooms only shrink.
        self._full: Shape | None = None

    def take(self, shape: Shape) -> bool:
        """Reserve room for one Job of `shape`; False when there is none (now)."""
        if self.left <= 0 or not self._has_named(shape):
            return False
        found = self._find(shape)
        if found:
            for rooms in found:
                self._split(rooms, shape)
        elif self._prefetch > 0:
            self._prefetch -= 1
        else:
            return False
        self._spend(shape)
        return True

    def fits(self, shape: Shape) -> bool:
        """Whether `take` would find room that is free now."""
        return self.left > 0 and self._has_named(shape) and bool(self._find(shape))

    def reserve(self, shape: Shape) -> bool:
        """Let the pilot gather room for one Job of `shape`, and give it nothing else this time."""
        if not self._reserve or self.left <= 0 or not self._has_named(shape):
            return False
        self._spend(shape)
        self.left = 0
        return True

    def keep_named(self, shape: Shape) -> bool:
        """Whether the Site lacks named things for `shape`; then nobody else gets of them this time."""
        if self._has_named(shape):
            return False
        self._named.update((name, 0) for name, _ in shape.named)
        return True

    def most(self, shape: Shape) -> int:
        """At most how many Jobs of `shape` may still be granted: bounds the search for heads."""
        now = sum(rooms.most(shape) for rooms in self._rooms) // shape.nodes
        most = now + self._prefetch
        for name, count in shape.named:
            most = min(most, self._named.get(name, 0) // count)
        return min(self.left, max(0, most))

    def _has_named(self, shape: Shape) -> bool:
        return not shape.named or all(
            self._named.get(name, 0) >= count for name, count in shape.named
        )

    def _spend(self, shape: Shape) -> None:
        self.left -= 1
        for name, count in shape.named:
            self._named[name] -= count

    def _find(self, shape: Shape) -> list[_Rooms]:
        """Where the Job's nodes are, one entry a node; empty when it does not fit."""
        found: list[_Rooms] = []
        if shape is self._full:
            return found
        for rooms in self._rooms:
            if rooms.fits(shape):
                found += [rooms] * min(rooms.count, shape.nodes - len(found))
                if len(found) == shape.nodes:
                    return found
        self._full = shape
        return []

    def _split(self, rooms: _Rooms, shape: Shape) -> None:
        rest = rooms.without(shape)
        if rooms.count == 1:
            rooms.cores, rooms.mem_bytes, rooms.gpus = rest.cores, rest.mem_bytes, sorted(rest.gpus)
            return
        rooms.count -= 1
        # What is left of a node is filled up before a whole one is broken.
        self._rooms.insert(self._rooms.index(rooms), _Rooms(rest))


def may_reserve(waited_s: float) -> bool:
    """Whether a Job that waited so long has given every pilot its chance."""
    return waited_s >= limits.RESERVE_AFTER_S
