"""All launchers of an allocation as one: the keeper of this node's, and the hands that keep the others'.

Orders go to the node where the run is. A run's key is remembered with its node from its start (or from when
it was first heard of) until its end is acknowledged. An order for a node that is out of reach is dropped: a
start comes back as not made, and everything else is settled when the hand joins again (`reunion`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from chappe.pilot.hands import Hands
from chappe.pilot.keeper import Keeper
from chappe.pilot.launch_wire import (
    Ack,
    Events,
    Key,
    Kill,
    KillOrder,
    KillReason,
    Refused,
    Renew,
    Snapshot,
    Start,
    Task,
    Withdraw,
)

UNHEARD = "?"
"""Stands for the node of what a former head had started on some node that was not heard since."""

_TASKS_PER_FRAME = 64
"""A task may hold 128 kB of arguments and environment, and a frame 8 MiB."""


class Crew:
    """Orders for all nodes; `on_events` hears of starts that could not be passed on."""

    def __init__(self, keeper: Keeper, on_events: Callable[[Events], None], own: str = "") -> None:
        self._keeper = keeper
        self._own = own
        self._on_events = on_events
        self._hands: Hands | None = None
        self._where: dict[Key, str] = {}

    def lead(self, hands: Hands) -> None:
        """There are further nodes."""
        self._hands = hands

    @property
    def up(self) -> bool:
        """Whether there is a launcher on this node."""
        return self._keeper.up

    async def open(self) -> Snapshot | None:
        """What this node's launcher knows. Raises Unavailable, OSError."""
        return await self._keeper.open()

    async def run(self, on_lost: Callable[[str], None], on_back: Callable[[], None]) -> None:
        """Keep this node's launcher."""
        await self._keeper.run(on_lost, on_back)

    def found(self, node: str, snapshot: Snapshot) -> None:
        """These are at a further node."""
        begun = (started.key for started in snapshot.running)
        over = (ended.key for ended in snapshot.ended)
        for key in (*begun, *over, *snapshot.waiting):
            self._where[key] = node

    def start(self, tasks: Sequence[Task], nodes: Sequence[str]) -> None:
        """Start these on these nodes."""
        if self._hands is None:
            self._keeper.start(tasks)
            return
        by_node: defaultdict[str, list[Task]] = defaultdict(list)
        for task, node in zip(tasks, nodes, strict=True):
            by_node[node].append(task)
        if own := by_node.pop(self._own, []):
            self._keeper.start(own)
        for node, several in by_node.items():
            for at in range(0, len(several), _TASKS_PER_FRAME):
                self._start(node, several[at : at + _TASKS_PER_FRAME])

    def _start(self, node: str, tasks: list[Task]) -> None:
        if self._hands is not None and self._hands.send(node, Start(tasks)):
            self._where.update((task.key, node) for task in tasks)
        else:
            refused = [Refused(t.job, t.epoch, t.attempt, "withdrawn") for t in tasks]
            self._on_events(Events([], [], refused))

    def kill(self, keys: Iterable[Key], reason: KillReason, grace_s: float) -> None:
        """End these runs."""
        for node, several in self._split(keys):
            if node == "":
                self._keeper.kill(several, reason, grace_s)
            elif self._hands is not None:
                orders = [KillOrder(job, epoch, reason, grace_s) for job, epoch in several]
                self._hands.send(node, Kill(orders))

    def kill_on(self, node: str, keys: Sequence[Key], reason: KillReason) -> None:
        """End what there is of these on one further node, at once."""
        if self._hands is not None:
            orders = [KillOrder(job, epoch, reason, 0.0) for job, epoch in keys]
            self._hands.send(node, Kill(orders))

    def withdraw(self, keys: Iterable[Key]) -> None:
        """Take back those that have not begun."""
        for node, several in self._split(keys):
            if node == "":
                self._keeper.withdraw(several)
            elif self._hands is not None:
                self._hands.send(node, Withdraw(several))

    def renew(self, deadlines: Mapping[Key, float]) -> None:
        """Move takeover deadlines (CLOCK_BOOTTIME seconds of this node)."""
        for node, several in self._split(deadlines):
            if node == "":
                self._keeper.renew({key: deadlines[key] for key in several})
            elif self._hands is not None:
                self._hands.send(node, Renew([(*key, deadlines[key]) for key in several]))

    def ack(self, keys: Iterable[Key]) -> None:
        """Let the launchers forget these ends."""
        for node, several in self._split(keys):
            if node == "":
                self._keeper.ack(several)
            elif self._hands is not None and self._hands.send(node, Ack(several)):
                for key in several:
                    self._where.pop(key, None)

    def where(self, key: Key) -> str:
        """The name of the node where this is."""
        return self._where.get(key, self._own)

    def seek(self, keys: Iterable[Key]) -> None:
        """These are on a node that was not heard yet, if anywhere: orders for them are dropped until then."""
        self._where.update((key, UNHEARD) for key in keys)

    def forget(self, key: Key) -> None:
        """Nothing is left of this run, nor of the launcher that would have told."""
        self._where.pop(key, None)

    async def stop(self, *, kill: bool) -> None:
        """Let all launchers end, and see to it that nothing is left on this node."""
        if self._hands is not None:
            await self._hands.stop(kill=kill)
        await self._keeper.stop(kill=kill)

    def leave(self) -> None:
        """Let them go on without us: another head will come."""
        if self._hands is not None:
            self._hands.leave()
        self._keeper.leave()

    def _split(self, keys: Iterable[Key]) -> Iterable[tuple[str, list[Key]]]:
        if not self._where:
            # All on this node: the usual case.
            return [("", list(keys))]
        by_node: defaultdict[str, list[Key]] = defaultdict(list)
        for key in keys:
            by_node[self._where.get(key, "")].append(key)
        return by_node.items()
