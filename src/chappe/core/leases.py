"""Leases: who may run a Job, and what each report makes of it.

The argument, once. A Job is granted to a Session; the grant increments the Job's *epoch*, and every
report names (session, epoch). A report whose epoch is not the row's changes nothing, so a pilot that
was frozen, cut off or restored from a backup cannot overwrite what a later holder did (promise I8).

*Silence is not death.* A Session that is not heard keeps its Jobs: an allocation behind a broken network
computes on. A Job that has started is granted again only on proof of death: its parent reaped it, the
scheduler says that the BatchJob ended, the allocation's hard end has passed, or an operator orders it.
A grant that was not started comes back only when a later sync of the same Session disowns it.
One exception is asked for by the user: with `takeover_s` the pilot's side kills the Job when it has had no
contact for so long, counted from the moment it *sent* the last request that was answered, and the Hub
grants it anew after the same time counted from its commit, which is later (promise I9).

*Attempts.* `attempt` counts starts. The grant names the number; it may exceed the row's by more than one
only after a restored backup forgot some, so reports are accepted with any higher number. A start that
nobody can exclude counts: on proof of death a granted Job is taken as started, unless the Site proves by
its ledger that it was not.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from chappe.core import limits
from chappe.core.hooks import HookName, HookReport
from chappe.core.jobs import Retries, RetryOn
from chappe.core.states import FINAL, RUNNABLE, State


class Reason(StrEnum):
    """How a run ended (end reports), or why it never began."""

    EXIT = "exit"
    SIGNAL = "signal"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    START_FAILED = "start_failed"
    LAUNCHER_LOST = "launcher_lost"
    ALLOCATION_END = "allocation_end"
    ALLOCATION_CANCELLED = "allocation_cancelled"
    NODE_LOST = "node_lost"
    SESSION_DEAD = "session_dead"
    TAKEOVER = "takeover"
    REFUSED = "refused"
    PARENT = "parent"
    OUTCOME_LOST = "outcome_lost"
    EXPIRED = "expired"
    HOOK = "hook"
    RANK_KILLED = "rank_killed"
    MEMORY = "memory"


_LOST = frozenset(
    {
        Reason.LAUNCHER_LOST,
        Reason.ALLOCATION_END,
        Reason.ALLOCATION_CANCELLED,
        Reason.NODE_LOST,
        Reason.SESSION_DEAD,
        Reason.TAKEOVER,
        Reason.OUTCOME_LOST,
    }
)


#: The code of a refusal because of the Site's ledger.
STARTED_BEFORE = "started_before"


class Verdict(StrEnum):
    """What the Hub answers to one report. Every verdict ends the report's life in the outbox."""

    APPLIED = "applied"
    DUPLICATE = "duplicate"
    STALE_LEASE = "stale_lease"
    ILLEGAL = "illegal"
    REFUSED = "refused"

    __hash__ = str.__hash__


