"""A Job's row as decisions see it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from sqlalchemy import text

from chappe.core.errors import NotFound
from chappe.core.jobs import ParentPolicy, Retries
from chappe.core.leases import Held
from chappe.core.states import PHASE, Phase, State
from chappe.store.principal import Principal
from chappe.store.tx import Tx, to_json

#: The columns of `JobRow`, in its order.
COLUMNS = """job.n, job.project, job.id, job.state, job.phase, job.shape, job.epoch, job.attempt,
    job.max_attempts, job.session, job.granted_request, job.site, job.app, job.waiting_parents,
    job.policy, job.retries, job.takeover_s, job.cancel_at, job.not_before, job.submission"""

BY_N = text(f"""
    SELECT {COLUMNS} FROM json_each(:ns) v CROSS JOIN job ON job.n = v.value""")

BY_ID = text(f"""
    SELECT {COLUMNS} FROM json_each(:ids) v CROSS JOIN job ON job.project = :project AND job.id = v.value""")

BY_SESSION = text(f"SELECT {COLUMNS} FROM job WHERE session = :session")

SESSION = text("""
    SELECT s.n, s.id, s.site, s.batch_job, s.incarnation, s.state, s.last_request, s.last_report,
           s.hard_end_at, b.cancel_at AS drain
    FROM session s JOIN batch_job b ON b.n = s.batch_job WHERE s.n = :n""")

_DEFAULT_RETRIES = Retries()
_decode_retries = msgspec.json.Decoder(Retries).decode


class JobRow(msgspec.Struct):
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

    @property
    def waits(self) -> bool:
        """Whether it can be granted at this moment (tables.WAITS)."""
        return self.phase == Phase.RUNNABLE and self.session is None and self.not_before is None

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


def to_rows(found: Iterable[Any]) -> list[JobRow]:
    """Rows of a SELECT of COLUMNS."""
    return [JobRow(r[0], r[1], r[2], _STATES[r[3]], *r[4:]) for r in found]


def rows_by_n(tx: Tx, ns: Sequence[int]) -> list[JobRow]:
    """Jobs by row number, in that order."""
    return to_rows(tx.read(BY_N, ns=to_json(ns))) if ns else []


def rows_by_id(tx: Tx, p: Principal, ids: Sequence[str]) -> dict[str, JobRow]:
    """The principal's Jobs by id; what does not exist is missing. Tombstones are included."""
    if not ids:
        return {}
    found = tx.read(BY_ID, project=p.project_n, ids=to_json(ids))
    return {row.id: row for row in to_rows(found)}


def phase_of(state: State) -> str:
    """The phase that the row of a Job in `state` shows."""
    return PHASE[state].value


def no_such(what: str, id: str) -> NotFound:
    """What is answered for ids that never existed and for those of others, alike."""
    return NotFound(f"there is no {what} {id[:60]!r}")
