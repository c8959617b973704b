"""The records of a pilot's journal: what it holds, what has ended, and which numbers are used up.

The pilot writes them (pilot.journal) and reads them when it was restarted. Once the allocation is over and
its pilot gone, the Site's agent reads them too, and delivers the ends that no pilot could any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from chappe.core.leases import Outcome
from chappe.link import spool
from chappe.link.cleanup import Cleanup
from chappe.wire.submission import Submission
from chappe.wire.sync import Grant

FILE = "journal"
"""Its name in the Session's directory."""

_RECORD_ITEMS = 100  # so many specs of the greatest size, or ends with full tails, fit a record

T = TypeVar("T")


class Granted(msgspec.Struct, frozen=True, tag="granted", omit_defaults=True):
    """Grants, as a reply carried them, and the (incarnation, commit_no) that it showed."""

    request_no: int
    seen: tuple[int, int]
    grants: list[Grant]
    submissions: list[Submission] = []


class End(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of a grant, until the Hub gives its verdict on the report. `kind` is end | refused.

    `result` is the path of a result file, or a function's value (see link.values), that must be uploaded
    before the report, or has become the `body` (of type `media`) that the report takes along; `orphan`
    marks the outcome of a Job that the Hub had disowned.
    """

    job: str
    epoch: int
    attempt: int
    kind: str
    at: float
    outcome: Outcome
    started_at: float | None = None
    reason: str = ""
    result: str = ""
    orphan: bool = False
    media: str = ""
    body: bytes = b""
    cleanup: Cleanup | None = None


class Ended(msgspec.Struct, frozen=True, tag="ended"):
    """Runs that ended, and grants that were refused."""

    ends: list[End]


class Settled(msgspec.Struct, frozen=True, tag="settled"):
    """Jobs that are over here: the Hub gave its verdict, or does not want them back."""

    jobs: list[tuple[str, int]]


class Numbers(msgspec.Struct, frozen=True, tag="numbers"):
    """No request or report number above these was used."""

    request_no: int
    report_no: int


Record = Granted | Ended | Settled | Numbers
_decoder = msgspec.json.Decoder(Record)
_encoder = msgspec.json.Encoder()


class Recovered:
    """What the journal says: grants not settled, ends without a verdict, and where numbers go on."""

    def __init__(self) -> None:
        self.grants: dict[str, Grant] = {}
        self.requests: dict[str, int] = {}
        """Which request's answer brought each grant."""
        self.ends: dict[str, End] = {}
        self.submissions: dict[str, Submission] = {}
        self.request_no = 0
        self.report_no = 0
        self.answered = 0
        self.seen = (0, 0)

    def add(self, record: Record) -> None:
        """Apply one record; applying it twice makes no difference."""
        match record:
            case Granted(request_no, seen, grants, submissions):
                self.answered = max(self.answered, request_no)
                self.seen = max(self.seen, seen)
                self.submissions.update((s.id, s) for s in submissions)
                for grant in grants:
                    held = self.grants.get(grant.job)
                    if held is None or held.epoch <= grant.epoch:
                        self.grants[grant.job] = grant
                        self.requests[grant.job] = request_no
            case Ended(ends):
                self.ends.update((end.job, end) for end in ends)
            case Settled(jobs):
                for job, epoch in jobs:
                    self._settle(job, epoch)
            case Numbers(request_no, report_no):
                self.request_no = max(self.request_no, request_no)
                self.report_no = max(self.report_no, report_no)

    def records(self) -> Iterable[Record]:
        """The shortest journal that says the same."""
        yield Numbers(self.request_no, self.report_no)
        yield Granted(self.answered, self.seen, [])
        grants = list(self.grants.values())
        needed = {grant.submission for grant in grants}
        submissions = [s for s in self.submissions.values() if s.id in needed]
        yield from granted(self.answered, self.seen, [], submissions)
        together: dict[int, list[Grant]] = {}
        for grant in grants:
            together.setdefault(self.requests[grant.job], []).append(grant)
        for request_no, part in together.items():
            yield from granted(request_no, self.seen, part, [])
        yield from ended(list(self.ends.values()))

    def _settle(self, job: str, epoch: int) -> None:
        grant = self.grants.get(job)
        if grant is not None and grant.epoch <= epoch:
            del self.grants[job], self.requests[job]
        end = self.ends.get(job)
        # An orphan's outcome is kept: nobody else has it.
        if end is not None and end.epoch <= epoch and not end.orphan:
            del self.ends[job]


def granted(
    request_no: int, seen: tuple[int, int], grants: Sequence[Grant], submissions: list[Submission]
) -> list[Record]:
    """Records for what one reply brought, none of them too long for a spool file."""
    records: list[Record] = [Granted(request_no, seen, [], part) for part in _parts(submissions)]
    records += [Granted(request_no, seen, part) for part in _parts(list(grants))]
    return records


def ended(ends: Sequence[End]) -> list[Record]:
    """Records for these ends."""
    return [Ended(part) for part in _parts(list(ends))]


def encode(records: Iterable[Record]) -> list[bytes]:
    """The records as they stand in the file."""
    return [_encoder.encode(record) for record in records]


def replay(payloads: Iterable[bytes]) -> Recovered:
    """What the records of a journal add up to."""
    recovered = Recovered()
    for payload in payloads:
        recovered.add(_decoder.decode(payload))
    return recovered


def read(path: Path) -> tuple[Recovered, str]:
    """What a journal that nobody writes any more says. Raises OSError.

    The second value says what is damaged, "" if nothing: then what stands before the damage counts.
    """
    try:
        return replay(spool.read(path)), ""
    except spool.SpoolCorrupt as damage:
        return replay(damage.records), damage.message


def _parts(items: list[T]) -> list[list[T]]:
    return [items[at : at + _RECORD_ITEMS] for at in range(0, len(items), _RECORD_ITEMS)]
