"""Where Jobs run: nodes, the slots taken of them, and the order of those that wait.

The order is by priority, first granted first among equals. When the first Job does not fit, it gets a
*reservation*: the nodes where it will have room the soonest, by the estimates and limits of what runs
there. Those behind it may overtake it only where they cannot keep it waiting: on other nodes, in what the
first will not need, or for less time than it has to wait. Its nodes are chosen once; so however many
small Jobs arrive, it begins no later than the estimates said at that moment, if they held. What runs
longer than anybody said counts as endless, and then nothing more is let in before it.

A *slot* is room taken for one running Job. Short Jobs of the same size may queue up behind the one that
runs in a slot (the launcher's lanes): at 2 000 Jobs per second the way to the head and back would cost
more than the Jobs. Pure: no clock, no I/O.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import groupby, islice
from math import inf
from typing import Generic, NamedTuple, Protocol, TypeVar

import msgspec

from chappe.core import limits
from chappe.core.shapes import NodeRoom
from chappe.pilot.nodes import Need, Node, Share

LANE_S = 0.05
"""How much work (seconds, estimated) may queue up behind the Job that runs in a slot."""

LANE_MOST = 48
"""Jobs in one slot at most, the running one included."""


class Slot:
    """Room for one running Job. `jobs` counts who shares it in turn; `turned_at` is when one of them last
    began or ended (whoever hears of it says so)."""

    __slots__ = ("jobs", "lane", "need", "shares", "turned_at")

    def __init__(self, lane: int, need: Need, shares: list[Share]) -> None:
        self.lane = lane
        self.need = need
        self.shares = shares
        self.jobs = 1
        self.turned_at = inf

    @property
    def node(self) -> Node:
        """Where its process is; ranks on further nodes are started from there."""
        return self.shares[0].node

    @property
    def cpus(self) -> list[int]:
        """The CPUs of its process, empty without affinity."""
        return self.shares[0].cpus


class Urgent(NamedTuple):
    """Cores of each node are kept for Jobs of this priority or more."""

    cores: int
    priority: int


class Place(NamedTuple):
    """Where a Job that runs already was placed, as far as it is known."""

    node: str
    cpus: Collection[int] = ()
    gpus: Mapping[str, int] = {}


class Reservation(NamedTuple):
    """Room that is being gathered for a Job of this need, on these nodes."""

    need: Need
    nodes: frozenset[Node]

    def begins_at(self, now: float) -> float:
        """When all of it will be there; infinity when nobody can say."""
        return max(node.free_at(self.need, now) for node in self.nodes)


class Placement:
    """Nodes, all alike as far as the Hub is told, and the slots taken of them."""

    def __init__(
        self,
        nodes: Sequence[Node],
        first_lane: int = 1,
        urgent: Urgent | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        self.urgent = urgent
        self._tags = tags or {}
        self.nodes: list[Node] = []
        for node in nodes:
            self.add(node)
        # Never used twice: a restarted head must not queue a Job behind one that its predecessor left there.
        self._lane = first_lane
        self._open: dict[Need, dict[int, Slot]] = {}
        self._filling = False
        self._kept: Reservation | None = None
        self.shared = 0
        """Jobs that wait behind another in a slot."""

    def node(self, name: str) -> Node | None:
        """The node of this name."""
        return next((node for node in self.nodes if node.name == name), None)

    def add(self, node: Node) -> None:
        """One more node. It keeps a core at least for all, and has the tag that goes with its name."""
        node.tag = self._tags.get(node.name, "")
        if self.urgent is not None:
            node.reserve = min(self.urgent.cores, node.cores - 1)
        self.nodes.append(node)

    def remove(self, name: str) -> None:
        """A node is lost; what has room there may still give it back. The first is never lost."""
        kept = [node for node in self.nodes[1:] if node.name != name]
        if self._kept is not None and any(node.name == name for node in self._kept.nodes):
            self._kept = None
        self.nodes[1:] = kept

    @property
    def node_cores(self) -> int:
        """The cores of the largest node."""
        return max(node.cores for node in self.nodes)

    @property
    def node_mem_bytes(self) -> int:
        """The memory of the largest node."""
        return max(node.mem_bytes for node in self.nodes)

    @property
    def node_gpus(self) -> int:
        """The GPUs of the node that has most."""
        return max(node.gpus for node in self.nodes)

    @property
    def free_cores(self) -> int:
        """Cores that are free now, wherever."""
        return sum(node.free_cores for node in self.nodes if node.up)

    @property
    def free_mem_bytes(self) -> int:
        """Memory that is free now, wherever."""
        return sum(node.free_mem_bytes for node in self.nodes if node.up)

    @property
    def tags(self) -> dict[str, int]:
        """How many nodes are set apart by which tag."""
        return dict(Counter(node.tag for node in self.nodes if node.tag))

    def fits_ever(self, need: Need) -> bool:
        """Whether there is this much when everything is free, on nodes that may come back."""
        return sum(node.fits_ever(need) for node in self.nodes) >= need.nodes

    def take(
        self,
        need: Need,
        now: float = 0.0,
        time_s: float = inf,
        limit_s: float = inf,
        *,
        first: bool = False,
    ) -> Slot | None:
        """Room for a Job, expected to run for `time_s` and at most for `limit_s`; None when there is not
        enough now, or what there is was reserved for another and this is not the `first` in line."""
        chosen: list[Node] = []
        for node in self.nodes:
            if node.fits(need) and (first or self._may_use(node, need, now, time_s)):
                chosen.append(node)
                if len(chosen) == need.nodes:
                    return self._take(chosen, need, now + time_s, now + limit_s)
        return None

    def share(
        self, need: Need, estimate_s: float | None, limit_s: float | None = None
    ) -> Slot | None:
        """A place behind a running Job of the same size, when Jobs are expected to be short.

        Slots are filled up when one of them is half empty, and then to the brim: that makes few large
        batches of many small ones. Where room is being gathered nobody queues up.
        """
        if estimate_s is None or estimate_s >= LANE_S or need.nodes > 1:
            return None
        most = min(LANE_MOST, 1 + int(LANE_S / max(estimate_s, 1e-4)))
        taken = self._open.get(need)
        if not taken:
            return None
        slots: Collection[Slot] = taken.values()
        if self._kept is not None:
            slots = [slot for slot in slots if slot.node not in self._kept.nodes]
            if not slots:
                return None
        slot = min(slots, key=_jobs)
        if slot.jobs >= (most if self._filling else max(1, most // 2)):
            self._filling = False
            return None
        self._filling = True
        slot.jobs += 1
        self.shared += 1
        slot.node.expect(slot.lane, estimate_s, inf if limit_s is None else limit_s)
        return slot

    def leave(self, slot: Slot) -> None:
        """One of the slot's Jobs is over, or did not start; the last one frees the room."""
        slot.jobs -= 1
        if slot.jobs > 0:
            self.shared -= 1
            return
        for share in slot.shares:
            share.node.leave(share, slot.need, slot.lane)
        del self._open[slot.need][slot.lane]
        if not self._open[slot.need]:
            del self._open[slot.need]

    def occupy(
        self,
        need: Need,
        places: Sequence[Place] = (),
        ends_at: float = inf,
        limit_at: float = inf,
    ) -> Slot:
        """Room for a Job that runs already (found after a restart), where it is known to be.

        It may take more than there is: then nothing new starts until enough has ended.
        """
        by_name = {node.name: node for node in self.nodes}
        shares = []
        for place in places or (Place(self.nodes[0].name),):
            node = by_name.get(place.node, self.nodes[0])
            gpus = dict(place.gpus)
            shares.append(node.occupy(need, self._lane, place.cpus, gpus, ends_at, limit_at))
        return self._slot(need, shares)

    # --- room for a large Job

    def reserve(self, need: Need, now: float) -> None:
        """Gather room for a Job of this need, where there will be enough the soonest."""
        able = [node for node in self.nodes if node.fits_ever(need)]
        able.sort(key=lambda node: (node.free_at(need, now), -node.free_cores))
        if len(able) >= need.nodes:
            self._kept = Reservation(need, frozenset(able[: need.nodes]))

    def begun(self, need: Need) -> bool:
        """Whether a node that could take such a Job has some of the room for it."""
        return any(n.up and n.open_cores(need) > 0 and n.fits_ever(need) for n in self.nodes)

    def unreserve(self) -> None:
        """Gather no more."""
        self._kept = None

    @property
    def reservation(self) -> Reservation | None:
        """What room is being gathered."""
        return self._kept

    def rooms(self, now: float, cores: int = 0, mem_bytes: int = 0) -> tuple[NodeRoom, ...]:
        """What is free, for the Hub, without the first so many cores and bytes, which are spoken for."""
        left_s, begins_at = 0.0, inf
        if self._kept is not None:
            begins_at = self._kept.begins_at(now)
            left_s = 0.0 if begins_at == inf else begins_at - now
        offers: list[NodeRoom] = []
        for node in self.nodes:
            if not node.up or node.free_cores <= 0:
                continue
            free = tuple(sorted(node.free_gpus.values(), reverse=True))
            mem = max(0, node.free_mem_bytes)
            offer = NodeRoom(1, node.free_cores, mem, free, None, node.kept, node.tag)
            taken = min(cores, offer.cores), min(mem_bytes, offer.mem_bytes)
            cores, mem_bytes = cores - taken[0], mem_bytes - taken[1]
            if self._kept is None or node not in self._kept.nodes:
                offers.append(_without(offer, *taken))
                continue
            spare = self._spare(node, self._kept, begins_at, now)
            offers.append(_without(spare, *taken))
            if left_s > 0:
                rest = _without(offer, spare.cores + taken[0], spare.mem_bytes + taken[1])
                gpus = () if spare.gpus else rest.gpus
                kept = min(rest.cores, max(0, rest.kept - spare.kept))
                offers.append(NodeRoom(1, rest.cores, rest.mem_bytes, gpus, left_s, kept, node.tag))
        return _together(offer for offer in offers if offer.cores > 0)

    def _spare(self, node: Node, kept: Reservation, at: float, now: float) -> NodeRoom:
        if at == inf:
            return NodeRoom(0, 0, 0)
        return node.spare(kept.need, at, now)

    def _may_use(self, node: Node, need: Need, now: float, time_s: float) -> bool:
        """Whether a Job on this node leaves the reservation as early as it is."""
        kept = self._kept
        if kept is None or node not in kept.nodes:
            return True
        at = kept.begins_at(now)
        if at == inf:
            return False
        if now + time_s <= at:
            return True
        spare = node.spare(kept.need, at, now)
        return (
            need.cores <= spare.cores
            and need.mem_bytes <= spare.mem_bytes
            and (need.gpus == 0 or kept.need.gpus == 0)
        )

    # --- inside

    def _take(self, nodes: Sequence[Node], need: Need, ends_at: float, limit_at: float) -> Slot:
        shares = [node.take(need, self._lane, ends_at, limit_at) for node in nodes]
        return self._slot(need, shares)

    def _slot(self, need: Need, shares: list[Share]) -> Slot:
        slot = Slot(self._lane, need, shares)
        self._lane += 1
        self._open.setdefault(need, {})[slot.lane] = slot
        return slot


