"""Where Jobs run on this node: cores with affinity, memory, and the order of those that wait.

The order is strict: higher priority first, and first granted first among equals. When the first Job does
not fit, it waits and so does everything behind it: smaller Jobs that overtook it would keep it waiting for
ever. What that costs (cores idle while a large Job waits for more) is bounded by the prefetch: the Hub
offers work that fits what is free, and what waits too long here goes back to it.

A *slot* is room taken for one running Job. Short Jobs of the same size may queue up behind the one that
runs in a slot (the launcher's lanes): at 2 000 Jobs per second the way to the head and back would cost
more than the Jobs. Pure: no clock, no I/O.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from math import inf
from typing import Generic, Protocol, TypeVar

LANE_S = 0.05
"""How much work (seconds, estimated) may queue up behind the Job that runs in a slot."""

LANE_MOST = 48
"""Jobs in one slot at most, the running one included."""


class Slot:
    """Room for one running Job. `cpus` is empty without affinity; `jobs` counts who shares it in turn;
    `turned_at` is when one of them last began or ended (whoever hears of it says so)."""

    __slots__ = ("cores", "cpus", "jobs", "lane", "mem_bytes", "turned_at")

    def __init__(self, lane: int, cores: int, mem_bytes: int, cpus: list[int]) -> None:
        self.lane = lane
        self.cores = cores
        self.mem_bytes = mem_bytes
        self.cpus = cpus
        self.jobs = 1
        self.turned_at = inf


class Placement:
    """The cores and memory of one node, and the slots taken of them.

    `cpus` are the ids this process may use. With `slots` the node counts as that many cores, whatever it
    has, and Jobs get no CPUs of their own: the user asked to share them.
    """

    def __init__(
        self, cpus: Sequence[int], mem_bytes: int, slots: int | None = None, first_lane: int = 1
    ) -> None:
        self.node_cores = len(cpus) if slots is None else slots
        self.node_mem_bytes = mem_bytes
        self.free_cores = self.node_cores
        self.free_mem_bytes = mem_bytes
        self._affinity = slots is None
        self._cpus = sorted(cpus) if self._affinity else []
        # Never used twice: a restarted head must not queue a Job behind one that its predecessor left there.
        self._lane = first_lane
        self._open: dict[tuple[int, int], dict[int, Slot]] = {}
        self._filling = False
        self.shared = 0
        """Jobs that wait behind another in a slot."""

    def fits_ever(self, cores: int, mem_bytes: int) -> bool:
        """Whether an empty node has this much."""
        return cores <= self.node_cores and mem_bytes <= self.node_mem_bytes

    def take(self, cores: int, mem_bytes: int) -> Slot | None:
        """Room for a Job, or None when there is not enough now."""
        if cores > self.free_cores or mem_bytes > self.free_mem_bytes:
            return None
        # After `occupy` there may be fewer CPUs on record than cores; such a Job goes without its own.
        cpus = self._cpus[:cores] if self._affinity and len(self._cpus) >= cores else []
        return self._occupy(cores, mem_bytes, cpus)

    def share(self, cores: int, mem_bytes: int, estimate_s: float | None) -> Slot | None:
        """A place behind a running Job of the same size, when Jobs are expected to be short.

        Slots are filled up when one of them is half empty, and then to the brim: that makes few large
        batches of many small ones.
        """
        if estimate_s is None or estimate_s >= LANE_S:
            return None
        most = min(LANE_MOST, 1 + int(LANE_S / max(estimate_s, 1e-4)))
        slots = self._open.get((cores, mem_bytes))
        if not slots:
            return None
        slot = min(slots.values(), key=_jobs)
        if slot.jobs >= (most if self._filling else max(1, most // 2)):
            self._filling = False
            return None
        self._filling = True
        slot.jobs += 1
        self.shared += 1
        return slot

    def leave(self, slot: Slot) -> None:
        """One of the slot's Jobs is over, or did not start; the last one frees the room."""
        slot.jobs -= 1
        if slot.jobs > 0:
            self.shared -= 1
            return
        self.free_cores += slot.cores
        self.free_mem_bytes += slot.mem_bytes
        size = (slot.cores, slot.mem_bytes)
        del self._open[size][slot.lane]
        if not self._open[size]:
            del self._open[size]
        if slot.cpus:
            self._cpus = sorted(self._cpus + slot.cpus)

    def occupy(self, cores: int, mem_bytes: int, cpus: Collection[int] = ()) -> Slot:
        """Room for a Job that runs already (found after a restart), on `cpus` as far as they are known.

        It may take more than there is: then nothing new starts until enough has ended.
        """
        own = [cpu for cpu in self._cpus if cpu in cpus] if len(cpus) == cores else []
        return self._occupy(cores, mem_bytes, own)

    def _occupy(self, cores: int, mem_bytes: int, cpus: list[int]) -> Slot:
        self.free_cores -= cores
        self.free_mem_bytes -= mem_bytes
        if cpus:
            self._cpus = [cpu for cpu in self._cpus if cpu not in cpus]
        slot = Slot(self._lane, cores, mem_bytes, cpus)
        self._lane += 1
        self._open.setdefault((cores, mem_bytes), {})[slot.lane] = slot
        return slot


def _jobs(slot: Slot) -> int:
    return slot.jobs


class Prioritized(Protocol):
    """What a `Line` orders."""

    @property
    def priority(self) -> int:
        """Higher goes first."""


T = TypeVar("T", bound=Prioritized)


class Line(Generic[T]):
    """Who waits, by priority and then by order of arrival. One deque per priority: 8 bytes an entry."""

    def __init__(self) -> None:
        self._queues: dict[int, deque[T]] = {}
        self._first: int | None = None  # the highest priority that waits

    def __bool__(self) -> bool:
        return self._first is not None

    def push(self, item: T) -> None:
        """Join at the end of those with the same priority."""
        self._queue(item.priority).append(item)

    def push_front(self, item: T) -> None:
        """Join before those with the same priority: it waited before."""
        self._queue(item.priority).appendleft(item)

    def peek(self) -> T | None:
        """The first, or None."""
        return None if self._first is None else self._queues[self._first][0]

    def pop(self) -> T:
        """Take the first. Raises IndexError when nobody waits."""
        if self._first is None:
            raise IndexError("nobody waits")
        queue = self._queues[self._first]
        item = queue.popleft()
        if not queue:
            del self._queues[self._first]
            self._first = max(self._queues, default=None)
        return item

    def _queue(self, priority: int) -> deque[T]:
        queue = self._queues.get(priority)
        if queue is None:
            queue = self._queues[priority] = deque()
            if self._first is None or priority > self._first:
                self._first = priority
        return queue
