"""What a failed Job says, and what can be done about each error."""

from __future__ import annotations

import pytest

from chappe.core.leases import Outcome, Reason
from chappe.sdk import errors
from chappe.sdk.errors import JobCancelled, JobFailed, WaitTimeout, error_of, words
from chappe.wire.jobs import JobView

ID = "0195c000-0000-7000-8000-000000000000"


def view(phase: str, outcome: Outcome | None, attempt: int = 1) -> JobView:
    return JobView(ID, "m3", phase.upper(), phase, [], 0, 0, attempt=attempt, outcome=outcome)


def test_a_failure_names_the_job_its_outcome_and_the_tail() -> None:
    outcome = Outcome(Reason.EXIT, exit=3, tail="Traceback\nFloatingPointError: CFL\n")
    error = error_of(view("failed", outcome))
    assert isinstance(error, JobFailed)
    assert str(error).splitlines() == [
        f"job m3 ({ID}) failed in attempt 1 of 1: exit 3",
        "  stderr ends with:",
        "    Traceback",
        "    FloatingPointError: CFL",
    ]
    assert (error.job_id, error.outcome) == (ID, outcome)


def test_a_job_that_never_started_says_so() -> None:
    outcome = Outcome(Reason.REFUSED, message="untrusted_key: nobody trusts it")
    assert "failed before it started: refused: untrusted_key" in str(
        error_of(view("failed", outcome, attempt=0))
    )


def test_a_cancelled_job_is_another_kind() -> None:
    error = error_of(view("cancelled", None))
    assert isinstance(error, JobCancelled)
    assert not isinstance(error, JobFailed)


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        (None, "no attempt was made"),
        (Outcome(Reason.EXIT, exit=0), "exit 0"),
        (Outcome(Reason.SIGNAL, signal=9), "signal 9"),
        (Outcome(Reason.TIMEOUT, message="after 60 s"), "timeout: after 60 s"),
        (Outcome(Reason.ALLOCATION_END), "allocation end"),
    ],
)
def test_outcomes_in_words(outcome: Outcome | None, said: str) -> None:
    assert words(outcome) == said


def test_a_timeout_is_also_pythons_own() -> None:
    with pytest.raises(TimeoutError):
        raise WaitTimeout("late")


def test_the_tree_in_the_docstring_names_every_error() -> None:
    assert all(name in (errors.__doc__ or "") for name in errors.__all__)