def _jobs(slot: Slot) -> int:
    return slot.jobs


def _without(room: NodeRoom, cores: int, mem_bytes: int) -> NodeRoom:
    left = max(0, room.cores - cores)
    return NodeRoom(
        room.count,
        left,
        max(0, room.mem_bytes - mem_bytes),
        room.gpus,
        room.within_s,
        min(left, room.kept),
        room.tag,
    )


def _together(offers: Iterator[NodeRoom]) -> tuple[NodeRoom, ...]:
    """Those that are alike as one; the largest of very many."""
    alike = groupby(sorted(offers, key=_size, reverse=True), key=_size)
    rooms = []
    for _, group in alike:
        same = list(group)
        rooms.append(msgspec.structs.replace(same[0], count=len(same)))
    # The smallest first: what is begun is filled up before a whole node is broken.
    return tuple(reversed(rooms[: limits.ROOMS_PER_SYNC]))


def _size(room: NodeRoom) -> tuple[int, int, tuple[int, ...], float, int, str]:
    within_s = inf if room.within_s is None else room.within_s
    return (room.cores, room.mem_bytes, room.gpus, within_s, room.kept, room.tag)


def tags_of(names: Sequence[str], wanted: Mapping[str, int]) -> dict[str, str]:
    """Which of these nodes have which tag: the last ones are set apart, in the order of the owner's table,
    and the first, where the pilot is, never. What an allocation is too small for, it does not have."""
    free = list(names[1:])
    found = {}
    for tag, count in wanted.items():
        for _ in range(min(count, len(free))):
            found[free.pop()] = tag
    return found


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

    def behind(self, most: int) -> list[T]:
        """Those behind the first, in order, at most so many."""
        found: list[T] = []
        for priority in sorted(self._queues, reverse=True):
            found += islice(self._queues[priority], most + 1 - len(found))
            if len(found) > most:
                break
        return found[1:]

    def remove(self, item: T) -> None:
        """Let somebody leave who is not the first. Raises ValueError when it does not wait."""
        queue = self._queues[item.priority]
        queue.remove(item)
        if not queue:
            del self._queues[item.priority]
            self._first = max(self._queues, default=None)

    def _queue(self, priority: int) -> deque[T]:
        queue = self._queues.get(priority)
        if queue is None:
            queue = self._queues[priority] = deque()
            if self._first is None or priority > self._first:
                self._first = priority
        return queue
