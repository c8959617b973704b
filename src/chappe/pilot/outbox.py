"""Reports on their way to the Hub: numbered when a request takes them, gone when it has its verdict.

Numbers rise and are never used twice; they carry no meaning of their own. A report that may have been lost
gets a new number (the Hub finds by the Job's epoch that it was applied), so only the end itself is kept in
the journal, not its number. A start that was not yet told when its Job ends is not told at all: the end
brings it along. Pure.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import islice
from typing import NamedTuple

from chappe.core.leases import Verdict
from chappe.link.journal import End
from chappe.wire.sync import Report, ReportVerdict


class Start(NamedTuple):
    """A run began."""

    job: str
    epoch: int
    attempt: int
    at: float


Draft = Start | End
_VERDICTS: dict[str, Verdict] = {verdict.value: verdict for verdict in Verdict}


class Outbox:
    """Starts and ends to tell. At most one request is in flight."""

    def __init__(self, report_no: int = 0) -> None:
        self.last_no = report_no
        self._starts: dict[str, Start] = {}
        self._ends: deque[End] = deque()
        self._in_flight: dict[int, Draft] = {}

    def __len__(self) -> int:
        """Drafts that no request has taken."""
        return len(self._starts) + len(self._ends)

    @property
    def urgent(self) -> bool:
        """Whether there is more to tell than starts, which an end may soon make needless."""
        return bool(self._ends)

    @property
    def empty(self) -> bool:
        """Whether the Hub has given its verdict on everything."""
        return not (self._starts or self._ends or self._in_flight)

    def add_start(self, start: Start) -> None:
        """Tell that a run began."""
        self._starts[start.job] = start

    def add_end(self, end: End) -> None:
        """Tell what became of a grant."""
        self._starts.pop(end.job, None)
        self._ends.append(end)

    def take(self, most: int) -> list[Report]:
        """At most so many reports for the next request. They come back with `give_back` or `settle`."""
        starts = [self._starts.pop(job) for job in list(islice(self._starts, most))]
        ends = [self._ends.popleft() for _ in range(min(most - len(starts), len(self._ends)))]
        drafts: list[Draft] = [*starts, *ends]
        reports = []
        for draft in drafts:
            self.last_no += 1
            self._in_flight[self.last_no] = draft
            reports.append(_report(self.last_no, draft))
        return reports

    def settle(self, verdicts: Iterable[ReportVerdict]) -> list[tuple[Draft, Verdict]]:
        """The request was answered: what it reported, with the verdicts. A report without one goes again."""
        settled = []
        for verdict in verdicts:
            draft = self._in_flight.pop(verdict.no, None)
            if draft is not None:
                # A verdict of a newer Hub that we do not know ends the report's life like any other.
                settled.append((draft, _VERDICTS.get(verdict.verdict, Verdict.REFUSED)))
        self.give_back()
        return settled

    def give_back(self) -> None:
        """What is in flight is to be told again, by another request."""
        for draft in reversed(self._in_flight.values()):
            if isinstance(draft, End):
                self._ends.appendleft(draft)
            elif draft.job not in self._starts and not any(e.job == draft.job for e in self._ends):
                self._starts[draft.job] = draft
        self._in_flight.clear()


def _report(no: int, draft: Draft) -> Report:
    if isinstance(draft, Start):
        return Report(no, draft.job, draft.epoch, draft.attempt, "start", draft.at)
    return Report(
        no,
        draft.job,
        draft.epoch,
        draft.attempt,
        draft.kind,
        draft.at,
        started_at=draft.started_at,
        outcome=draft.outcome,
        reason=draft.reason,
        media=draft.media,
        body=draft.body,
    )
