"""A pilot's side of the sync protocol, without processes: what is timed is the Hub's answer.

`call` carries one request and returns its reply; it may go through the store or over HTTP.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from chappe.core.leases import Outcome, Reason, Usage
from chappe.core.shapes import Capacity
from chappe.wire.sync import Grant, HeldJob, JobEpoch, Report, SyncReply, SyncRequest

Call = Callable[[SyncRequest], SyncReply]
_USAGE = Usage(0.001, 0.001, 0.001, 1_000_000)


class Timed(NamedTuple):
    """A reply, and how long it took in seconds."""

    reply: SyncReply
    taken_s: float


class Span(NamedTuple):
    """When a call began and ended, by time.perf_counter."""

    began: float
    ended: float


class PilotLike:
    """Numbers requests and reports as a pilot does; remembers what it holds."""

    def __init__(self, session: str, call: Call) -> None:
        self._session = session
        self._call = call
        self._request_no = 0
        self._report_no = 0
        self._seen = (0, 0)
        self._held: dict[str, HeldJob] = {}
        self._submissions: list[str] = []
        self.last_call = Span(0.0, 0.0)

    def acquire(self, most: int) -> tuple[list[Grant], float]:
        """Ask for `most` Jobs of one core or two; the grants, and the seconds it took."""
        capacity = Capacity(
            cores=2, mem_bytes=8 << 30, node_cores=2, node_mem_bytes=8 << 30, prefetch=most - 2
        )
        reply, taken_s = self._sync(capacity=capacity)
        for grant in reply.grants:
            self._held[grant.job] = HeldJob(grant.job, grant.epoch)
        self._submissions = [*self._submissions, *(s.id for s in reply.submissions)][-10:]
        return reply.grants, taken_s

    def start(self, grants: Sequence[Grant]) -> float:
        """Report starts; the seconds it took."""
        for grant in grants:
            self._held[grant.job] = HeldJob(grant.job, grant.epoch, True)
        return self._report(grants, "start", None)

    def end(self, grants: Sequence[Grant]) -> float:
        """Report successful ends; the seconds it took."""
        for grant in grants:
            del self._held[grant.job]
        return self._report(grants, "end", Outcome(Reason.EXIT, exit=0, usage=_USAGE))

    def give_back(self, grants: Sequence[Grant]) -> None:
        """Return grants unstarted."""
        for grant in grants:
            del self._held[grant.job]
        self._sync(returned=[JobEpoch(g.job, g.epoch) for g in grants])

    def _report(self, grants: Sequence[Grant], kind: str, outcome: Outcome | None) -> float:
        at = time.time()
        first = self._report_no + 1
        self._report_no += len(grants)
        reports = [
            Report(first + i, g.job, g.epoch, g.attempt, kind, at, outcome=outcome)
            for i, g in enumerate(grants)
        ]
        reply, taken_s = self._sync(reports=reports)
        bad = [v for v in reply.verdicts if v.verdict != "applied"]
        assert not bad, bad[:3]
        assert len(reply.verdicts) == len(grants)
        return taken_s

    def _sync(
        self,
        *,
        capacity: Capacity | None = None,
        reports: list[Report] | None = None,
        returned: list[JobEpoch] | None = None,
    ) -> Timed:
        self._request_no += 1
        request = SyncRequest(
            self._session,
            self._request_no,
            self._request_no - 1,
            self._seen,
            held=list(self._held.values()),
            returned=returned or [],
            reports=reports or [],
            capacity=capacity,
            have_submissions=self._submissions,
        )
        began = time.perf_counter()
        reply = self._call(request)
        self.last_call = Span(began, time.perf_counter())
        assert not reply.unknown, reply.unknown[:3]
        self._seen = (reply.incarnation, reply.commit_no)
        return Timed(reply, self.last_call.ended - began)
