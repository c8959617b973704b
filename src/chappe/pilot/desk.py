"""The disk thread's work: the journal, the signatures, and the preparing of starts, in this order.

The Site's directory may lie on a parallel file system that answers slowly or not at all for a while. So
nothing of it is touched on the event loop: heartbeats, cancels and reports go on while a directory hangs.
One thread works through one batch after the other; what arrives meanwhile makes the next batch.

When the journal cannot be written (a full disk), nothing new is started, because a restarted pilot would
not know of it; what runs goes on, and ends are reported all the same: the launcher keeps each end until it
is written, or until the Hub has its verdict on it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from chappe.core.faults import reach
from chappe.link.cleanup import Cleanup, clean
from chappe.link.clock import now
from chappe.link.journal import End, Record, Settled, ended, granted
from chappe.link.signing import SignatureProblem, VerifiedSubmission, verify
from chappe.link.spool import SpoolFull
from chappe.pilot.aftermath import After, Judged
from chappe.pilot.holding import Holding
from chappe.pilot.journal import Journal
from chappe.pilot.launch_wire import Ended as RunEnded
from chappe.pilot.launch_wire import Key
from chappe.pilot.outcomes import Order, Outcome, Postponed
from chappe.pilot.parents import forget
from chappe.pilot.prepare import Preparer
from chappe.wire.submission import Submission
from chappe.wire.sync import Grant

KNOWN_MOST = 32
"""Submissions kept for Jobs still to come; those of Jobs that are held are kept with them."""


class Arrival:
    """What one reply brought: grants, the holdings made of them, and submissions."""

    __slots__ = ("grants", "new", "request_no", "seen", "submissions")

    def __init__(
        self,
        request_no: int,
        seen: tuple[int, int],
        grants: list[Grant],
        new: list[Holding],
        submissions: list[Submission],
    ) -> None:
        self.request_no = request_no
        self.seen = seen
        self.grants = grants
        self.new = new
        self.submissions = submissions


class Work:
    """One batch. `request_no` and `report_no` are the highest numbers in use; `forget` names Jobs whose
    parents' results are needed no more; `ended` are ends to judge, `cleanups` what is to be removed."""

    def __init__(self, request_no: int = 0, report_no: int = 0) -> None:
        self.arrivals: list[Arrival] = []
        self.ends: list[End] = []
        self.settled: list[tuple[str, int]] = []
        self.orders: list[Order] = []
        self.forget: list[str] = []
        self.ended: list[tuple[Holding, RunEnded, After]] = []
        self.cleanups: list[tuple[Key, Cleanup]] = []
        self.request_no = request_no
        self.report_no = report_no


class Done:
    """What became of a batch. `failure` says why nothing of it is in the journal, "" if all is.

    `new` are holdings that may go on; `unproven` those whose submission did not come along.
    """

    def __init__(self) -> None:
        self.failure = ""
        self.new: list[Holding] = []
        self.unproven: list[Holding] = []
        self.outcomes: list[Outcome] = []
        self.judged: list[Judged] = []
        self.cleaned: list[Key] = []


class Desk:
    """Works off one batch at a time. Its methods run on the disk thread."""

    def __init__(self, directory: Path, journal: Journal, preparer: Preparer) -> None:
        self._directory = directory
        self._journal = journal
        self._preparer = preparer
        self._known: OrderedDict[str, VerifiedSubmission] = OrderedDict()
        self.known: list[str] = []
        """Names of submissions that need not be sent again; replaced as a whole, so safe to read."""

    def work(self, work: Work) -> Done:
        """Write the batch to the journal, then prepare what is to start."""
        done = Done()
        done.judged = [self._preparer.judge(*ended) for ended in work.ended]
        done.cleaned = [key for key, what in work.cleanups]
        for _, what in work.cleanups:
            clean(what)
        try:
            self._write(work)
        except (SpoolFull, OSError) as e:
            done.failure = str(e)
            done.outcomes = [Postponed(order.holding, done.failure) for order in work.orders]
            return done
        if work.ends:
            reach("pilot.after_end_journal")
        if work.arrivals:
            reach("pilot.after_grant_journal")
            for arrival in work.arrivals:
                self._prove(arrival.new, arrival.submissions, done)
        if work.orders:
            done.outcomes += self._preparer.prepare(work.orders, now())
        for job in work.forget:
            forget(self._directory, job)
        return done

    def prove_again(self, held: Sequence[Holding], submissions: Sequence[Submission]) -> Done:
        """After a restart: check the signatures of what is held once more."""
        done = Done()
        self._prove(held, submissions, done)
        return done

    def _write(self, work: Work) -> None:
        self._journal.reserve(work.request_no, work.report_no)
        records: list[Record] = []
        for a in work.arrivals:
            records += granted(a.request_no, a.seen, a.grants, a.submissions)
        records += ended(work.ends)
        if work.settled:
            records.append(Settled(work.settled))
        if records:
            self._journal.append(records)

    def _prove(
        self, held: Sequence[Holding], submissions: Sequence[Submission], done: Done
    ) -> None:
        """Give each holding the verified submission it refers to: one signature check per submission."""
        came: dict[str, VerifiedSubmission | SignatureProblem] = {}
        for submission in submissions:
            try:
                came[submission.id] = verify(submission)
            except SignatureProblem as problem:
                came[submission.id] = problem
        for h in held:
            if h.submission is not None:
                h.verified = came.get(h.submission) or self._known.get(h.submission)
                if h.verified is None:
                    done.unproven.append(h)
                    continue
            # Nothing is fetched for a Job that will not be admitted.
            refused = self._preparer.examine(h, now()) if h.needs_parents else None
            if refused is None:
                done.new.append(h)
            else:
                done.outcomes.append(refused)
        for ident, verified in came.items():
            if isinstance(verified, VerifiedSubmission) and len(verified) > 1:
                self._known[ident] = verified
                self._known.move_to_end(ident)
        while len(self._known) > KNOWN_MOST:
            self._known.popitem(last=False)
        if came:
            self.known = list(self._known)
