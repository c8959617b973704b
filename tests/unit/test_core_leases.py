"""What a report, a death, a cancel and a retry make of a Job."""

from __future__ import annotations

from itertools import pairwise

import pytest

from chappe.core import leases, limits
from chappe.core.jobs import Retries, RetryOn
from chappe.core.leases import Decision, Held, Outcome, Reason, Verdict
from chappe.core.states import FINAL, RUNNABLE, State, legal

S = State
NOW = 1_000.0
OK = Outcome(Reason.EXIT, exit=0)
BAD = Outcome(Reason.EXIT, exit=3)
ALL = (RetryOn.ERROR, RetryOn.TIMEOUT, RetryOn.LOST)


def job(
    state: State = S.RUNNING,
    attempt: int = 1,
    *,
    most: int = 3,
    cancel: bool = False,
    on: tuple[RetryOn, ...] = (RetryOn.LOST,),
    backoff_s: float = 0.0,
) -> Held:
    retries = Retries(most - 1, on, backoff_s)
    return Held(state, attempt, most, 900.0 if cancel else None, retries)


def decided(found: Decision | Verdict | None) -> Decision:
    """A decision, whose Events are a legal path from one to the next."""
    assert isinstance(found, Decision)
    assert all(legal(step.old, step.new) for step in found.steps)
    assert all(a.new is b.old for a, b in pairwise(found.steps))
    assert found.steps[-1].new is found.state
    return found


def path(found: Decision) -> list[State]:
    return [step.new for step in found.steps]


def end(held: Held, outcome: Outcome, attempt: int | None = None) -> Decision:
    attempt = held.attempt if attempt is None else attempt
    return decided(leases.end(held, attempt, None, 990.0, outcome, NOW))


@pytest.mark.parametrize("state", sorted(RUNNABLE))
def test_a_start(state: State) -> None:
    found = decided(leases.start(job(state, 1), 2, 980.0))
    assert (found.state, found.attempt, found.release) == (S.RUNNING, 2, False)
    assert [(s.old, s.new, s.at, s.assumed) for s in found.steps] == [
        (state, S.RUNNING, 980.0, False)
    ]


def test_a_start_may_skip_numbers_that_a_restore_forgot() -> None:
    assert decided(leases.start(job(S.PREPROCESSED, 0), 4, 980.0)).attempt == 4


@pytest.mark.parametrize("attempt", [0, 1])
def test_a_start_under_an_old_number_is_illegal(attempt: int) -> None:
    assert leases.start(job(S.RESTART_READY, 1), attempt, 980.0) is Verdict.ILLEGAL


@pytest.mark.parametrize("state", [s for s in State if s not in RUNNABLE])
def test_a_start_in_other_states(state: State) -> None:
    wanted = Verdict.DUPLICATE if state is S.RUNNING else Verdict.ILLEGAL
    assert leases.start(job(state, 1), 2, 980.0) is wanted


@pytest.mark.parametrize("state", [s for s in State if s is not S.RUNNING])
def test_an_end_without_a_start_is_illegal(state: State) -> None:
    assert leases.end(job(state, 1), 2, None, 990.0, OK, NOW) is Verdict.ILLEGAL


@pytest.mark.parametrize("state", [s for s in State if s not in {*RUNNABLE, S.RUNNING}])
def test_an_end_that_brings_its_start_is_illegal_in_other_states(state: State) -> None:
    assert leases.end(job(state, 1), 2, 980.0, 990.0, OK, NOW) is Verdict.ILLEGAL


def test_an_end_of_an_earlier_attempt_is_illegal() -> None:
    assert leases.end(job(S.RUNNING, 2), 1, None, 990.0, OK, NOW) is Verdict.ILLEGAL
    assert leases.end(job(S.RESTART_READY, 2), 2, 980.0, 990.0, OK, NOW) is Verdict.ILLEGAL


def test_a_success() -> None:
    found = end(job(), OK)
    assert path(found) == [S.RUN_DONE, S.JOB_FINISHED]
    assert (found.release, found.outcome, found.not_before) == (True, OK, None)
    assert [s.outcome for s in found.steps] == [None, OK]


@pytest.mark.parametrize("state", sorted(RUNNABLE))
def test_an_end_that_overtook_its_start_applies_both(state: State) -> None:
    found = decided(leases.end(job(state, 1), 2, 980.0, 990.0, OK, NOW))
    assert path(found) == [S.RUNNING, S.RUN_DONE, S.JOB_FINISHED]
    assert [s.at for s in found.steps] == [980.0, 990.0, 990.0]
    assert found.attempt == 2


def test_exit_0_beats_a_cancel() -> None:
    assert end(job(cancel=True), OK).state is S.JOB_FINISHED


