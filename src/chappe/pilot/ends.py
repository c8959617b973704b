"""What the launcher says of a run's end, as the report that the Hub gets."""

from __future__ import annotations

from signal import SIGTERM

import msgspec

from chappe.core.leases import Outcome, Reason, Usage
from chappe.link.journal import End
from chappe.link.values import is_left
from chappe.pilot.holding import Holding
from chappe.pilot.launch_wire import Ended

_REASONS = {reason.value: reason for reason in Reason}


def end_of(h: Holding, ended: Ended) -> End:
    """The end of `h`. With `result` set, its result must be with the Hub before it is reported."""
    failed_start = ended.started_at is None
    reason, message = _cause(h, ended)
    outcome = Outcome(
        reason=reason,
        exit=ended.exit,
        signal=ended.signal,
        message=ended.tail if failed_start else ended.note or message,
        usage=None
        if failed_start
        else Usage(
            ended.wall_s,
            ended.user_s,
            ended.system_s,
            ended.max_rss_bytes,
            ended.written_bytes,
        ),
        tail="" if failed_start else ended.tail,
    )
    return End(
        h.job,
        h.epoch,
        h.attempt,
        "end",
        ended.ended_at,
        outcome,
        # An attempt that failed to start is an attempt: the Hub wants to know when it was made.
        started_at=ended.ended_at if ended.started_at is None else ended.started_at,
        # What ranks leave may be an exception.
        result=ended.result or (h.result if outcome.ok or is_left(h.result) else ""),
        orphan=h.orphan,
    )


def of_cancelled(end: End) -> End:
    """The end of what an allocation took with it that was cancelled before its time."""
    if end.outcome.reason is not Reason.ALLOCATION_END:
        return end
    words = "the allocation was cancelled or pre-empted"
    message = f"{words}: {end.outcome.message}" if end.outcome.message else words
    outcome = msgspec.structs.replace(
        end.outcome, reason=Reason.ALLOCATION_CANCELLED, message=message
    )
    return msgspec.structs.replace(end, outcome=outcome)


def doubtful(h: Holding, ended: Ended) -> bool:
    """Whether ranks on several nodes ended badly, or SIGTERM ended it, and nobody here wanted that."""
    if h.ending or ended.reason not in ("exit", "signal"):
        return False
    wide = h.started_by is not None and h.slot is not None and len(h.slot.shares) > 1
    return (wide and ended.exit != 0) or termed(ended)


def termed(ended: Ended) -> bool:
    """Whether SIGTERM ended it. A scheduler that ends an allocation sends it to Jobs and pilot at once, and
    the end of a Job may be heard of first."""
    return ended.signal == SIGTERM or ended.exit == 128 + SIGTERM


def of_allocation(ended: Ended) -> Ended:
    """What SIGTERM ended when the pilot got one, too: it was the allocation's."""
    if ended.reason in ("exit", "signal") and termed(ended):
        return msgspec.structs.replace(ended, reason="allocation_end")
    return ended


def _cause(h: Holding, ended: Ended) -> tuple[Reason, str]:
    """Why it ended, and what there is to add. All that a launcher of ranks shows when it fails is an exit
    status of its own; its last words say which rank took the others with it."""
    reason = _REASONS[ended.reason]
    if h.started_by is None or h.slot is None or reason not in (Reason.EXIT, Reason.SIGNAL):
        return reason, ""
    if ended.exit == 0:
        return reason, ""
    failure = h.started_by.failure(ended.tail)
    if gone := [share.node.name for share in h.slot.shares if not share.node.up]:
        # Whether its own node died or only its hand, the ranks there are gone, and it is they that count.
        return Reason.NODE_LOST, f"node {', '.join(gone)} was lost while its ranks ran"
    if failure is None:
        return reason, ""
    if failure.lost:
        return Reason.NODE_LOST, failure.words()
    killed = failure.signal is not None and reason is Reason.EXIT
    return (Reason.RANK_KILLED if killed else reason), failure.words()
