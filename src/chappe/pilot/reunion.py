"""What becomes of Jobs when a further node joins, is cut off, joins again, or is lost.

While a node is cut off its Jobs go on, and nothing more is placed there. When its hand joins again, the
snapshot of its launcher says what became of each. What it does not know was never started, if it is the
launcher that was there before; with another launcher it ended when that one died. On a node that is lost
everything has ended. Both are told as `node_lost`, and the Job may be started elsewhere.

A head that was started again does not wait long for nodes: what a former head had started, and none of the
nodes that are there knows, is sought on those that are missing, until each of them has joined or is lost.
"""

from __future__ import annotations

from collections.abc import Set

from structlog.types import FilteringBoundLogger

from chappe.core.leases import Reason
from chappe.link.clock import boottime, now
from chappe.pilot import places
from chappe.pilot.crew import UNHEARD, Crew
from chappe.pilot.hand_wire import Hello
from chappe.pilot.holding import Holding, Phase
from chappe.pilot.holdings import Holdings
from chappe.pilot.launch_wire import Events, KillReason, Refused, Snapshot, Started
from chappe.pilot.nodes import Node
from chappe.pilot.works import Works

_GRACE_S = 10.0


class Reunion:
    """Hears of nodes (`hands.Listener`) and puts their Jobs right."""

    def __init__(
        self, holdings: Holdings, works: Works, crew: Crew, log: FilteringBoundLogger
    ) -> None:
        self._holdings = holdings
        self._works = works
        self._crew = crew
        self._log = log
        # Until the head has adopted what its predecessor left: what is heard of the nodes before that.
        self._early: dict[str, list[Events]] | None = {}
        self.snapshots: dict[str, Snapshot] = {}
        """What the nodes said when they first joined."""
        self._missing: set[str] = set()
        self._lost_early: dict[str, str] = {}

    def adopted(self, missing: Set[str] = frozenset()) -> None:
        """All that was found running has its place: from now on, events mean what they say. What may run on
        nodes that were `missing` is sought there."""
        early, self._early = self._early or {}, None
        self._missing = set(missing)
        for node in self._missing & set(self.snapshots):
            self._crew.found(node, self.snapshots[node])
            self._settle(node, self.snapshots[node], same=False)
            self._heard_of(node)
        for node, cause in self._lost_early.items():
            self.lost(node, cause)
        for node, several in early.items():
            for events in several:
                self.heard(node, events)

    # --- hands.Listener

    def joined(self, hello: Hello, snapshot: Snapshot, *, same: bool) -> None:
        """A hand is there."""
        node = self._holdings.placement.node(hello.node)
        if node is None:
            node = Node(hello.topology, hello.mem_bytes, hello.slots or None, hello.node)
            self._holdings.placement.add(node)
        node.up = True
        self._crew.found(hello.node, snapshot)
        if self._early is None:
            self._settle(hello.node, snapshot, same=same)
            self._heard_of(hello.node)
        else:
            self._early[hello.node] = []
            self._lost_early.pop(hello.node, None)
            self.snapshots[hello.node] = snapshot
        self._works.wake()

    def heard(self, node: str, events: Events) -> None:
        """Something happened on a node."""
        if self._early is None:
            self._works.hear(events)
        else:
            self._early[node].append(events)

    def cut(self, node: str) -> None:
        """A hand is out of reach."""
        found = self._holdings.placement.node(node)
        if found is not None:
            found.up = False

    def lost(self, node: str, cause: str) -> None:
        """Nothing that was started on this node is left."""
        if self._early is not None:
            self._lost_early[node] = cause
            return
        message = f"node {node} was lost: {cause}"
        lost = 0
        for h in list(self._holdings.all()):
            places = [] if h.slot is None else [share.node.name for share in h.slot.shares]
            mine = self._crew.where(h.key) == node
            if not (mine or node in places) or not self._begun(h):
                continue
            lost += 1
            if mine:
                self._end(h, message)
            elif not h.ending:
                h.ending = "node_lost"
                self._crew.kill([h.key], "node_lost", _GRACE_S)
        self._holdings.placement.remove(node)
        self._heard_of(node)
        self._log.error("jobs.lost", jobs=lost, cause=message)
        self._works.wake()

    # --- inside

    def _heard_of(self, node: str) -> None:
        """A node is there or lost. After the last that was missing, what was found nowhere is lost."""
        if node not in self._missing:
            return
        self._missing.discard(node)
        if self._missing:
            return
        for h in list(self._holdings.all()):
            if self._crew.where(h.key) == UNHEARD and self._begun(h):
                self._end(h, f"no node knows of it since its pilot died (the last was {node})")

    def _begun(self, h: Holding) -> bool:
        """Whether its launcher has it, and has not told its end."""
        return Phase.HANDED <= h.phase <= Phase.RUNNING and not self._works.judged(h.key)

    def _settle(self, node: str, snapshot: Snapshot, *, same: bool) -> None:
        """Compare what we think to be on this node with what is there."""
        at = boottime()
        running = {started.key: started for started in snapshot.running}
        ended = {e.key: e for e in snapshot.ended}
        never: list[Refused] = []
        for h in list(self._holdings.all()):
            if self._crew.where(h.key) != node or not self._begun(h):
                continue
            if h.key in running:
                if h.slot is None:
                    self._find_room(h, running[h.key])
                self._works.hear(Events([running.pop(h.key)], [], []))
            elif h.key in ended:
                self._works.ended(ended.pop(h.key), at)
                continue
            elif h.key not in snapshot.waiting:
                if same and h.phase is Phase.HANDED:
                    never.append(Refused(h.job, h.epoch, h.attempt, "withdrawn"))
                else:
                    self._end(h, f"what ran on node {node} was lost with its launcher")
                continue
            if h.ending and h.ending != "unknown":
                self._crew.kill([h.key], _kill_reason(h), _GRACE_S)
        if never:
            self._works.hear(Events([], [], never))
        self._crew.ack(list(ended))
        strays = [key for key in running if self._holdings.get(*key) is None]
        if strays:
            self._crew.kill(strays, "cancelled", 0.0)

    def _find_room(self, h: Holding, started: Started) -> None:
        began_at = boottime() - max(0.0, now() - started.at)
        self._holdings.take_room(h, places.read(started), began_at)

    def _end(self, h: Holding, message: str) -> None:
        self._crew.forget(h.key)
        if h.slot is not None:
            # Ranks that were started from there may still be on the other nodes.
            for share in h.slot.shares[1:]:
                self._crew.kill_on(share.node.name, [h.key], "node_lost")
        self._works.over(h, h.end(Reason.NODE_LOST, now(), message))


def _kill_reason(h: Holding) -> KillReason:
    return "allocation_end" if h.ending == "allocation_end" else "cancelled"
