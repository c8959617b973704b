"""Messages: what a door answers to each, and how people see them."""

from __future__ import annotations

from typing import Any

import msgspec

from chappe.core.hidden import HidesToken


class Verdict(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """What became of one message.

    `verdict` is `stored` (for the first time), `duplicate` (these very bytes are here already), `conflict`
    (its uid names other bytes: both are kept, this one in quarantine) or `quarantined` (`reason` and
    `message` say why). `n` is its position in the project's journal, or its number in quarantine.
    """

    verdict: str
    uid: str = ""
    n: int = 0
    reason: str = ""
    message: str = ""


class Accepted(msgspec.Struct, frozen=True):
    """All messages of a request are kept; one verdict for each, in their order."""

    verdicts: list[Verdict]


class MessageView(msgspec.Struct, frozen=True, omit_defaults=True):
    """A message of the journal. `at` and `received_at` are seconds since 1970; `at` 0: it does not say.

    `at_ns` is the exact time (nanoseconds, as text: no JSON reader loses digits). `fields` (its payload),
    `marks` and `raw` (its bytes as text) are there when one message is asked for.
    """

    n: int
    uid: str
    producer: str
    type: str
    code: str
    simulation: str
    job: str
    at: float
    received_at: float
    door: str
    source: str
    size_bytes: int
    sha256: str
    stream: str = ""
    seq: int = 0
    at_ns: str = ""
    marks: list[str] = []
    fields: dict[str, Any] = {}
    raw: str = ""


class MessagePage(msgspec.Struct, frozen=True):
    """Messages by position, rising. `cursor` is the last position looked at; None: there is no more now."""

    messages: list[MessageView]
    cursor: int | None = None


class QuarantineView(msgspec.Struct, frozen=True, omit_defaults=True):
    """What no message could be made of. `raw` (as text) is there when one is asked for."""

    n: int
    uid: str
    producer: str
    reason: str
    message: str
    received_at: float
    door: str
    source: str
    size_bytes: int
    sha256: str
    raw: str = ""


class QuarantinePage(msgspec.Struct, frozen=True):
    """What is in quarantine, by number, rising."""

    quarantined: list[QuarantineView]
    cursor: int | None = None


class Requeue(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Decode again what is in quarantine: these numbers, or those of a `reason`, or (neither given) all,
    after the number `after`."""

    numbers: list[int] | None = None
    reason: str | None = None
    after: int = 0


class Requeued(msgspec.Struct, frozen=True):
    """How many were looked at, and what came of them. `cursor`: ask again with this `after`; None: done."""

    tried: int
    stored: int
    duplicate: int
    quarantined: int
    cursor: int | None = None


class SourceStats(msgspec.Struct, frozen=True):
    """One source of messages: received = stored + duplicate + quarantined, always.

    `latency_ms` are the median, the 90th and the 99th percentile of the time from a message's own to the
    door (upper bounds, powers of two); `timed` says of how many that is known.
    """

    door: str
    source: str
    received: int
    stored: int
    duplicate: int
    quarantined: int
    last_at: float
    timed: int
    latency_ms: tuple[float, float, float] | None = None


class MessageStats(msgspec.Struct, frozen=True):
    """All sources of a project, and what waits in quarantine, by reason."""

    sources: list[SourceStats]
    quarantine: dict[str, int]
    messages: int
    last: int


class StreamCheck(msgspec.Struct, frozen=True, omit_defaults=True):
    """One stream of numbered messages, checked.

    `sent` is the highest number that is known, `received` how many of these numbers came, `applied` how many
    of them are in the journal (and so in what is shown), `quarantined` how many are not. `gaps` are ranges
    (first, last) that are missing, the first hundred of them; `missing` counts all. `broken` are numbers of
    messages that name another sha256 for the one before them than it has; `repeated` counts those that came
    under two uids. `head` is the sha256 of the last message.
    """

    stream: str
    producer: str
    sent: int
    received: int
    applied: int
    quarantined: int
    missing: int
    head: str
    simulations: list[str] = []
    gaps: list[tuple[int, int]] = []
    broken: list[int] = []
    repeated: int = 0

    @property
    def whole(self) -> bool:
        """Whether all that was sent is applied, and nothing was changed or put in between."""
        return not (self.missing or self.quarantined or self.broken or self.repeated)


class StreamPage(msgspec.Struct, frozen=True):
    """Streams by name. `unnumbered` counts messages of the simulation that was asked for that are of no
    stream: of these nobody can say whether one is missing. `cursor`: ask again with it; None: that is all."""

    streams: list[StreamCheck]
    unnumbered: int = 0
    cursor: str | None = None


class NewProducer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A producer to be made (or made again): its name, a note for its token, and how long that lives."""

    name: str
    note: str = ""
    expires_in_s: float | None = None


class ProducerView(HidesToken, msgspec.Struct, frozen=True, omit_defaults=True):
    """Who sends messages under a name of its own. `token` is shown once, when it is made."""

    name: str
    created_at: float
    tokens: int = 0
    token: str | None = None


class ProducerList(msgspec.Struct, frozen=True):
    """The project's producers."""

    producers: list[ProducerView]


class Compare(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Hold what is shown of simulations against the journal, after one of them (its simuid). With `correct`,
    put right what differs."""

    after: str = ""
    correct: bool = False


class Difference(msgspec.Struct, frozen=True):
    """What is stored of a simulation otherwise than its messages say: simulation, jobs, facts, latency or
    series; or it is `missing`, or `invented`."""

    simulation: str
    what: list[str]


class Compared(msgspec.Struct, frozen=True):
    """How many simulations and messages were looked at, which differ, and how many messages this version
    cannot read any more. `cursor`: ask again with it as `after`; None: that is all."""

    simulations: int
    messages: int
    unreadable: int
    differing: list[Difference]
    cursor: str | None = None
