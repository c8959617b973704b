"""What the owner of a Site lets us ask of its scheduler, and how often: pure rules.

Three questions are answered here, by what `[policy]` in site.toml says and nothing else: may this ever be
submitted (`check_allowed`), may it be submitted now (`room`, `Bucket`), and when may the scheduler be called
again (`status_wait_s`, `Breaker`). `words` tells the same to a person. Times are seconds of one clock that
the caller chooses.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta

from chappe.core import limits
from chappe.core.batchjobs import BatchJobIntent, check_word
from chappe.core.errors import Invalid

SLOW_QUERY_FACTOR = 5.0
"""After a status query that took t seconds, the scheduler is left alone for so many times t."""
BREAK_AFTER = 3
"""Failures in a row after which the scheduler is not called for a while."""
BREAK_FIRST_S = 30.0
BREAK_MOST_S = 900.0

Count = Annotated[int, Meta(ge=0, le=1_000_000)]
Names = Annotated[list[str], Meta(max_length=100)]


class NotAllowed(Invalid):
    """The Site's owner does not let this be submitted; the message says what would be."""

    default_code = "not_allowed"


class QueueRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What may be asked of one queue (partition). 0: no limit but the scheduler's own."""

    nodes_max: Annotated[
        Count, Meta(description="Nodes of one BatchJob at most. 0: no limit of ours.")
    ] = 0
    wall_s_max: Annotated[
        float,
        Meta(ge=0, le=limits.WALL_MAX_S, description="Time of one BatchJob at most. 0: no limit."),
    ] = 0.0
    queued_max: Annotated[
        Count,
        Meta(description="BatchJobs that wait in this queue at once. 0: no limit of its own."),
    ] = 0
    running_max: Annotated[
        Count,
        Meta(
            description="BatchJobs that wait or run in this queue at once. 0: no limit of its own."
        ),
    ] = 0


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What may be asked of the scheduler, and how often. `local` has no pace: only we use it."""

    submissions_per_s: Annotated[
        float,
        Meta(
            gt=0,
            le=100,
            description="Submissions per second, on average; a site that allows four a minute: 0.066.",
        ),
    ] = 0.1
    submissions_burst: Annotated[
        int, Meta(ge=1, le=1000, description="Submissions that may follow at once after a pause.")
    ] = 5
    queued_max: Annotated[
        Count,
        Meta(description="BatchJobs that wait in the scheduler's queues at once. 0: any number."),
    ] = 20
    running_max: Annotated[
        Count, Meta(description="BatchJobs that wait or run at once. 0: any number.")
    ] = 0
    nodes_max: Annotated[
        Count, Meta(description="Nodes of all BatchJobs that wait or run at once. 0: any number.")
    ] = 0
    queues: Annotated[
        dict[str, QueueRule],
        Meta(
            description="Queues (partitions) that may be asked for, each with a table of limits of its own. "
            "Empty: any."
        ),
    ] = {}
    accounts: Annotated[
        Names,
        Meta(description="Accounts that may be charged. Empty: any that the scheduler takes."),
    ] = []
    qos: Annotated[
        Names, Meta(description="Qualities of service that may be asked for. Empty: any.")
    ] = []
    reservations: Annotated[
        Names, Meta(description="Reservations that may be used. Empty: any.")
    ] = []
    directives: Annotated[
        Names,
        Meta(
            description="Further directives that users may ask for, as patterns: "
            '["--exclusive", "--licenses=*"]. Empty: none.'
        ),
    ] = []
    cancel_batch: Annotated[
        int, Meta(ge=1, le=1000, description="BatchJobs that one cancel command may name.")
    ] = 50


class Standing(NamedTuple):
    """A BatchJob that the scheduler has, or may have: `waiting` until it runs."""

    queue: str
    nodes: int
    waiting: bool


class Bucket(msgspec.Struct, frozen=True):
    """A token bucket: `level` submissions were free at `at`."""

    level: float
    at: float

    def filled(self, policy: Policy, at: float) -> float:
        """How many are free at `at`. A clock that went back gives nothing."""
        since_s = max(0.0, at - self.at)
        return min(float(policy.submissions_burst), self.level + since_s * policy.submissions_per_s)

    def wait_s(self, policy: Policy, at: float) -> float:
        """Seconds until one may be submitted; 0 for now."""
        return max(0.0, 1.0 - self.filled(policy, at)) / policy.submissions_per_s

    def taken(self, policy: Policy, at: float) -> Bucket:
        """After one submission."""
        return Bucket(max(0.0, self.filled(policy, at) - 1.0), max(at, self.at))


class Breaker(msgspec.Struct, frozen=True):
    """Whether the scheduler is left alone because it failed or said that it is busy, `failures` times in a
    row; until `until` nothing is asked."""

    failures: int = 0
    until: float = 0.0

    def failed(self, at: float) -> Breaker:
        """After one more failure."""
        failures = self.failures + 1
        if failures < BREAK_AFTER:
            return Breaker(failures)
        pause_s = min(BREAK_MOST_S, BREAK_FIRST_S * 2.0 ** min(10, failures - BREAK_AFTER))
        return Breaker(failures, at + pause_s)

    def wait_s(self, at: float) -> float:
        """Seconds until it may be asked again; 0 for now. Far more than it can be: the clock was set back."""
        left_s = self.until - at
        return left_s if 0.0 < left_s < 2 * BREAK_MOST_S else 0.0


def check_allowed(policy: Policy, intent: BatchJobIntent) -> None:
    """Raise NotAllowed, naming the field, for what this policy never lets through."""
    if policy.queues and intent.queue not in policy.queues:
        known = ", ".join(sorted(policy.queues))
        raise NotAllowed(f"this site submits to the queues {known} only", field="intent.queue")
    for field, value, allowed in (
        ("account", intent.account, policy.accounts),
        ("qos", intent.qos, policy.qos),
        ("reservation", intent.reservation, policy.reservations),
    ):
        if value and allowed and value not in allowed:
            raise NotAllowed(
                f"{value!r} is not among what this site's policy allows: {', '.join(allowed)}",
                field=f"intent.{field}",
            )
    for directive in intent.job_extra_directives:
        if not any(fnmatchcase(directive, pattern) for pattern in policy.directives):
            shown = ", ".join(policy.directives) or "none"
            raise NotAllowed(
                f"{directive!r} is not among the directives that this site's policy allows: {shown}",
                field="intent.job_extra_directives",
            )
    rule = policy.queues.get(intent.queue, QueueRule())
    for most in (rule.nodes_max, policy.nodes_max):
        if most and intent.nodes > most:
            raise NotAllowed(f"at most {most} nodes may be asked for", field="intent.nodes")
    if rule.wall_s_max and (intent.wall_s is None or intent.wall_s > rule.wall_s_max):
        raise NotAllowed(
            f"the queue {intent.queue!r} gives at most {rule.wall_s_max:g} s", field="intent.wall_s"
        )


def room(policy: Policy, intent: BatchJobIntent, standing: Iterable[Standing]) -> str:
    """Why this cannot be submitted now, beside those of ours that stand there; "" when it can."""
    all_ = list(standing)
    here = [s for s in all_ if s.queue == intent.queue]
    rule = policy.queues.get(intent.queue, QueueRule())
    for most, found, what in (
        (policy.queued_max, sum(s.waiting for s in all_), "wait"),
        (policy.running_max, len(all_), "wait or run"),
        (rule.queued_max, sum(s.waiting for s in here), f"wait in {intent.queue}"),
        (rule.running_max, len(here), f"wait or run in {intent.queue}"),
    ):
        if most and found >= most:
            return f"{found} of at most {most} {what} already"
    nodes = sum(s.nodes for s in all_)
    if policy.nodes_max and nodes + intent.nodes > policy.nodes_max:
        return f"{nodes} of at most {policy.nodes_max} nodes are asked for already"
    return ""


def status_wait_s(interval_s: float, fast_s: float, *, waiting: bool, query_s: float) -> float:
    """How long to leave the scheduler alone after a status query that took `query_s`."""
    chosen_s = min(interval_s, fast_s) if waiting else interval_s
    return max(chosen_s, SLOW_QUERY_FACTOR * query_s)


def check_policy(policy: Policy) -> None:
    """Raise Invalid for names that no scheduler knows."""
    for name in policy.queues:
        check_word(name, f"policy.queues.{name[:40]}")
    for field in ("accounts", "qos", "reservations"):
        for name in getattr(policy, field):
            check_word(name, f"policy.{field}")


def words(policy: Policy, interval_s: float, fast_s: float) -> list[str]:
    """The policy in sentences."""
    said = [
        f"Submits at most {_rate(policy.submissions_per_s)}, {policy.submissions_burst} at once after a "
        "pause.",
        "Asks how all of its BatchJobs are with one query, "
        f"every {interval_s:g} s at most; every {min(interval_s, fast_s):g} s while one waits. After a slow "
        f"answer it waits {SLOW_QUERY_FACTOR:g} times as long as that took. Without BatchJobs it asks "
        "nothing.",
        f"When {BREAK_AFTER} calls in a row failed, leaves the scheduler alone for {BREAK_FIRST_S:g} s, then "
        f"ever longer, up to {BREAK_MOST_S:g} s.",
        f"Cancels up to {policy.cancel_batch} BatchJobs with one command.",
    ]
    for most, what in (
        (policy.queued_max, "BatchJobs wait in the queues"),
        (policy.running_max, "BatchJobs wait or run"),
        (policy.nodes_max, "nodes are asked for or used"),
    ):
        said.append(f"At most {most} {what} at once." if most else f"Any number of {what}.")
    said += _queues(policy.queues)
    for names, what in (
        (policy.accounts, "Accounts"),
        (policy.qos, "Qualities of service"),
        (policy.reservations, "Reservations"),
    ):
        said.append(f"{what}: {', '.join(names) or 'any that the scheduler takes'}.")
    said.append(f"Further directives of users: {', '.join(policy.directives) or 'none'}.")
    return said


def _rate(per_s: float) -> str:
    return f"{per_s:g} jobs a second" if per_s >= 1 else f"{60 * per_s:.3g} jobs a minute"


def _queues(queues: Mapping[str, QueueRule]) -> list[str]:
    if not queues:
        return ["Queues: any that the scheduler takes."]
    said = []
    for name, rule in sorted(queues.items()):
        limits_ = [
            f"{value:g} {what}"
            for value, what in (
                (rule.nodes_max, "nodes each"),
                (rule.wall_s_max, "s each"),
                (rule.queued_max, "waiting"),
                (rule.running_max, "waiting or running"),
            )
            if value
        ]
        most = f"at most {', '.join(limits_)}" if limits_ else "no limits but the scheduler's own"
        said.append(f"Queue {name}: {most}.")
    return said