@pytest.mark.parametrize(
    "outcome",
    [BAD, Outcome(Reason.CANCELLED), Outcome(Reason.TIMEOUT), Outcome(Reason.SESSION_DEAD)],
    ids=lambda o: o.reason,
)
def test_any_other_end_of_a_cancelled_job_cancels_it(outcome: Outcome) -> None:
    found = end(job(cancel=True, on=ALL), outcome)
    assert path(found) == [S.CANCELLED]
    assert (found.release, found.outcome) == (True, outcome)


CLASSES = [
    (Reason.EXIT, RetryOn.ERROR),
    (Reason.SIGNAL, RetryOn.ERROR),
    (Reason.START_FAILED, RetryOn.ERROR),
    (Reason.CANCELLED, RetryOn.ERROR),
    (Reason.TIMEOUT, RetryOn.TIMEOUT),
    (Reason.LAUNCHER_LOST, RetryOn.LOST),
    (Reason.ALLOCATION_END, RetryOn.LOST),
    (Reason.NODE_LOST, RetryOn.LOST),
    (Reason.SESSION_DEAD, RetryOn.LOST),
    (Reason.TAKEOVER, RetryOn.LOST),
]


@pytest.mark.parametrize(("reason", "wanted"), CLASSES)
def test_classes_of_outcomes(reason: Reason, wanted: RetryOn) -> None:
    assert leases.retry_class(reason) is wanted


@pytest.mark.parametrize("on", [*[(c,) for c in ALL], (), ALL], ids=lambda on: "+".join(on) or "-")
@pytest.mark.parametrize(("reason", "kind"), CLASSES)
@pytest.mark.parametrize(("attempt", "left"), [(1, True), (2, True), (3, False), (4, False)])
def test_a_failure_is_retried_when_its_class_is_named_and_attempts_are_left(
    reason: Reason, kind: RetryOn, on: tuple[RetryOn, ...], attempt: int, left: bool
) -> None:
    outcome = Outcome(reason, exit=1 if reason is Reason.EXIT else None)
    found = end(job(attempt=attempt, most=3, on=on), outcome)
    failed = S.RUN_TIMEOUT if reason is Reason.TIMEOUT else S.RUN_ERROR
    new = S.RESTART_READY if kind in on and left else S.FAILED
    assert path(found) == [failed, new]
    assert (found.release, found.outcome, found.attempt) == (True, outcome, attempt)


def test_a_failure_that_is_retried_keeps_its_outcome_in_one_event() -> None:
    found = end(job(on=ALL), BAD)
    assert [s.outcome for s in found.steps] == [BAD, None]
    final = end(job(on=()), BAD)
    assert [s.outcome for s in final.steps] == [BAD, BAD]


@pytest.mark.parametrize(
    ("attempt", "wait"), [(1, 10.0), (2, 20.0), (3, 40.0), (5, 160.0), (100, 86_400.0)]
)
def test_the_back_off_doubles_up_to_a_day(attempt: int, wait: float) -> None:
    found = end(job(attempt=attempt, most=1_000, on=ALL, backoff_s=10.0), BAD)
    assert found.not_before == NOW + wait


def test_no_back_off_for_what_is_not_tried_again() -> None:
    assert end(job(attempt=3, on=ALL, backoff_s=10.0), BAD).not_before is None
    assert end(job(on=ALL, backoff_s=0.0), BAD).not_before is None
    assert end(job(on=ALL, backoff_s=10.0), OK).not_before is None


@pytest.mark.parametrize("state", sorted(RUNNABLE))
def test_a_refusal_is_final_and_no_attempt(state: State) -> None:
    found = decided(leases.refuse(job(state, 1, on=ALL), "no such key", "untrusted_key", 985.0))
    assert (found.state, found.attempt, found.release) == (S.FAILED, 1, True)
    assert found.outcome == Outcome(Reason.REFUSED, message="untrusted_key: no such key")
    assert found.steps[0].at == 985.0


def test_an_attempt_that_the_ledger_knows_is_used_up_and_lost() -> None:
    found = decided(leases.refuse(job(S.PREPROCESSED, 0), "it was", leases.STARTED_BEFORE, 985.0))
    assert path(found) == [S.RUNNING, S.RUN_ERROR, S.RESTART_READY]
    assert found.attempt == 1
    assert found.outcome == Outcome(Reason.OUTCOME_LOST, message="it was")


def test_a_refusal_because_the_signature_expired_says_so() -> None:
    found = decided(leases.refuse(job(S.PREPROCESSED, 0), "", "expired", 985.0))
    assert found.outcome == Outcome(Reason.EXPIRED, message="expired")


@pytest.mark.parametrize("state", [s for s in State if s not in RUNNABLE])
def test_what_has_started_cannot_be_refused(state: State) -> None:
    assert leases.refuse(job(state), "m", "unsigned", 985.0) is Verdict.ILLEGAL


