"""The book of BatchJobs: what the agent has promised, asked for and learned, safe from crashes.

Entries go to an append-only crc'd file before the agent acts on them, and `Batch` is the fold of the
entries of one BatchJob. The file is small, and is written anew when most of it is about BatchJobs that
are over and reported.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import structlog

from chappe.link.spool import SpoolCorrupt, SpoolWriter, read, set_aside
from chappe.site.memory import Decided, Memory, NodeSeen, Told
from chappe.site.schedulers.base import OVER, Phase
from chappe.wire.sites import BatchJobIntent

log = structlog.get_logger()

_COMPACT_BYTES = 256 * 1024
OVER_MOST = 2_000
"""BatchJobs whose end is remembered, for a Hub that asks for them again because it has lost its past."""


class Wanted(msgspec.Struct, frozen=True, tag="wanted"):
    """A BatchJob was taken up. `kept`: we made it ourselves (`site.elastic`); with `idle_s` it ends when
    it was idle for so long. `instead_of` is a BatchJob that must be over before this one is submitted.
    `refused`: why it never will be; then `intent` is not what was asked for."""

    id: str
    intent: BatchJobIntent
    session: str
    kept: bool
    at: float
    idle_s: float | None = None
    instead_of: str | None = None
    refused: str = ""


class Registered(msgspec.Struct, frozen=True, tag="registered"):
    """The Hub knows the BatchJob and its Session, and the files in the Session's directory are written."""

    id: str


class Unknown(msgspec.Struct, frozen=True, tag="unknown"):
    """The Hub, restored from a backup, does not know it any more: it is to be registered again."""

    id: str


class Intended(msgspec.Struct, frozen=True, tag="intended"):
    """The scheduler is about to be asked: from here on it may have the job. `wall_s` is the limit that it is
    asked for (0: none); None when nobody knows any more."""

    id: str
    wall_s: float | None = None


class Submitted(msgspec.Struct, frozen=True, tag="submitted"):
    """The scheduler has the job."""

    id: str
    scheduler_id: str


class CancelAsked(msgspec.Struct, frozen=True, tag="cancel"):
    """The Hub wants it ended; or, `if_waiting`, we take it back, unless it has begun."""

    id: str
    if_waiting: bool = False


class Spared(msgspec.Struct, frozen=True, tag="spared"):
    """It was to be taken back, and has begun before."""

    id: str


class Said(msgspec.Struct, frozen=True, tag="said"):
    """What the scheduler said, when it changed. An end is proof."""

    id: str
    phase: Phase
    message: str
    at: float
    too_wide: bool = False


class Buried(msgspec.Struct, frozen=True, tag="buried"):
    """All that the dead pilot had to say has been said."""

    id: str


class Accepted(msgspec.Struct, frozen=True, tag="accepted"):
    """The Hub has taken the report of this state."""

    id: str
    state: str


class Forgotten(msgspec.Struct, frozen=True, tag="forgotten"):
    """Nothing is left to do: it is over, and its end was taken note of."""

    id: str
    state: str = "ended"


Entry = (
    Wanted
    | Registered
    | Unknown
    | Intended
    | Submitted
    | CancelAsked
    | Spared
    | Said
    | Buried
    | Accepted
    | Forgotten
    | Decided
    | Told
    | NodeSeen
    | Memory
)

_encode = msgspec.json.Encoder().encode
_decoder: msgspec.json.Decoder[Entry] = msgspec.json.Decoder(Entry)


@dataclass
class Batch:
    """One BatchJob, as the entries tell it. Times are seconds since 1970."""

    wanted: Wanted
    registered: bool = False
    intended: bool = False
    asked_wall_s: float | None = None
    scheduler_id: str | None = None
    cancel: bool = False
    if_waiting: bool = False
    phase: Phase = Phase.UNKNOWN
    message: str = ""
    too_wide: bool = False
    running_at: float | None = None
    buried: bool = False
    accepted: str = "requested"
    entries: list[Entry] = field(default_factory=list)

    @property
    def id(self) -> str:
        """The BatchJob's id."""
        return self.wanted.id

    @property
    def name(self) -> str:
        """What the scheduler knows it by."""
        return f"chappe-{self.id}"

    @property
    def session(self) -> str:
        """Its Session's id."""
        return self.wanted.session

    @property
    def over(self) -> bool:
        """Whether nothing of it runs or ever will."""
        return self.phase in OVER

    @property
    def watched(self) -> bool:
        """Whether the scheduler has it and has not said that it ended."""
        return self.scheduler_id is not None and not self.over

    @property
    def state(self) -> str:
        """Its state for the Hub: an end only when the dead pilot's word has been passed on."""
        if self.over:
            return str(self.phase) if self.buried else self.accepted
        if self.phase is Phase.RUNNING:
            return "running"
        return "submitted" if self.scheduler_id is not None else "requested"

    def apply(self, entry: Entry) -> None:
        """Take one more entry into account."""
        self.entries.append(entry)
        match entry:
            case Wanted(refused=why) if why:
                self.phase, self.message = Phase.FAILED, why
            case Registered():
                self.registered = True
            case Unknown():
                self.registered, self.accepted = False, "requested"
                # However often it happens: what it undoes need not be written down any more.
                undone = (Registered, Accepted, Unknown)
                self.entries = [e for e in self.entries if not isinstance(e, undone)]
            case Intended():
                self.intended, self.asked_wall_s = True, entry.wall_s
            case Submitted():
                self.scheduler_id = entry.scheduler_id
            case CancelAsked():
                # Who takes back ends less than who cancels.
                self.if_waiting = entry.if_waiting and (self.if_waiting or not self.cancel)
                self.cancel = True
            case Spared():
                self.cancel = self.if_waiting = False
            case Said():
                self.phase, self.message = entry.phase, entry.message
                self.too_wide = entry.too_wide
                if self.phase is Phase.RUNNING:
                    self.running_at = entry.at
            case Buried():
                self.buried = True
            case Accepted():
                self.accepted = entry.state
            case _:
                pass


