"""The public names, for editors and type checkers; `__init__.py` loads each on first use."""

from chappe.core.leases import (
    Outcome,
)
from chappe.core.parameters import Parameter
from chappe.sdk.aio import (
    AsyncApp,
    AsyncClient,
    AsyncJob,
)
from chappe.sdk.drafts import (
    Draft,
    Options,
)
from chappe.sdk.engine import (
    Where,
)
from chappe.sdk.errors import (
    Ambiguous,
    Busy,
    ChappeError,
    ConfigMissing,
    Conflict,
    Forbidden,
    Gone,
    Invalid,
    JobCancelled,
    JobError,
    JobFailed,
    NotFound,
    TooLarge,
    Unauthenticated,
    Unavailable,
    WaitTimeout,
)
from chappe.sdk.executor import Executor
from chappe.sdk.functions import FunctionApp, app
from chappe.sdk.keyring import SiteKeyChanged
from chappe.sdk.results import (
    ResultFile,
)
from chappe.sdk.selections import (
    AsyncSelection,
    Changes,
    Selection,
)
from chappe.sdk.simulations import AsyncSimulation, Simulation
from chappe.sdk.stats import (
    JobStats,
)
from chappe.sdk.sync import (
    App,
    Client,
    Job,
    as_completed,
    wait_all,
)
from chappe.sdk.values import RemoteError, SiteFile
from chappe.wire.bulk import (
    JobCount,
)
from chappe.wire.events import (
    Event,
)
from chappe.wire.jobs import (
    JobView,
    Why,
)
from chappe.wire.simulations import SimulationJobView, SimulationView
from chappe.wire.sites import (
    AppView,
    SiteView,
)

__all__ = [
    "Ambiguous",
    "App",
    "AppView",
    "AsyncApp",
    "AsyncClient",
    "AsyncJob",
    "AsyncSelection",
    "AsyncSimulation",
    "Busy",
    "Changes",
    "ChappeError",
    "Client",
    "ConfigMissing",
    "Conflict",
    "Draft",
    "Event",
    "Executor",
    "Forbidden",
    "FunctionApp",
    "Gone",
    "Invalid",
    "Job",
    "JobCancelled",
    "JobCount",
    "JobError",
    "JobFailed",
    "JobStats",
    "JobView",
    "NotFound",
    "Options",
    "Outcome",
    "Parameter",
    "RemoteError",
    "ResultFile",
    "Selection",
    "Simulation",
    "SimulationJobView",
    "SimulationView",
    "SiteFile",
    "SiteKeyChanged",
    "SiteView",
    "TooLarge",
    "Unauthenticated",
    "Unavailable",
    "WaitTimeout",
    "Where",
    "Why",
    "app",
    "as_completed",
    "wait_all",
]

__version__: str
