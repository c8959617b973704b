"""Shapes: Jobs that match alike are counted and searched as one.

A Shape is the resources a Job needs, the Sites that may run it and the time it is expected to take,
rounded up on a ladder. Matching looks at each Shape once, then at the head of each Shape that fits: a
million Jobs that do not fit cost as much as one. `why`, elasticity and the dashboard count by Shape.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left

import msgspec

from chappe.core.jobs import JobSpec

_MINUTE, _HOUR, _DAY = 60, 3_600, 86_400
#: Times are rounded up to these (seconds), so that Shapes stay few. The first are for filling small gaps.
LADDER_S: tuple[int, ...] = (
    *(1, 5, 15, 30),
    *(m * _MINUTE for m in (1, 2, 5, 10, 15, 20, 30, 45)),
    *(h * _HOUR for h in (1, 2, 3, 4, 6, 8, 10, 12, 18)),
    *(d * _DAY for d in (1, 2, 3, 5, 7, 10, 14, 21, 30, 60, 90, 180, 366)),
)


class Shape(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """What matching needs to know of a Job; amounts are per node.

    `wall_s` is the time that it is expected to take, 0 when nobody knows. A Job that writes checkpoints
    has none, and wants to have `least_s` before it is cut short. `named` is sorted.
    """

    sites: tuple[str, ...]
    cores: int = 1
    mem_bytes: int = 0
    wall_s: int = 0
    nodes: int = 1
    ranks: int = 1
    gpus: float = 0
    named: tuple[tuple[str, int], ...] = ()
    least_s: int = 0
    node_tag: str = ""


class NodeRoom(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """`count` nodes (or parts of nodes) that have this much free each, GPUs in hundredths, one by one.

    With `within_s` the room is kept for a large Job, and only what ends within so many seconds may use it.
    `kept` of the cores are for urgent Jobs only (see core.rooms). What has a `tag` is for Jobs that ask for
    it, and for no others.
    """

    count: int
    cores: int
    mem_bytes: int
    gpus: tuple[int, ...] = ()
    within_s: float | None = None
    kept: int = 0
    tag: str = ""


class Capacity(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a pilot offers. `cores` and `mem_bytes` are free now; `node_*` is all that a node has.

    `prefetch` is how many Jobs it takes beyond those that fit now (work for about one second);
    each must fit the whole node. `left_s` is the time until the allocation drains, None for ever.

    `gpus` are those of one node, `nodes` how many there are. What is free is told by `rooms` when one
    number for all does not do: several nodes, GPUs, or room that is kept for a large Job. With `reserve`
    the pilot takes one Job that does not fit yet, and keeps room for it. `named` is all that its Site
    has of countable things, whoever uses them. On each node `urgent_cores` are for Jobs of a priority of
    `urgent` or more; None: for all. `tags` says how many of the nodes have which tag.
    """

    cores: int
    mem_bytes: int
    node_cores: int
    node_mem_bytes: int
    prefetch: int = 0
    gpus: float = 0
    left_s: float | None = None
    nodes: int = 1
    rooms: tuple[NodeRoom, ...] = ()
    reserve: bool = False
    named: dict[str, int] = {}
    urgent: int | None = None
    urgent_cores: int = 0
    tags: dict[str, int] = {}


def shape_of(spec: JobSpec) -> Shape:
    """The Shape of a Job."""
    r = spec.resources
    return Shape(
        sites=tuple(sorted(spec.sites)),
        cores=r.node_cores,
        mem_bytes=r.mem_bytes,
        wall_s=round_wall(r.time_s),
        nodes=r.nodes,
        ranks=r.ranks,
        gpus=r.gpus,
        named=tuple(sorted(r.named.items())) if r.named else (),
        least_s=0 if r.warn_s is None else round_wall(2 * r.warn_s),
        node_tag=r.node_tag,
    )


def round_wall(wall_s: float | None) -> int:
    """`wall_s` rounded up on the ladder; 0 for None."""
    if wall_s is None:
        return 0
    return LADDER_S[min(bisect_left(LADDER_S, wall_s), len(LADDER_S) - 1)]


def shape_key(shape: Shape) -> str:
    """A stable hash of a Shape (hex)."""
    return hashlib.sha256(msgspec.json.encode(shape)).hexdigest()[:32]


def gpu_parts(gpus: float) -> int:
    """GPUs in hundredths, which add up without rounding."""
    return round(gpus * 100)


def misfit(shape: Shape, cap: Capacity) -> str | None:
    """Why no Job of this Shape can ever run with a pilot like this, for a person; None when it can."""
    tag = shape.node_tag
    nodes = cap.tags.get(tag, 0) if tag else cap.nodes - sum(cap.tags.values())
    if shape.nodes > nodes:
        kind = f" tagged {tag}" if tag else ""
        return f"it needs {shape.nodes} nodes{kind} and the pilot has {nodes}"
    if shape.gpus > cap.gpus:
        return f"it needs {shape.gpus:g} GPUs and the pilot has {cap.gpus:g}"
    if shape.cores > cap.node_cores:
        return f"it needs {shape.cores} cores and the pilot has {cap.node_cores}"
    if shape.mem_bytes > cap.node_mem_bytes:
        return f"it needs {shape.mem_bytes} bytes of memory and the pilot has {cap.node_mem_bytes}"
    for name, count in shape.named:
        if count > cap.named.get(name, 0):
            return f"it needs {count} {name} and the site has {cap.named.get(name, 0)}"
    wanted_s = shape.wall_s or shape.least_s
    if cap.left_s is not None and wanted_s > cap.left_s:
        return (
            f"its limit or estimate of {wanted_s} s is longer than the {max(cap.left_s, 0):.0f} s "
            "that the allocation has left"
        )
    return None
