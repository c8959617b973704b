"""What the launcher says of a run's end, as the report that the Hub gets."""

from __future__ import annotations

from chappe.core.leases import Outcome, Reason, Usage
from chappe.link.journal import End
from chappe.pilot.holding import Holding
from chappe.pilot.launch_wire import Ended

_REASONS = {reason.value: reason for reason in Reason}


def end_of(h: Holding, ended: Ended) -> End:
    """The end of `h`. With `result` set, its result must be with the Hub before it is reported."""
    failed_start = ended.started_at is None
    outcome = Outcome(
        reason=_REASONS[ended.reason],
        exit=ended.exit,
        signal=ended.signal,
        message=ended.tail if failed_start else "",
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
        result=ended.result or (h.result if outcome.ok else ""),
        orphan=h.orphan,
    )
