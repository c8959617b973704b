"""A Job's row as decisions see it."""

from __future__ import annotations

import msgspec

from chappe.core.jobs import ParentPolicy, Retries
from chappe.core.leases import Held
from chappe.core.states import PHASE, Phase, State

#: The columns of `JobRow`, in its order.
COLUMNS = """job.n, job.project, job.id, job.state, job.phase, job.shape, job.epoch, job.attempt,
    job.max_attempts, job.session, job.granted_request, job.site, job.app, job.waiting_parents,
    job.policy, job.retries, job.takeover_s, job.cancel_at, job.not_before, job.submission,
    job.held_at"""

#: How many columns that is.
WIDTH = COLUMNS.count(",") + 1

_DEFAULT_RETRIES = Retries()
_RUNNABLE = Phase.RUNNABLE.value
_decode_retries = msgspec.json.Decoder(Retries).decode


class JobRow(msgspec.Struct, gc=False):
    """What decisions need of a row. Mutable: a sync may bring several reports about one Job."""

    n: int
    project: int
    id: str
    state: State
    phase: str
    shape: int
    epoch: int
    attempt: int
    max_attempts: int
    session: int | None
    granted_request: int | None
    site: int | None
    app: str | None
    waiting_parents: int
    policy: str | None
    retries: str | None
    takeover_s: float | None
    cancel_at: float | None
    not_before: float | None
    submission: int | None
    held_at: float | None

    @property
    def waits(self) -> bool:
        """Whether it can be granted at this moment (tables.WAITS)."""
        return (
            self.phase == _RUNNABLE
            and self.session is None
            and self.not_before is None
            and self.held_at is None
        )

    @property
    def deleted(self) -> bool:
        """Whether only its tombstone is left."""
        return self.phase == "deleted"

    @property
    def parent_policy(self) -> ParentPolicy:
        """What it does when a parent does not finish."""
        return ParentPolicy(self.policy) if self.policy else ParentPolicy.FAIL

    def held(self) -> Held:
        """The part that core.leases decides on."""
        retries = _DEFAULT_RETRIES if self.retries is None else _decode_retries(self.retries)
        return Held(self.state, self.attempt, self.max_attempts, self.cancel_at, retries)


_STATES = {str(s): s for s in State}


def to_row(found: tuple[object, ...]) -> JobRow:
    """A JobRow from a row of COLUMNS (what follows them is ignored)."""
    n, project, id, state, *rest = found[:WIDTH]
    return JobRow(n, project, id, _STATES[str(state)], *rest)  # type: ignore[arg-type]


_PHASES = {state: PHASE[state].value for state in State}
_TEXTS: dict[str | None, str] = {state: state.value for state in State}


def phase_of(state: State) -> str:
    """The phase that the row of a Job in `state` shows."""
    return _PHASES[state]


def text_of(state: str | None) -> str | None:
    """A state as a plain str: the driver binds that at once, and looks up adapters for a subclass (1 µs)."""
    return _TEXTS.get(state, state)
