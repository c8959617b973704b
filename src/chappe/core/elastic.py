"""Elasticity in data: what a decision about allocations is made from, and what it says.

All times are seconds, and moments seconds since 1970. Nothing here decides; `core.elasticity` does.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from chappe.core.shapes import Shape
from chappe.core.waits import Waits

DAY_S = 86_400.0


class PolicyKind(StrEnum):
    """What allocations follow: a number, the waiting Jobs, gaps in the machine's plan, a date, or nobody."""

    KEEP = "keep"
    FIT = "fit"
    BACKFILL = "backfill"
    DEADLINE = "deadline"
    OFF = "off"


class NodeSize(msgspec.Struct, frozen=True):
    """What one node has for Jobs."""

    cores: int
    mem_bytes: int = 0
    gpus: float = 0


class Queue(msgspec.Struct, frozen=True):
    """A queue (partition) and what it allows; None: it does not say. `queued` and `opened` count our
    BatchJobs there: those that wait, and those that wait or run."""

    name: str = ""
    nodes: int | None = None
    wall_s: float | None = None
    queued: int | None = None
    opened: int | None = None


class Account(msgspec.Struct, frozen=True):
    """Whom the machine bills, and how many node-seconds of a day we may spend there."""

    name: str = ""
    day_node_s: float | None = None


class Policy(msgspec.Struct, frozen=True):
    """What the Site's owner wants.

    `keep` allocations stay whatever waits; the others end when they were idle for `idle_s`. Open at once are
    at most `most` allocations, of `nodes_most` nodes together; one has `nodes` nodes unless Jobs need more.
    What waits is to be through in `within_s` (or by `deadline_at`); a Job of which nobody said how long it
    takes is taken to last `assumed_s`. After `wait_s` in a queue an allocation is made smaller (None: never).
    `margin_s` of each allocation are not for Jobs: its start, and the drain before its end.
    """

    kind: PolicyKind = PolicyKind.KEEP
    keep: int = 0
    most: int = 10
    queued_most: int = 10
    nodes: int = 1
    nodes_most: int = 100
    wall_s: float | None = None
    wall_least_s: float = 600.0
    within_s: float = 3_600.0
    deadline_at: float | None = None
    idle_s: float = 300.0
    wait_s: float | None = None
    assumed_s: float = 600.0
    margin_s: float = 120.0
    day_node_s: float | None = None
    queues: tuple[Queue, ...] = (Queue(),)
    accounts: tuple[Account, ...] = (Account(),)


class Waiting(msgspec.Struct, frozen=True):
    """So many Jobs of a Shape could begin now."""

    shape: Shape
    jobs: int


class Stage(StrEnum):
    """How far an allocation is. `fresh`: it runs (or its pilot does), and nobody has asked for work yet;
    `asks`: what waits did not fit into it; `closed`: it takes no more work, or is not heard."""

    QUEUED = "queued"
    FRESH = "fresh"
    ASKS = "asks"
    CLOSED = "closed"


class Allocation(msgspec.Struct, frozen=True):
    """An open BatchJob. `own`: we asked for it, and may take it back; `lasting`: it stays when it is idle.
    `surplus_at` is when it first was found to be more than is needed, and has been ever since. `too_wide`:
    the scheduler says that there are not so many nodes, and lets it wait all the same."""

    id: str
    stage: Stage
    nodes: int
    asked_at: float
    wall_s: float | None = None
    began_at: float | None = None
    queue: str = ""
    account: str = ""
    own: bool = True
    lasting: bool = False
    node: NodeSize | None = None
    surplus_at: float | None = None
    too_wide: bool = False

    def left_s(self, now: float) -> float | None:
        """How long it lasts from now on; None for ever."""
        if self.wall_s is None or self.began_at is None:
            return self.wall_s
        return max(0.0, self.began_at + self.wall_s - now)


class Window(msgspec.Struct, frozen=True):
    """So many nodes are free now, for so long (None: nobody else has claimed them)."""

    nodes: int
    length_s: float | None = None
    queue: str = ""


class Situation(msgspec.Struct, frozen=True):
    """All that a decision is made from, besides the policy.

    `node` is None until a pilot has told what a node has. `spent` are the node-seconds that allocations used
    in the last day, by account; what is still open is counted from `open`. Until `hold_until` nothing is
    asked for, because pilots ended at once. Of named resources that are not in `named_free` there are none.
    """

    now: float
    demand: tuple[Waiting, ...] = ()
    open: tuple[Allocation, ...] = ()
    node: NodeSize | None = None
    named_free: dict[str, int] = {}
    windows: tuple[Window, ...] = ()
    waits: Waits = Waits()
    spent: dict[str, float] = {}
    hold_until: float = 0.0


class Serves(msgspec.Struct, frozen=True):
    """So many Jobs of a Shape an allocation is for."""

    shape: Shape
    jobs: int


class Ask(msgspec.Struct, frozen=True, omit_defaults=True):
    """Ask the scheduler for this. `lasting`: it is to stay when it is idle. `instead_of` is a BatchJob that
    waited too long, and is to be cancelled for it."""

    nodes: int
    wall_s: float | None
    why: str
    queue: str = ""
    account: str = ""
    lasting: bool = False
    serves: tuple[Serves, ...] = ()
    instead_of: str | None = None


class Cancel(msgspec.Struct, frozen=True):
    """Take a BatchJob back that has not begun."""

    id: str
    why: str


class Unmet(msgspec.Struct, frozen=True):
    """Jobs for which nothing is asked, and why; `code` is one word of: node_size nodes wall named maximum
    queued budget window."""

    shape: Shape
    jobs: int
    code: str
    why: str


class Plan(msgspec.Struct, frozen=True):
    """What to do now. `surplus` are queued BatchJobs that nothing waiting needs; who stays one is cancelled
    later. `why` is for a person. `again_at` is when time alone will change the answer."""

    asks: tuple[Ask, ...] = ()
    cancels: tuple[Cancel, ...] = ()
    unmet: tuple[Unmet, ...] = ()
    surplus: tuple[str, ...] = ()
    why: str = ""
    again_at: float | None = None

    @property
    def acts(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.asks or self.cancels)
