"""What is to be prepared, and what becomes of it."""

from __future__ import annotations

from typing import NamedTuple

from chappe.core.leases import Reason
from chappe.pilot.holding import Holding
from chappe.pilot.launch_wire import Task


class Order(NamedTuple):
    """What to prepare: a holding with its slot, the fences of its start, and when the allocation ends what
    runs (CLOCK_BOOTTIME seconds)."""

    holding: Holding
    start_by: float
    takeover_deadline: float | None
    ends_at: float | None = None


class Prepared(NamedTuple):
    """Claimed, and ready for the launcher."""

    holding: Holding
    task: Task


class Refused(NamedTuple):
    """It must not be started: `code` is the reason of the refusal."""

    holding: Holding
    code: str
    message: str


class Failed(NamedTuple):
    """It should be started and cannot be; `disk_full` if the reason will meet others too."""

    holding: Holding
    message: str
    disk_full: bool = False
    reason: Reason = Reason.START_FAILED


class Postponed(NamedTuple):
    """Nothing can be started now, and nothing is wrong with this one."""

    holding: Holding
    message: str


Outcome = Prepared | Refused | Failed | Postponed
