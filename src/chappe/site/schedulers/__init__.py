"""Adapters to batch systems: what a Site asks of the machine's own scheduler, as text."""

from __future__ import annotations

from collections.abc import Callable

from chappe.core.errors import Invalid
from chappe.site.schedulers.base import Scheduler
from chappe.site.schedulers.flux import Flux
from chappe.site.schedulers.gridengine import GridEngine
from chappe.site.schedulers.local import Local
from chappe.site.schedulers.lsf import Lsf
from chappe.site.schedulers.pbs import Pbs, Torque
from chappe.site.schedulers.slurm import Slurm

_ADAPTERS: dict[str, Callable[[], Scheduler]] = {
    "slurm": Slurm,
    "pbs": Pbs,
    "torque": Torque,
    "gridengine": GridEngine,
    "lsf": Lsf,
    "flux": Flux,
}
KINDS = ("local", *_ADAPTERS)


def make(kind: str, records: str) -> Scheduler:
    """The adapter called `kind`; `records` is a directory that it may use. Raises Invalid."""
    if kind == "local":
        return Local(records)
    if kind in _ADAPTERS:
        return _ADAPTERS[kind]()
    raise Invalid(
        f"there is no scheduler {kind!r} (there is: {', '.join(KINDS)})", field="scheduler.kind"
    )