class IoUsage(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """What a run read and wrote, where its App counts it: bytes and calls of read(2), write(2) and their
    like, what of it came from and went to storage, and the files in its own directory at its end (without
    its logs, at most 100 000). It covers the command and its descendants, except those that nobody waited
    for while their parent lived. Of `source` "rusage" (its /proc could not be read) only storage is known."""

    read_bytes: int = 0
    written_bytes: int = 0
    read_calls: int = 0
    write_calls: int = 0
    storage_read_bytes: int = 0
    storage_written_bytes: int = 0
    files: int = 0
    source: str = "proc"


class Usage(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """What a run used, from wait4(2)."""

    wall_s: float = 0.0
    user_s: float = 0.0
    system_s: float = 0.0
    max_rss_bytes: int = 0
    written_bytes: int = 0
    io: IoUsage | None = None


class Outcome(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """How the last attempt ended: kept in the Job's row and in the Event that ends the attempt."""

    reason: Reason
    exit: int | None = None
    signal: int | None = None
    message: str = ""
    usage: Usage | None = None
    tail: str = ""
    result_sha256: str | None = None
    hook: HookReport | None = None

    @property
    def ok(self) -> bool:
        """Whether the run succeeded."""
        return self.reason is Reason.EXIT and self.exit == 0


class Held(msgspec.Struct, frozen=True, gc=False):
    """The part of a Job's row that decisions about its lease need."""

    state: State
    attempt: int
    max_attempts: int
    cancel_at: float | None
    retries: Retries


class Step(msgspec.Struct, frozen=True, gc=False):
    """One Event of a decision."""

    old: State | None
    new: State
    at: float
    outcome: Outcome | None = None
    assumed: bool = False


class Decision(msgspec.Struct, frozen=True, gc=False):
    """What becomes of a Job: its new state, the Events that lead there, and whether it is free again."""

    state: State
    attempt: int
    steps: tuple[Step, ...]
    release: bool
    outcome: Outcome | None = None
    not_before: float | None = None


def start(job: Held, attempt: int, at: float) -> Decision | Verdict:
    """The pilot says that attempt `attempt` began at `at`."""
    if job.state is State.RUNNING:
        return Verdict.DUPLICATE
    if job.state not in RUNNABLE or attempt <= job.attempt:
        return Verdict.ILLEGAL
    return Decision(State.RUNNING, attempt, (Step(job.state, State.RUNNING, at),), release=False)


def end(
    job: Held, attempt: int, started_at: float | None, at: float, outcome: Outcome, now: float
) -> Decision | Verdict:
    """The pilot says how an attempt ended. An end that overtook its start brings `started_at` along."""
    steps: list[Step] = []
    if job.state in RUNNABLE:
        if attempt <= job.attempt or started_at is None:
            return Verdict.ILLEGAL
        steps.append(Step(job.state, State.RUNNING, started_at))
    elif job.state is not State.RUNNING or attempt < job.attempt:
        return Verdict.ILLEGAL
    return _after_run(job, attempt, steps, at, outcome, now)


def refuse(job: Held, message: str, reason: str, at: float) -> Decision | Verdict:
    """The pilot refused to start the grant: a refusal is no attempt, and it is final.

    Except that the Site's ledger knows this attempt: then it was made in a past that a restore has lost. Who
    runs it now would have said so (store.unheard), so it is over, and its outcome is lost.
    """
    if job.state not in RUNNABLE:
        return Verdict.ILLEGAL
    if reason == STARTED_BEFORE:
        return death(job, Reason.OUTCOME_LOST, at, message)
    what = Reason.EXPIRED if reason == "expired" else Reason.REFUSED
    outcome = Outcome(reason=what, message=f"{reason}: {message}" if message else reason)
    return Decision(
        State.FAILED,
        job.attempt,
        (Step(job.state, State.FAILED, at, outcome),),
        release=True,
        outcome=outcome,
    )


def death(job: Held, reason: Reason, now: float, message: str = "") -> Decision:
    """The Session that held the Job is proven dead: the run, started or not, is lost."""
    steps: list[Step] = []
    attempt = job.attempt
    if job.state in RUNNABLE:
        attempt += 1
        steps.append(Step(job.state, State.RUNNING, now, assumed=True))
    return _after_run(job, attempt, steps, now, Outcome(reason=reason, message=message), now)


def unusable_end(job: Held, kind: str, now: float) -> Decision | None:
    """What becomes of a lease whose holder says that it is over, in words that cannot be applied: an end
    that names a result which was never stored, or a wrong attempt. None for a report that says no such thing.

    The verdict is `illegal`, which ends the report's life; for a Job that its pilot does not name as held
    either, nothing will be heard again. It must not wait for its Session's end: its run is over, and its
    outcome is lost.
    """
    if kind not in ("end", "refused"):
        return None
    return death(job, Reason.OUTCOME_LOST, now, "its pilot reported an end that cannot be true")


def with_hook(outcome: Outcome, hook: HookReport) -> Outcome:
    """The outcome of an attempt, after its hook. A Job whose preprocess or postprocess hook failed has
    failed; a failed on_error or on_timeout hook changes nothing about how the run ended."""
    replace = msgspec.structs.replace
    words = hook.message
    if hook.problem:
        words = f"its {hook.name} hook {hook.problem}"
    elif hook.state is not None and not words:
        words = f"its {hook.name} hook set {hook.state}"
    if hook.problem and hook.name in (HookName.ON_ERROR, HookName.ON_TIMEOUT):
        message = f"{outcome.message}; {words}" if outcome.message else words
        return replace(outcome, message=message, hook=hook)
    if hook.problem or hook.name is HookName.PREPROCESS:
        return replace(outcome, reason=Reason.HOOK, message=words, hook=hook)
    return replace(outcome, message=words or outcome.message, hook=hook)


def wanted(outcome: Outcome) -> State | None:
    """The state that a hook sent the Job to; None when it left that to the rules, or may not decide.

    A hook decides about a run that ended by itself or at its limit, never about one that was lost.
    """
    hook = outcome.hook
    if hook is None or hook.problem or outcome.reason in _LOST:
        return None
    return hook.state if outcome.reason is not Reason.CANCELLED else None


def finished(outcome: Outcome) -> bool:
    """Whether the Job is done with this attempt."""
    decided = wanted(outcome)
    return outcome.ok if decided is None else decided is State.JOB_FINISHED


def again(retries: Retries, attempt: int, max_attempts: int, outcome: Outcome) -> bool:
    """Whether the Job is to be started once more after this attempt, which did not finish it."""
    decided = wanted(outcome)
    if decided is None:
        return retry_class(outcome.reason) in retries.on and attempt < max_attempts
    return decided is State.RESTART_READY and attempt < max_attempts


def _after_run(
    job: Held, attempt: int, steps: list[Step], at: float, outcome: Outcome, now: float
) -> Decision:
    """From RUNNING to where the outcome, a hook's verdict, a pending cancel and the retry rule lead."""
    S = State
    if finished(outcome):
        # An exit 0 that came before the cancel took effect wins: the work is done.
        steps.append(Step(S.RUNNING, S.RUN_DONE, at))
        last = S.RUN_DONE
        if outcome.hook is not None and outcome.hook.name is not HookName.PREPROCESS:
            steps.append(Step(S.RUN_DONE, S.POSTPROCESSED, at))
            last = S.POSTPROCESSED
        steps.append(Step(last, S.JOB_FINISHED, at, outcome))
        return Decision(S.JOB_FINISHED, attempt, tuple(steps), release=True, outcome=outcome)
    if job.cancel_at is not None:
        steps.append(Step(S.RUNNING, S.CANCELLED, at, outcome))
        return Decision(S.CANCELLED, attempt, tuple(steps), release=True, outcome=outcome)
    failed = S.RUN_TIMEOUT if outcome.reason is Reason.TIMEOUT else S.RUN_ERROR
    steps.append(Step(S.RUNNING, failed, at, outcome))
    more = again(job.retries, attempt, job.max_attempts, outcome)
    new = S.RESTART_READY if more else S.FAILED
    steps.append(Step(failed, new, at, None if more else outcome))
    wait = job.retries.backoff_s * 2 ** min(attempt - 1, 16) if more else 0.0
    return Decision(
        new,
        attempt,
        tuple(steps),
        release=True,
        outcome=outcome,
        not_before=now + min(wait, 86_400.0) if wait else None,
    )


def retry_class(reason: Reason) -> RetryOn:
    """The class of outcome that `retries.on` speaks about."""
    if reason is Reason.TIMEOUT:
        return RetryOn.TIMEOUT
    return RetryOn.LOST if reason in _LOST else RetryOn.ERROR


def cancel(job: Held, leased: bool, now: float) -> Decision | None:
    """Cancel: at once when nobody holds the Job; None when its pilot must end it first."""
    if leased:
        return None
    outcome = Outcome(reason=Reason.CANCELLED)
    return Decision(
        State.CANCELLED,
        job.attempt,
        (Step(job.state, State.CANCELLED, now, outcome),),
        release=True,
        outcome=outcome,
    )


def retry(job: Held, waiting_parents: int, now: float) -> Decision:
    """An explicit retry of a Job that failed or was cancelled."""
    new = State.AWAITING_PARENTS if waiting_parents else State.RESTART_READY
    return Decision(new, job.attempt, (Step(job.state, new, now),), release=True)


def may_retry(job: Held) -> str | None:
    """Why an explicit retry is not possible: a code for the caller; None when it is."""
    if job.state not in FINAL:
        return "not_final"
    if job.state is State.JOB_FINISHED:
        return "finished"
    return "attempts" if job.attempt >= job.max_attempts else None


def takeover_due(heard_ago_s: float, takeover_s: float) -> bool:
    """Whether the Hub may grant the Job anew: the pilot's side has killed it by then."""
    return heard_ago_s > takeover_s + limits.TAKEOVER_MARGIN_S