@pytest.mark.parametrize("state", sorted(RUNNABLE))
def test_at_a_death_a_grant_counts_as_started(state: State) -> None:
    found = leases.death(job(state, 1), Reason.SESSION_DEAD, NOW, "gone")
    decided(found)
    assert path(found) == [S.RUNNING, S.RUN_ERROR, S.RESTART_READY]
    assert [s.assumed for s in found.steps] == [True, False, False]
    assert found.attempt == 2
    assert found.outcome == Outcome(Reason.SESSION_DEAD, message="gone")


@pytest.mark.parametrize("kind", ["end", "refused"])
def test_an_end_that_cannot_be_applied_is_an_end_all_the_same(kind: str) -> None:
    lost = leases.unusable_end(job(S.RUNNING, 2), kind, NOW)
    assert lost is not None
    decided(lost)
    assert (path(lost), lost.attempt, lost.release) == ([S.RUN_ERROR, S.RESTART_READY], 2, True)
    assert lost.outcome is not None
    assert lost.outcome.reason is Reason.OUTCOME_LOST


@pytest.mark.parametrize("kind", ["start", "paused", ""])
def test_other_reports_that_cannot_be_applied_end_nothing(kind: str) -> None:
    assert leases.unusable_end(job(S.RUNNING, 2), kind, NOW) is None


def test_at_a_death_a_started_job_keeps_its_attempt() -> None:
    found = decided(leases.death(job(S.RUNNING, 2), Reason.ALLOCATION_END, NOW))
    assert path(found) == [S.RUN_ERROR, S.RESTART_READY]
    assert found.attempt == 2


def test_a_death_in_the_last_attempt_fails_the_job() -> None:
    assert leases.death(job(S.RUNNING, 3), Reason.SESSION_DEAD, NOW).state is S.FAILED
    assert leases.death(job(S.RESTART_READY, 2), Reason.SESSION_DEAD, NOW).state is S.FAILED


def test_a_death_makes_a_pending_cancel_true() -> None:
    found = leases.death(job(S.PREPROCESSED, 0, cancel=True), Reason.SESSION_DEAD, NOW)
    assert path(decided(found)) == [S.RUNNING, S.CANCELLED]


def test_a_leased_job_is_cancelled_by_its_pilot() -> None:
    assert leases.cancel(job(S.RUNNING), True, NOW) is None
    assert leases.cancel(job(S.PREPROCESSED), True, NOW) is None


@pytest.mark.parametrize("state", [S.AWAITING_PARENTS, S.PREPROCESSED, S.RESTART_READY])
def test_a_job_that_nobody_holds_is_cancelled_at_once(state: State) -> None:
    found = decided(leases.cancel(job(state, 1), False, NOW))
    assert (found.state, found.attempt, found.release) == (S.CANCELLED, 1, True)
    assert found.outcome == Outcome(Reason.CANCELLED)


@pytest.mark.parametrize("state", [S.FAILED, S.CANCELLED])
@pytest.mark.parametrize(("parents", "new"), [(0, S.RESTART_READY), (2, S.AWAITING_PARENTS)])
def test_a_retry(state: State, parents: int, new: State) -> None:
    found = decided(leases.retry(job(state, 2), parents, NOW))
    assert (found.state, found.attempt, found.outcome) == (new, 2, None)


@pytest.mark.parametrize("state", list(State))
def test_who_may_be_retried(state: State) -> None:
    wanted = None
    if state not in FINAL:
        wanted = "not_final"
    elif state is S.JOB_FINISHED:
        wanted = "finished"
    assert leases.may_retry(job(state, 2, most=3)) == wanted


@pytest.mark.parametrize("attempt", [3, 4])
def test_no_retry_beyond_what_was_signed(attempt: int) -> None:
    assert leases.may_retry(job(S.FAILED, attempt, most=3)) == "attempts"


@pytest.mark.parametrize(
    ("ago", "due"),
    [
        (0.0, False),
        (300.0, False),
        (300.0 + limits.TAKEOVER_MARGIN_S, False),
        (300.1 + limits.TAKEOVER_MARGIN_S, True),
    ],
)
def test_a_takeover_is_due_after_its_time_and_a_margin(ago: float, due: bool) -> None:
    assert leases.takeover_due(ago, 300.0) is due


@pytest.mark.parametrize(
    ("outcome", "ok"),
    [(OK, True), (BAD, False), (Outcome(Reason.EXIT), False), (Outcome(Reason.TIMEOUT, 0), False)],
)
def test_only_an_exit_0_is_a_success(outcome: Outcome, ok: bool) -> None:
    assert outcome.ok is ok
