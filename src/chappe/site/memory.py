"""What the agent remembers of allocations that are over, and of its own decisions: a part of the book.

It is the fold of the book's entries, and is written down as a whole when the book is written anew.
"""

from __future__ import annotations

import msgspec

from chappe.core.elastic import DAY_S, NodeSize
from chappe.core.waits import Waits
from chappe.wire.demand import Decision

UNTOLD_MOST = 200
"""Decisions that are kept for a Hub that is away; of more, the oldest are given up."""


class Decided(msgspec.Struct, frozen=True, tag="decided"):
    """A decision about allocations was made; the BatchJobs it asks for are wanted in the same breath."""

    decision: Decision


class Told(msgspec.Struct, frozen=True, tag="told"):
    """The Hub has all decisions up to this one."""

    no: int


class NodeSeen(msgspec.Struct, frozen=True, tag="node"):
    """A pilot told what a node has."""

    node: NodeSize


class Spent(msgspec.Struct, frozen=True, array_like=True):
    """An allocation that ended: when, whom the machine bills, and how many node-seconds."""

    at: float
    account: str
    node_s: float


class Memory(msgspec.Struct, tag="memory"):
    """All of it. `last_no` is the number of the last decision."""

    waits: Waits = Waits()
    spent: list[Spent] = []
    node: NodeSize | None = None
    last_no: int = 0
    untold: list[Decision] = []

    def decided(self, decision: Decision) -> None:
        """One more decision."""
        self.last_no = max(self.last_no, decision.no)
        self.untold = [*self.untold, decision][-UNTOLD_MOST:]

    def told(self, no: int) -> None:
        """The Hub has these."""
        self.untold = [d for d in self.untold if d.no > no]

    def ended(self, at: float, account: str, node_s: float) -> None:
        """An allocation ended that had run."""
        self.spent = [s for s in self.spent if s.at > at - DAY_S] + [Spent(at, account, node_s)]

    def spent_since(self, at: float) -> dict[str, float]:
        """Node-seconds of allocations that ended after `at`, by account."""
        by_account: dict[str, float] = {}
        for s in self.spent:
            if s.at > at:
                by_account[s.account] = by_account.get(s.account, 0.0) + s.node_s
        return by_account
