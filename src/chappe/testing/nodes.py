"""Nodes for tests: plain ones, and some with domains and GPUs that no machine here has."""

from __future__ import annotations

from collections.abc import Sequence

from chappe.pilot.nodes import Node
from chappe.pilot.topology import Gpu, Topology

GIB = 1 << 30


def plain(cpus: Sequence[int], mem_bytes: int = GIB, name: str = "") -> Node:
    """A node without domains and GPUs."""
    return Node(Topology((tuple(cpus),)), mem_bytes, name=name)


def big(domains: int = 2, cpus: int = 4, gpus: int = 2, name: str = "") -> Node:
    """A node of so many domains with so many CPUs and GPUs each; the first GPU is called `gpu0`."""
    return Node(
        Topology(
            tuple(tuple(range(d * cpus, (d + 1) * cpus)) for d in range(domains)),
            tuple(Gpu(f"gpu{i}", numa=i // gpus) for i in range(domains * gpus)),
        ),
        domains * cpus * GIB,
        name=name,
    )
