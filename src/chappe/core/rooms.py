"""How much of a pilot's capacity is left while Jobs are being chosen for it.

Jobs are taken best first. One that does not fit now is passed over, and smaller ones after it may have the
room: that is right for a moment, and wrong for ever, because with enough small Jobs the large one would
never begin. So a Job that has waited long enough for every pilot to have had its chance is not overtaken
again: the pilot takes it as its *reservation*, gathers room for it, and offers what it gathered meanwhile
only to Jobs that will be over in time (`NodeRoom.within_s`).

A Site may set cores of each node aside for *urgent* Jobs, those from some priority on: all others together
never have more of a node than what is left beside these cores. What is left urgent Jobs enter like any other,
by their priority. A Job that needs more of a node than that is not shut out for ever: it may use the whole
node, when that is free.
"""

from __future__ import annotations

from collections.abc import Mapping

from chappe.core import limits
from chappe.core.shapes import Capacity, NodeRoom, Shape, gpu_parts


class _Rooms:
    """Nodes that are alike, and what is left on each."""

    __slots__ = ("cores", "count", "gpus", "kept", "mem_bytes", "tag", "within_s")

    def __init__(self, room: NodeRoom) -> None:
        self.count = room.count
        self.cores = room.cores
        self.mem_bytes = room.mem_bytes
        self.gpus = sorted(room.gpus)
        self.within_s = room.within_s
        self.kept = room.kept
        self.tag = room.tag

    def fits(self, shape: Shape, whole: bool, urgent: bool) -> bool:
        """Whether one of these nodes has room for a node's part of the Job; if it may have the `whole`, of
        what is kept as well."""
        cores = self.cores if whole else self.cores - self.kept
        if self.tag != shape.node_tag:
            return False
        if self.count <= 0 or shape.cores > cores or shape.mem_bytes > self.mem_bytes:
            return False
        # What is urgent waits for no large Job.
        if self.within_s is not None and not urgent and not 0 < shape.wall_s <= self.within_s:
            return False
        parts = gpu_parts(shape.gpus)
        if parts > 100:
            return self.gpus.count(100) * 100 >= parts
        return parts == 0 or (len(self.gpus) > 0 and self.gpus[-1] >= parts)

    def most(self, shape: Shape, whole: bool, urgent: bool) -> int:
        """At most how many such parts fit here."""
        if not self.fits(shape, whole, urgent):
            return 0
        each = (self.cores if whole else self.cores - self.kept) // shape.cores
        if shape.mem_bytes:
            each = min(each, self.mem_bytes // shape.mem_bytes)
        if parts := gpu_parts(shape.gpus):
            each = min(each, sum(self.gpus) // parts)
        return each * self.count

    def without(self, shape: Shape, urgent: bool) -> NodeRoom:
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
        kept = min(cores, max(0, self.kept - shape.cores) if urgent else self.kept)
        return NodeRoom(1, cores, mem, tuple(gpus), self.within_s, kept, self.tag)


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
        #: From this priority on a Job is urgent; who needs more cores than these of a node may have it whole.
        self.urgent = cap.urgent
        self._others = cap.node_cores - (0 if cap.urgent is None else cap.urgent_cores)
        #: The Shape that was last found to have no room, urgent or not: rooms only shrink.
        self._full: tuple[Shape, bool] | None = None

    def is_urgent(self, priority: int) -> bool:
        """Whether a Job of this priority may have what is kept for such."""
        return self.urgent is not None and priority >= self.urgent

    def take(self, shape: Shape, priority: int = 0) -> bool:
        """Reserve room for one Job of `shape`; False when there is none (now)."""
        if self.left <= 0 or not self._has_named(shape):
            return False
        urgent = self.is_urgent(priority)
        found = self._find(shape, urgent)
        if found:
            for rooms in found:
                self._split(rooms, shape, urgent)
        elif self._prefetch > 0:
            self._prefetch -= 1
        else:
            return False
        self._spend(shape)
        return True

    def fits(self, shape: Shape, priority: int = 0) -> bool:
        """Whether `take` would find room that is free now."""
        found = self.left > 0 and self._has_named(shape)
        return found and bool(self._find(shape, self.is_urgent(priority)))

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

    def most(self, shape: Shape, *, urgent: bool = False) -> int:
        """At most how many Jobs of `shape` may still be granted: bounds the search for heads."""
        whole = urgent or shape.cores > self._others
        now = sum(rooms.most(shape, whole, urgent) for rooms in self._rooms) // shape.nodes
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

    def _find(self, shape: Shape, urgent: bool) -> list[_Rooms]:
        """Where the Job's nodes are, one entry a node; empty when it does not fit."""
        found: list[_Rooms] = []
        if self._full is not None and shape is self._full[0] and urgent <= self._full[1]:
            return found
        whole = urgent or shape.cores > self._others
        for rooms in self._rooms:
            if rooms.fits(shape, whole, urgent):
                found += [rooms] * min(rooms.count, shape.nodes - len(found))
                if len(found) == shape.nodes:
                    return found
        self._full = shape, urgent
        return []

    def _split(self, rooms: _Rooms, shape: Shape, urgent: bool) -> None:
        rest = rooms.without(shape, urgent)
        if rooms.count == 1:
            rooms.cores, rooms.mem_bytes, rooms.gpus = rest.cores, rest.mem_bytes, sorted(rest.gpus)
            rooms.kept = rest.kept
            return
        rooms.count -= 1
        # What is left of a node is filled up before a whole one is broken.
        self._rooms.insert(self._rooms.index(rooms), _Rooms(rest))


def may_reserve(waited_s: float) -> bool:
    """Whether a Job that waited so long has given every pilot its chance."""
    return waited_s >= limits.RESERVE_AFTER_S