class Pages:
    """What the entries come to: `batches` by id, oldest first, the states of the last that are `over` and
    forgotten, and the `memory` of what was learned."""

    def __init__(self) -> None:
        self.batches: dict[str, Batch] = {}
        self.over: dict[str, str] = {}
        self.memory = Memory()

    def apply(self, entry: Entry) -> None:
        """Take one more entry into account."""
        if isinstance(entry, Wanted):
            self.batches.setdefault(entry.id, Batch(entry)).apply(entry)
        elif isinstance(entry, Forgotten):
            self.batches.pop(entry.id, None)
            self.over[entry.id] = entry.state
            while len(self.over) > OVER_MOST:
                del self.over[next(iter(self.over))]
        elif isinstance(entry, Decided):
            self.memory.decided(entry.decision)
        elif isinstance(entry, Told):
            self.memory.told(entry.no)
        elif isinstance(entry, NodeSeen):
            self.memory.node = entry.node
        elif isinstance(entry, Memory):
            self.memory = entry
        elif entry.id in self.batches:
            batch = self.batches[entry.id]
            if isinstance(entry, Said):
                self._learn(batch, entry)
            batch.apply(entry)

    def _learn(self, batch: Batch, said: Said) -> None:
        """How long it waited, when it begins; what it cost, when it ends."""
        intent = batch.wanted.intent
        if said.phase is Phase.RUNNING and batch.running_at is None:
            waited_s = said.at - batch.wanted.at
            queue, nodes = intent.queue, intent.nodes
            self.memory.waits = self.memory.waits.learned(queue, nodes, intent.wall_s, waited_s)
        elif said.phase in OVER and not batch.over and batch.running_at is not None:
            ran_s = max(0.0, said.at - batch.running_at)
            self.memory.ended(said.at, intent.account, intent.nodes * ran_s)


def read_book(path: Path) -> Pages:
    """What the book says, whoever has it open; nothing, when there is none. Raises SpoolCorrupt, OSError."""
    pages = Pages()
    for record in read(path) if path.exists() else []:
        pages.apply(_decoder.decode(record))
    return pages


class Book(Pages):
    """The open book. Used from one task at a time."""

    def __init__(self, path: Path) -> None:
        """Open or create. What a corrupt file still says is kept; the file is set aside.

        Raises OSError, SpoolFull.
        """
        super().__init__()
        self._compacted = 0
        try:
            self._spool = SpoolWriter(path)
            found = self._spool.recovered
        except SpoolCorrupt as e:
            aside = set_aside(path)
            log.critical("the book of batch jobs is damaged and was set aside", file=str(aside))
            self._spool = SpoolWriter(path)
            self._spool.append(e.records, sync=True)
            found = e.records
        for record in found:
            self.apply(_decoder.decode(record))
        if found is not self._spool.recovered:
            # What is lost may be that the scheduler was called: it is asked before it is called again.
            doubtful = [b for b in self.batches.values() if b.registered and not b.intended]
            self.add(*(Intended(b.id) for b in doubtful))
        self._compact()

    def add(self, *entries: Entry) -> None:
        """Write entries, durably, then apply them. Raises OSError, SpoolFull: then nothing changed."""
        self._spool.append([_encode(entry) for entry in entries], sync=True)
        for entry in entries:
            self.apply(entry)
        if self._spool.size > max(_COMPACT_BYTES, 2 * self._compacted):
            self._compact()

    def close(self) -> None:
        """Close the file."""
        self._spool.close()

    def _compact(self) -> None:
        over: list[Entry] = [Forgotten(id, state) for id, state in self.over.items()]
        open_: list[Entry] = [e for b in self.batches.values() for e in b.entries]
        # The memory comes last: what it holds of those before it was learned already.
        self._spool.rewrite([_encode(entry) for entry in [*over, *open_, self.memory]])
        self._compacted = self._spool.size
