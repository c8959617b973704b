"""Chappe: one control plane for simulations and analyses on many supercomputers.

`chappe.Client` is where to begin. What it says to editors and type checkers is in `__init__.pyi`.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

#: Public names and where they live. Resolved on first use, so that `import chappe` costs nothing in
#: the processes that only need a part (the launcher starts in milliseconds).
_PUBLIC: dict[str, str] = {
    "App": "chappe.sdk.sync",
    "Client": "chappe.sdk.sync",
    "Job": "chappe.sdk.sync",
    "as_completed": "chappe.sdk.sync",
    "wait_all": "chappe.sdk.sync",
    "AsyncApp": "chappe.sdk.aio",
    "AsyncClient": "chappe.sdk.aio",
    "AsyncJob": "chappe.sdk.aio",
    "app": "chappe.sdk.functions",
    "FunctionApp": "chappe.sdk.functions",
    "Executor": "chappe.sdk.executor",
    "SiteFile": "chappe.sdk.values",
    "RemoteError": "chappe.sdk.values",
    "SiteKeyChanged": "chappe.sdk.keyring",
    "Draft": "chappe.sdk.drafts",
    "Options": "chappe.sdk.drafts",
    "Where": "chappe.sdk.engine",
    "AsyncSelection": "chappe.sdk.selections",
    "Changes": "chappe.sdk.selections",
    "Selection": "chappe.sdk.selections",
    "AsyncSimulation": "chappe.sdk.simulations",
    "Simulation": "chappe.sdk.simulations",
    "JobStats": "chappe.sdk.stats",
    "ResultFile": "chappe.sdk.results",
    "Outcome": "chappe.core.leases",
    "Parameter": "chappe.core.parameters",
    "Event": "chappe.wire.events",
    "JobCount": "chappe.wire.bulk",
    "JobView": "chappe.wire.jobs",
    "Why": "chappe.wire.jobs",
    "SimulationJobView": "chappe.wire.simulations",
    "SimulationView": "chappe.wire.simulations",
    "AppView": "chappe.wire.sites",
    "SiteView": "chappe.wire.sites",
    "Ambiguous": "chappe.sdk.errors",
    "Busy": "chappe.sdk.errors",
    "ChappeError": "chappe.sdk.errors",
    "ConfigMissing": "chappe.sdk.errors",
    "Conflict": "chappe.sdk.errors",
    "Forbidden": "chappe.sdk.errors",
    "Gone": "chappe.sdk.errors",
    "Invalid": "chappe.sdk.errors",
    "JobCancelled": "chappe.sdk.errors",
    "JobError": "chappe.sdk.errors",
    "JobFailed": "chappe.sdk.errors",
    "NotFound": "chappe.sdk.errors",
    "TooLarge": "chappe.sdk.errors",
    "Unauthenticated": "chappe.sdk.errors",
    "Unavailable": "chappe.sdk.errors",
    "WaitTimeout": "chappe.sdk.errors",
}


def __getattr__(name: str) -> Any:
    module = _PUBLIC.get(name)
    if module is None:
        raise AttributeError(f"module 'chappe' has no attribute {name!r}")
    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return [*globals(), *_PUBLIC]
