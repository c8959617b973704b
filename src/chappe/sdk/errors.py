"""What can go wrong for a user of the SDK, by what can be done about it.

    ChappeError                   (chappe.core.errors: what the Hub refuses, or cannot do now)
    ├── Invalid                   correct the named field
    │   ├── TooLarge              send less at a time
    │   └── Ambiguous             a short id names several Jobs: give more of it
    ├── ConfigMissing             nothing says where the Hub is, or who you are
    ├── Unauthenticated, Forbidden, NotFound, Conflict, Gone
    ├── Busy, Unavailable         transient: wait and repeat
    ├── WaitTimeout               the Jobs go on; only the wait ended (also a TimeoutError)
    └── JobError                  the Job ended, and brought no result
        ├── JobFailed             its outcome and the tail of its stderr are in the message
        └── JobCancelled          somebody cancelled it

An error that a wait raises names the Job; `job_id` and `outcome` are there for programs.
"""

from __future__ import annotations

from chappe.core.errors import (
    Busy,
    ChappeError,
    Conflict,
    Forbidden,
    Gone,
    Invalid,
    NotFound,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from chappe.core.leases import Outcome
from chappe.wire.jobs import JobView

__all__ = [
    "Ambiguous",
    "Busy",
    "ChappeError",
    "ConfigMissing",
    "Conflict",
    "Forbidden",
    "Gone",
    "Invalid",
    "JobCancelled",
    "JobError",
    "JobFailed",
    "NotFound",
    "TooLarge",
    "Unauthenticated",
    "Unavailable",
    "WaitTimeout",
]


class Ambiguous(Invalid):
    """A short id names several Jobs; the message lists some of them."""

    default_code = "ambiguous"


class ConfigMissing(ChappeError):
    """Nothing says where the Hub is, or who you are; the message says where to write it."""

    default_code = "config_missing"


class WaitTimeout(ChappeError, TimeoutError):
    """The time given for a wait is over. The Jobs are untouched, and may be waited for again."""

    default_code = "wait_timeout"
    transient = True


class JobError(ChappeError):
    """A Job ended without success. `outcome` is how its last attempt ended, None when none began."""

    default_code = "job_error"

    def __init__(self, message: str, *, job: JobView) -> None:
        super().__init__(message)
        self.job_id = job.id
        self.state = job.state
        self.outcome: Outcome | None = job.outcome


class JobFailed(JobError):
    """A Job failed: by its own exit, by its time limit, by its parents, or because it was refused."""

    default_code = "job_failed"


class JobCancelled(JobError):
    """A Job was cancelled, so there is no result."""

    default_code = "job_cancelled"


def error_of(job: JobView) -> JobError:
    """The exception that says how a Job ended which failed or was cancelled."""
    label = f"job {job.name} ({job.id})" if job.name else f"job {job.id}"
    if job.phase == "cancelled":
        return JobCancelled(f"{label} was cancelled", job=job)
    how = words(job.outcome)
    message = f"{label} failed in attempt {job.attempt} of {job.max_attempts}: {how}"
    if job.attempt == 0:
        message = f"{label} failed before it started: {how}"
    if job.outcome is not None and job.outcome.tail.strip():
        message += "\n  stderr ends with:\n" + _indented(job.outcome.tail)
    return JobFailed(message, job=job)


def words(outcome: Outcome | None) -> str:
    """How an attempt ended, in a few words: `exit 3`, `signal 9`, `timeout: …`."""
    if outcome is None:
        return "no attempt was made"
    what = str(outcome.reason).replace("_", " ")
    if outcome.reason == "exit" and outcome.exit is not None:
        what = f"exit {outcome.exit}"
    elif outcome.reason == "signal" and outcome.signal is not None:
        what = f"signal {outcome.signal}"
    return f"{what}: {outcome.message}" if outcome.message else what


def _indented(tail: str) -> str:
    return "\n".join("    " + line for line in tail.rstrip().splitlines()[-20:])
