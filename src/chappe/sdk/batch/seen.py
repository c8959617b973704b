"""What a Job looks like to the commands of batch systems: its number, its state, what it asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from chappe.core.arrays import first_id
from chappe.core.ids import number_of
from chappe.sdk.batch.making import VALUE, Shown
from chappe.sdk.batch.request import Named
from chappe.sdk.errors import Ambiguous
from chappe.wire.jobs import JobView

_NOTHING = Shown(dialect="", user="")


class Seen(NamedTuple):
    """One Job, and what the front ends keep of it. `task` is its index in an array."""

    view: JobView
    number: int
    task: int | None
    shown: Shown

    @property
    def state(self) -> str:
        """Slurm's name of its state."""
        view = self.view
        if view.phase in ("waiting", "runnable"):
            return "PENDING"
        if view.phase == "running":
            return "COMPLETING" if view.cancel_at or view.state != "RUNNING" else "RUNNING"
        if view.phase == "failed" and view.outcome is not None:
            return _FAILED.get(view.outcome.reason, "FAILED")
        return _ENDED.get(view.phase, "FAILED")

    @property
    def waits_for(self) -> str:
        """Why it is pending, in Slurm's words; "None" when it is not."""
        view = self.view
        if self.state != "PENDING":
            return "None"
        if view.held_at is not None:
            return "JobHeldUser"
        if view.waiting_parents:
            return "Dependency"
        return "BeginTime" if view.phase == "waiting" or view.not_before else "Resources"

    @property
    def exit_status(self) -> int | None:
        """As a shell says it: its own, or 128 and the signal."""
        outcome = self.view.outcome
        if outcome is None:
            return None
        return 128 + outcome.signal if outcome.signal else outcome.exit


_ENDED = {"finished": "COMPLETED", "failed": "FAILED", "cancelled": "CANCELLED"}
_FAILED = {
    "timeout": "TIMEOUT",
    "allocation_end": "NODE_FAIL",
    "allocation_cancelled": "PREEMPTED",
    "memory": "OUT_OF_MEMORY",
    "node_lost": "NODE_FAIL",
    "session_dead": "NODE_FAIL",
    "launcher_lost": "NODE_FAIL",
    "cancelled": "CANCELLED",
    "expired": "DEADLINE",
}
SHORT = {
    "PENDING": "PD",
    "RUNNING": "R",
    "COMPLETING": "CG",
    "COMPLETED": "CD",
    "FAILED": "F",
    "CANCELLED": "CA",
    "TIMEOUT": "TO",
    "NODE_FAIL": "NF",
    "OUT_OF_MEMORY": "OOM",
    "PREEMPTED": "PR",
    "DEADLINE": "DL",
}
"""States and their two letters."""
ACTIVE = frozenset({"PENDING", "RUNNING", "COMPLETING"})


def see(view: JobView) -> Seen:
    """A Job as it is shown. What the front ends kept of it is not signed, so it may be anything."""
    try:
        shown = msgspec.convert(_plain(view.data.get(VALUE)), Shown)
    except msgspec.ValidationError:
        shown = _NOTHING
    number = number_of(view.id if view.task is None else view.task.array)
    return Seen(view, number, None if view.task is None else view.task.index, shown)


def _plain(kept: Any) -> Any:
    """With what cannot be printed shown as such: a terminal obeys it, and a line's end would be a job's."""
    if not isinstance(kept, dict):
        return kept
    return {k: printable(v) if isinstance(v, str) else v for k, v in kept.items()}


def printable(text: str) -> str:
    """A text as it may stand in a line."""
    return "".join(c if c.isprintable() else "?" for c in text)


def chosen(name: Named, views: Iterable[JobView]) -> list[Seen]:
    """Those that `name` means, in the order of their ids. Raises Ambiguous when it fits two submissions."""
    found = sorted(views, key=lambda view: view.id)
    if len({first_id(view.id) for view in found}) > 1:
        ids = "".join(f"\n  {view.id}" for view in found[:5])
        raise Ambiguous(
            f"{name.text} is the number of several jobs, give a full id:{ids}", field="id"
        )
    seen = [see(view) for view in found]
    return seen if name.tasks is None else [one for one in seen if one.task in name.tasks]


def ranges(indices: Sequence[int]) -> str:
    """Indices, short: `1-3,7`."""
    parts: list[str] = []
    start = last = None
    for index in sorted(indices):
        if last is not None and index == last + 1:
            last = index
            continue
        if start is not None:
            parts.append(f"{start}" if start == last else f"{start}-{last}")
        start = last = index
    if start is not None:
        parts.append(f"{start}" if start == last else f"{start}-{last}")
    return ",".join(parts)


def clock(seconds: float | None) -> str:
    """A duration in Slurm's form: `1-02:03:04`, `5:06`; UNLIMITED for None."""
    if seconds is None:
        return "UNLIMITED"
    minutes, second = divmod(max(0, int(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}-{hour:02}:{minute:02}:{second:02}"
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"
