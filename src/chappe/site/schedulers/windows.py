"""Which nodes are free now, and for how long: what `policy = "backfill"` asks for.

A reader is for one batch system what an adapter is for BatchJobs: commands, and a pure function of what they
printed. It is asked only while Jobs wait under that policy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from chappe.core.elastic import Window
from chappe.core.errors import Invalid

_FREE = frozenset({"idle", "planned"})
"""A node is `planned` when it is idle and the backfill scheduler has a job for it, later."""


class WindowReader(Protocol):
    """The functions for one batch system."""

    def commands(self) -> list[list[str]]:
        """The commands whose outputs `parse` reads, in this order."""

    def parse(self, outputs: Sequence[str], queues: Sequence[str], now: float) -> list[Window]:
        """The free nodes of these queues ("" is the default one), each node once. Raises Invalid."""


class _Plan(NamedTuple):
    """A job of anybody's that is to begin then, on so many nodes."""

    at: float
    nodes: int
    queue: str


class SlurmWindows:
    """`sinfo` tells which nodes are idle, `squeue --start` when the backfill scheduler means to use them.

    On which nodes a planned job will be, is not believed: it is taken to use idle ones first, as far as its
    partition has any. So a window may be longer than it is said to be, and not shorter, unless a job ends
    early and the plan changes. Verified on Slurm 22.05.
    """

    def commands(self) -> list[list[str]]:
        """All nodes by partition; the planned starts of what waits, as seconds since 1970."""
        starts = ["squeue", "--noheader", "--all", "--start", "--states=PENDING"]
        return [
            ["sinfo", "--noheader", "--Node", "--format=%N|%P|%T|%l"],
            ["env", "SLURM_TIME_FORMAT=%s", *starts, "--format=%S|%D|%P"],
        ]

    def parse(self, outputs: Sequence[str], queues: Sequence[str], now: float) -> list[Window]:
        """See WindowReader."""
        nodes_out, starts_out = outputs
        idle: dict[str, list[str]] = {}
        limits: dict[str, float] = {}
        shares: dict[str, set[str]] = {}
        names = dict.fromkeys(queues)
        for line in nodes_out.splitlines():
            node, partition, state, limit = _fields(line, 4)
            name = partition.rstrip("*")
            shares.setdefault(name, set()).add(node)
            queue = name if name in names else "" if partition.endswith("*") else None
            if queue not in names or queue is None:
                continue
            limits[name] = _seconds(limit)
            if state in _FREE:
                idle.setdefault(node, []).append(name)
        free: dict[str, int] = {}
        for partitions in idle.values():
            # In each window once: where it may be used for longest.
            best = max(partitions, key=lambda name: limits[name])
            free[best] = free.get(best, 0) + 1
        plans = sorted(_plans(starts_out))
        return [
            window
            for name, count in free.items()
            for window in _windows(
                count,
                limits[name],
                name if name in names else "",
                [p for p in plans if shares[name] & shares.get(p.queue, shares[name])],
                now,
            )
        ]


class PbsWindows:
    """`pbsnodes` tells which nodes are free, of PBS and of Torque; until when, neither says. So what is asked
    for may have to wait after all. Not verified on a real system: the fixtures follow the manuals.
    """

    def commands(self) -> list[list[str]]:
        """All nodes with their attributes."""
        return [["pbsnodes", "-a"]]

    def parse(self, outputs: Sequence[str], queues: Sequence[str], now: float) -> list[Window]:
        """See WindowReader. A node that is bound to a queue counts for that alone, another for the first."""
        free: dict[str, int] = {}
        for node in _nodes(outputs[0]):
            queue = node.get("queue", queues[0])
            busy = node.get("jobs") or node.get("resources_assigned.ncpus", "0") != "0"
            if node.get("state") == "free" and not busy and queue in queues:
                free[queue] = free.get(queue, 0) + 1
        return [Window(count, None, queue) for queue, count in free.items()]


def _nodes(text: str) -> Iterator[dict[str, str]]:
    """The attributes of each node: its name stands alone, they follow indented."""
    node: dict[str, str] | None = None
    for line in text.splitlines():
        if not line.strip():
            continue
        if not line[0].isspace():
            if node is not None:
                yield node
            node = {}
            continue
        key, mark, value = line.partition(" = ")
        if node is None or not mark:
            raise Invalid(f"this is not what was asked for: {line[:100]!r}")
        node[key.strip()] = value.strip()
    if node is not None:
        yield node


def _windows(
    free: int, limit_s: float, queue: str, plans: Sequence[_Plan], now: float
) -> list[Window]:
    """Each planned job ends the window of as many nodes as it needs, the first to begin first."""
    found = []
    for plan in plans:
        nodes = min(free, plan.nodes)
        length_s = min(limit_s, plan.at - now)
        if nodes and length_s > 0:
            found.append(Window(nodes, length_s, queue))
        free -= nodes
    if free:
        found.append(Window(free, None if limit_s == math.inf else limit_s, queue))
    return found


def _plans(text: str) -> list[_Plan]:
    plans = []
    for line in text.splitlines():
        at, nodes, partition = _fields(line, 3)
        # A job that may go to several partitions names them all; one without a plan has no time.
        if at.isdecimal() and nodes.isdecimal():
            plans.append(_Plan(float(at), int(nodes), partition.split(",")[0]))
    return plans


def _fields(line: str, count: int) -> list[str]:
    fields = line.strip().split("|")
    if len(fields) != count:
        raise Invalid(f"this is not what was asked for: {line[:100]!r}")
    return fields


def _seconds(limit: str) -> float:
    """Slurm's times: minutes:seconds, hours:minutes:seconds, days-hours:minutes:seconds, or infinite."""
    days, _, clock = limit.rpartition("-")
    parts = clock.split(":")
    if not (2 <= len(parts) <= 3 and all(p.isdecimal() for p in parts)):
        return math.inf
    seconds = 0.0
    for part in parts:
        seconds = 60 * seconds + int(part)
    return seconds + 86_400 * (int(days) if days.isdecimal() else 0)


READERS: dict[str, WindowReader] = {
    "slurm": SlurmWindows(),
    "pbs": PbsWindows(),
    "torque": PbsWindows(),
}
"""By kind of scheduler; of others free nodes are not known."""
