"""Where a running Job was placed, as a note that its launcher keeps for a restarted head.

A plain Job on one node without GPUs has no note: its CPUs can be asked of the kernel.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import msgspec

from chappe.pilot.launch_wire import Started
from chappe.pilot.placement import Place, Slot

_decode = msgspec.json.Decoder(list[tuple[str, list[int], dict[str, int]]]).decode


def note(slot: Slot) -> str:
    """The note of a slot's places, empty when there is nothing to note."""
    if len(slot.shares) == 1 and not slot.shares[0].gpus and not slot.node.name:
        return ""
    shares = [(share.node.name, share.cpus, share.gpus) for share in slot.shares]
    return msgspec.json.encode(shares).decode()


def read(started: Started) -> Sequence[Place]:
    """The places of a Job that was found running on this node, or elsewhere with a note."""
    if not started.place:
        return [Place("", _cpus(started.pid))]
    return [Place(*share) for share in _decode(started.place)]


def _cpus(pid: int) -> set[int]:
    try:
        return os.sched_getaffinity(pid)
    except ProcessLookupError:
        return set()
