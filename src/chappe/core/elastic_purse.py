"""What may still be asked for: the limits of policy, queues, windows and budgets, spent step by step."""

from __future__ import annotations

import math
from typing import NamedTuple

from chappe.core.elastic import DAY_S, Account, Policy, PolicyKind, Queue, Situation, Stage
from chappe.core.shapes import round_wall


class Need(NamedTuple):
    """What a new allocation is for: Jobs of `width` nodes and `time_s`; `nodes` and `work_s` would do for all
    of them. `first`: nobody knows yet what a node has."""

    width: int
    nodes: int
    time_s: float
    work_s: float
    first: bool = False


class Offer(NamedTuple):
    """What may be asked for: at most so many nodes, for so long."""

    nodes: int
    wall_s: float | None
    queue: str
    account: str


class Refusal(NamedTuple):
    """Why there is none: the code and the words of an `Unmet`."""

    code: str
    why: str


class _Place(NamedTuple):
    """A queue, and in it a window, if only windows may be used."""

    queue: Queue
    nodes: int
    wall_s: float | None
    window: int | None = None


class Purse:
    """Gives out what is left. Without `spend` nothing is taken from it."""

    def __init__(self, policy: Policy, seen: Situation) -> None:
        self._policy = policy
        self._seen = seen
        open_ = seen.open
        self._left = policy.most - len(open_)
        self._queued_left = policy.queued_most - sum(a.stage is Stage.QUEUED for a in open_)
        self._nodes = policy.nodes_most - sum(a.nodes for a in open_)
        self._in_queue = {q.name: [a for a in open_ if a.queue == q.name] for q in policy.queues}
        self._new_in = dict.fromkeys(self._in_queue, 0)
        self._costs = dict(seen.spent)
        for a in open_:
            cost = a.nodes * (DAY_S if a.wall_s is None else a.wall_s)
            self._costs[a.account] = self._costs.get(a.account, 0.0) + cost
        queued = sum(a.nodes for a in open_ if a.stage is Stage.QUEUED and not a.lasting)
        self._windows = _without(seen, queued)

    def offer(self, need: Need) -> Offer | Refusal:
        """An allocation for this need, taken from what is left; or what forbids it."""
        if need.first and self._seen.open:
            return Refusal(
                "maximum", "the first allocation is to tell what a node has; it is awaited"
            )
        least_s = need.time_s + self._policy.margin_s
        places = self._places()
        able = [p for p in places if p.wall_s is None or p.wall_s >= least_s]
        if not places and self._policy.kind is PolicyKind.BACKFILL:
            return Refusal("window", "no nodes are free for a while that others have not claimed")
        if not able:
            longest = max(p.wall_s for p in places if p.wall_s is not None)
            code = "window" if self._policy.kind is PolicyKind.BACKFILL else "wall"
            return Refusal(
                code,
                f"it takes {need.time_s:.0f} s, with {self._policy.margin_s:.0f} s around it, and no "
                f"allocation may last longer than {longest:.0f} s",
            )
        wide = [p for p in able if p.nodes >= need.width]
        if not wide:
            most = max(p.nodes for p in able)
            return Refusal(
                "nodes", f"it needs {need.width} nodes, and an allocation has at most {most}"
            )
        return self._choose(need, wide)

    def lasting(self) -> Offer | Refusal:
        """One that is kept whatever waits; windows do not bind it."""
        policy = self._policy
        places = [self._place(q) for q in policy.queues]
        need = Need(1, policy.nodes, 0.0, DAY_S)
        return self._choose(need, places)

    # --- inside

    def _place(self, queue: Queue) -> _Place:
        policy = self._policy
        walls = [w for w in (policy.wall_s, queue.wall_s) if w is not None]
        nodes = policy.nodes_most if queue.nodes is None else min(queue.nodes, policy.nodes_most)
        return _Place(queue, nodes, min(walls, default=None))

    def _places(self) -> list[_Place]:
        places = [self._place(q) for q in self._policy.queues]
        if self._policy.kind is not PolicyKind.BACKFILL:
            return places
        by_name = {p.queue.name: p for p in places}
        found = []
        for i, (nodes, length_s, name) in enumerate(self._windows):
            place = by_name.get(name)
            if place is None or nodes < 1:
                continue
            walls = [w for w in (place.wall_s, length_s) if w is not None]
            found.append(_Place(place.queue, min(place.nodes, nodes), min(walls, default=None), i))
        return found

    def _choose(self, need: Need, places: list[_Place]) -> Offer | Refusal:
        """The place where it begins soonest, as far as anybody knows, of those that have room."""
        policy = self._policy
        if self._left < 1:
            return Refusal("maximum", f"at most {policy.most} allocations may be open at once")
        if self._queued_left < 1:
            return Refusal(
                "queued", f"at most {policy.queued_most} allocations may be queued at once"
            )
        if self._nodes < need.width:
            return Refusal("maximum", f"at most {policy.nodes_most} nodes may be in use at once")
        free = [p for p in places if self._may_queue(p.queue)]
        if not free:
            return Refusal(
                "queued", "every queue that could take it has as many of ours as it allows"
            )
        account = max(policy.accounts, key=self._left_of)
        left = self._left_of(account)
        free.sort(key=lambda p: self._wait_s(p, need))
        for place in free:
            nodes = self._size(need, place)
            wall_s = self._wall_s(need, place, budget=left < math.inf)
            if wall_s is not None and left < math.inf:
                nodes = min(nodes, int(left // wall_s))
            if nodes >= need.width:
                return self._spend(Offer(nodes, wall_s, place.queue.name, account.name), place)
        return Refusal(
            "budget", f"{max(0.0, left) / 3600:.1f} node-hours are left of the day's budget"
        )

    def _size(self, need: Need, place: _Place) -> int:
        """As many nodes as an allocation should have: more where few allocations may do it all."""
        chances = max(1, min(self._left, self._queued_left))
        wanted = max(self._policy.nodes, need.width, math.ceil(need.nodes / chances))
        return min(wanted, place.nodes, self._nodes)

    def _wall_s(self, need: Need, place: _Place, *, budget: bool) -> float | None:
        if place.wall_s is None and not budget:
            return None
        margin_s = self._policy.margin_s
        wanted = max(self._policy.wall_least_s, float(round_wall(need.work_s + margin_s)))
        return wanted if place.wall_s is None else min(wanted, place.wall_s)

    def _wait_s(self, place: _Place, need: Need) -> float:
        wall_s = self._wall_s(need, place, budget=False)
        waits = self._seen.waits
        return waits.expected_s(place.queue.name, self._size(need, place), wall_s) or 0.0

    def _may_queue(self, queue: Queue) -> bool:
        new = self._new_in[queue.name]
        ours = self._in_queue[queue.name]
        queued = new + sum(a.stage is Stage.QUEUED for a in ours)
        return (queue.queued is None or queued < queue.queued) and (
            queue.opened is None or new + len(ours) < queue.opened
        )

    def _left_of(self, account: Account) -> float:
        own, total = account.day_node_s, self._policy.day_node_s
        left = math.inf if own is None else own - self._costs.get(account.name, 0.0)
        return left if total is None else min(left, total - sum(self._costs.values()))

    def _spend(self, offer: Offer, place: _Place) -> Offer:
        self._left -= 1
        self._queued_left -= 1
        self._nodes -= offer.nodes
        self._new_in[offer.queue] += 1
        cost = offer.nodes * (DAY_S if offer.wall_s is None else offer.wall_s)
        self._costs[offer.account] = self._costs.get(offer.account, 0.0) + cost
        if place.window is not None:
            nodes, length_s, name = self._windows[place.window]
            self._windows[place.window] = (nodes - offer.nodes, length_s, name)
        return offer


def _without(seen: Situation, queued: int) -> list[tuple[int, float | None, str]]:
    """The windows, the longest first, without what is asked for already."""
    windows = sorted(seen.windows, key=lambda w: math.inf if w.length_s is None else w.length_s)
    left = []
    for window in reversed(windows):
        taken = min(queued, window.nodes)
        queued -= taken
        left.append((window.nodes - taken, window.length_s, window.queue))
    return left
