"""The node that this process is on, as it may use it, and as the Site's owner limits it."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from chappe.pilot import topology
from chappe.pilot.hosts import Hosts
from chappe.pilot.session import Options
from chappe.pilot.topology import Topology


def own_node(options: Options, hosts: Hosts | None = None, name: str = "") -> Topology:
    """What is there, with its memory. Raises TopologyProblem."""
    if options.topology:
        found = topology.load(Path(options.topology))
    else:
        found = topology.read(os.sched_getaffinity(0), os.environ)
    memory = found.mem_bytes or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    found = msgspec.structs.replace(found, mem_bytes=memory)
    if hosts is not None:
        found = hosts.share(name, found)
    if options.cores:
        found = topology.limit(found, options.cores)
    if options.mem_bytes:
        found = msgspec.structs.replace(found, mem_bytes=min(found.mem_bytes, options.mem_bytes))
    return found
