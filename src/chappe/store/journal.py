"""The journal: every message as it came, stored once, before anybody is told that it was received.

`accept` takes what doors bring. In one transaction it stores the bytes with their sha256 at the next
positions of the project, puts what no message could be made of in quarantine, counts, and has every
projection apply what is new. So a message that was acknowledged is stored once and applied once: a crash
leaves all of it or nothing, and whoever was not answered sends it again, which is harmless.

Same producer, same uid, same bytes: a duplicate. Same producer, same uid, other bytes: a conflict; the first
stays, the other is in quarantine. Another producer's uids are other messages.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Annotated

import msgspec

from chappe.core import cloudevents, faults, messages
from chappe.core.messages import Message, Undecodable
from chappe.store import series, simulations
from chappe.store.dialect import sql
from chappe.store.tx import Insert, Tx, to_json
from chappe.wire.messages import Verdict

CRASH_POINTS = ("hub.message_stored",)

#: What a project sends itself: by tokens of its people and Sites.
MAIN = 0
CONFLICT = "conflict"
TEXT_CHARS = 200

#: By source: its counters. They are changed together, so that they always add up.
COUNT = sql("""
    INSERT INTO source (project, door, name, received, stored, duplicate, quarantined, last_at)
    VALUES (:project, :door, :name, :received, :stored, :duplicate, :quarantined, :now)
    ON CONFLICT (project, door, name) DO UPDATE SET
        received = source.received + excluded.received, stored = source.stored + excluded.stored,
        duplicate = source.duplicate + excluded.duplicate,
        quarantined = source.quarantined + excluded.quarantined, last_at = excluded.last_at
    RETURNING n""")

TIME = sql("""
    INSERT INTO source_latency (source, bucket, count)
    SELECT v.source, v.bucket, v.count FROM rows(:rows, source int, bucket int, count int) v
    WHERE true
    ON CONFLICT (source, bucket) DO UPDATE SET count = source_latency.count + excluded.count""")

KEEP_CARRIER = sql("""
    INSERT INTO carrier (project, sha256, received_at, body)
    VALUES (:project, :sha256, :received_at, :body)
    ON CONFLICT (project, sha256) DO UPDATE SET sha256 = excluded.sha256 RETURNING n""")

LAST = sql("SELECT COALESCE(max(n), 0) FROM message WHERE project = :project")

KNOWN = sql("""
    SELECT m.uid, m.n, m.sha256 FROM texts(:uids) v
    CROSS JOIN message m ON m.project = :project AND m.producer = :producer AND m.uid = v.value""")

IN_QUARANTINE = sql("""
    SELECT q.sha256, q.n FROM texts(:hashes) v
    CROSS JOIN quarantine q ON
        q.project = :project AND q.producer = :producer AND q.sha256 = v.value""")

QUARANTINE = sql("""
    INSERT INTO quarantine (project, producer, uid, reason, words, received_at, source, carrier,
                            stream, seq, sha256, raw)
    VALUES (:project, :producer, :uid, :reason, :words, :received_at, :source, :carrier, :stream,
            :seq, :sha256, :raw) RETURNING n""")

INSERT_MESSAGES = Insert(
    "message",
    "project n producer uid simulation job code type at_ns received_at source carrier stream seq"
    " sha256 raw",
)


class Carrier(msgspec.Struct, frozen=True):
    """What held several messages, as it came: a mail."""

    raw: bytes


class Item(msgspec.Struct, frozen=True, gc=False):
    """One message's bytes, and what a door made of them: a message, or why not (`undecodable` is the reason
    for programs, `words` for people)."""

    raw: bytes
    message: Message | None = None
    undecodable: str = ""
    words: str = ""
    uid_hint: str = ""


@dataclass(slots=True, frozen=True)
class Arrival:
    """What one door brings at once, of one producer (row number, or MAIN). `source` names where it came from,
    within the door; `received_at` is when (seconds since 1970)."""

    project: int
    producer: int
    door: str
    source: str
    received_at: float
    items: Sequence[Item]
    carrier: Carrier | None = None
    #: The row of a carrier that is kept already.
    carrier_n: int | None = None


def item(raw: bytes, uid_hint: str = "") -> Item:
    """Decode one message. Doors do so on their own thread: the writer's is for writing."""
    try:
        return Item(raw, cloudevents.read(raw), uid_hint=uid_hint)
    except Undecodable as e:
        return Item(raw, None, str(e.reason), e.message, uid_hint)


#: What is made of messages, in the transaction that stores them: called with the project, the producer, new
#: messages of theirs with their positions, rising, and when they were received.
Projection = Callable[[Tx, int, int, Sequence[tuple[int, Message]], float], None]
PROJECTIONS: list[Projection] = [simulations.project, series.project]


@dataclass(slots=True)
class _Taken:
    """An arrival on its way: the verdicts so far, and what of it is new."""

    arrival: Arrival
    verdicts: list[Verdict]
    #: By place in the arrival: the message and its sha256; what is to be put in quarantine, why and in words.
    new: list[tuple[int, Message, str]] = field(default_factory=list)
    bad: list[tuple[int, str, str, str]] = field(default_factory=list)


def accept(tx: Tx, arrival: Arrival) -> list[Verdict]:
    """Store and apply an arrival; a verdict for each item, in their order."""
    return accept_all(tx, [arrival])[0]


def accept_all(tx: Tx, arrivals: Sequence[Arrival]) -> list[list[Verdict]]:
    """The same for several at once, with a few statements for all of them."""
    taken = [_Taken(a, [Verdict("")] * len(a.items)) for a in arrivals]
    order = sorted(taken, key=_whose)
    for (project, producer), group in groupby(order, key=_whose):
        mine = list(group)
        _tell_known(tx, project, producer, mine)
        _tell_quarantined(tx, project, producer, mine)
        stored: list[tuple[int, Message, float]] = []
        for (door, name), same in groupby(sorted(mine, key=_where), key=_where):
            stored += _store(tx, project, producer, door, name, list(same))
        faults.reach("hub.message_stored")
        for received_at, at_once in groupby(stored, key=lambda s: s[2]):
            news = [(n, message) for n, message, _ in at_once]
            for project_onto in PROJECTIONS:
                project_onto(tx, project, producer, news, received_at)
    return [t.verdicts for t in taken]


def _whose(taken: _Taken) -> tuple[int, int]:
    return taken.arrival.project, taken.arrival.producer


def _where(taken: _Taken) -> tuple[str, str]:
    return taken.arrival.door, taken.arrival.source


def _tell_known(tx: Tx, project: int, producer: int, mine: Sequence[_Taken]) -> None:
    """Tell what is new from what is here already, or came twice at once."""
    uids = {i.message.uid for t in mine for i in t.arrival.items if i.message is not None}
    whose = {"project": project, "producer": producer}
    rows = tx.read(KNOWN, uids=to_json(list(uids)), **whose) if uids else ()
    known: dict[str, tuple[int, str]] = {row[0]: (row[1], row[2]) for row in rows}
    for t in mine:
        for place, item in enumerate(t.arrival.items):
            digest = hashlib.sha256(item.raw).hexdigest()
            message = item.message
            if message is None:
                t.bad.append((place, digest, item.undecodable, item.words))
                continue
            uid = message.uid
            before = known.get(uid)
            if before is None:
                known[uid] = (0, digest)
                received_ns = int(t.arrival.received_at * 1e9)
                t.new.append((place, messages.received(message, received_ns), digest))
            elif before[1] == digest:
                t.verdicts[place] = Verdict("duplicate", uid, before[0])
            else:
                words = f"another message has this uid already (number {before[0] or 'beside it'})"
                t.bad.append((place, digest, CONFLICT, words))


def _tell_quarantined(tx: Tx, project: int, producer: int, mine: Sequence[_Taken]) -> None:
    """What is in quarantine already is a duplicate too."""
    hashes = {bad[1] for t in mine for bad in t.bad}
    if not hashes:
        return
    rows = tx.read(IN_QUARANTINE, hashes=to_json(list(hashes)), project=project, producer=producer)
    known = {row.sha256: row.n for row in rows}
    for t in mine:
        fresh = []
        for bad in t.bad:
            place, digest = bad[:2]
            if digest in known:
                uid = _uid_of(t.arrival.items[place])
                t.verdicts[place] = Verdict("duplicate", uid, known[digest])
            else:
                known[digest] = 0
                fresh.append(bad)
        t.bad = fresh


def _uid_of(item: Item) -> str:
    return _text(item.uid_hint if item.message is None else item.message.uid)


def _text(text: str) -> str:
    """What a database's text can hold of it."""
    return text[:TEXT_CHARS].replace("\0", "").encode(errors="replace").decode()


class _Stream(msgspec.Struct, frozen=True):
    """Where in its producer's stream it stands, if that can be read."""

    msgStream: str = ""
    msgSeq: Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)] = 0


def _stream_of(item: Item) -> _Stream:
    if item.message is not None:
        return _Stream(item.message.stream, item.message.seq)
    try:
        return msgspec.json.decode(item.raw, type=_Stream, strict=False)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _Stream()


def _store(
    tx: Tx, project: int, producer: int, door: str, name: str, same: Sequence[_Taken]
) -> Iterator[tuple[int, Message, float]]:
    """Store what is new of one source, and count all of it; the new messages with their positions."""
    received = sum(len(t.arrival.items) for t in same)
    stored, bad = sum(len(t.new) for t in same), sum(len(t.bad) for t in same)
    (row,) = tx.write(
        COUNT,
        project=project,
        door=door,
        name=name,
        received=received,
        stored=stored,
        duplicate=received - stored - bad,
        quarantined=bad,
        now=tx.now,
    )
    source = row.n
    carriers = [_carrier(tx, t) for t in same]
    next_n = tx.catalog.next_message.get(project)
    if next_n is None:
        next_n = tx.read(LAST, project=project)[0][0] + 1
    rows = []
    found: list[tuple[int, Message, float]] = []
    latencies: Counter[int] = Counter()
    for t, carrier in zip(same, carriers, strict=True):
        at, items = t.arrival.received_at, t.arrival.items
        for place, m, digest in t.new:
            t.verdicts[place] = Verdict("stored", m.uid, next_n)
            rows.append(
                (
                    *(project, next_n, producer, m.uid, m.simulation or None, m.job or None),
                    *(m.code, m.type, m.at_ns, at, source, carrier, m.stream or None, m.seq),
                    *(digest, items[place].raw),
                )
            )
            found.append((next_n, m, at))
            if m.at_ns > 0:
                latencies[max(0, int(at * 1000 - m.at_ns / 1_000_000)).bit_length()] += 1
            next_n += 1
        for bad_one in t.bad:
            _quarantine(tx, t, source, carrier, *bad_one)
    tx.insert(INSERT_MESSAGES, rows)
    tx.catalog.next_message[project] = next_n
    tx.write_rows(TIME, [(source, bucket, n) for bucket, n in latencies.items()])
    return iter(found)


def _carrier(tx: Tx, taken: _Taken) -> int | None:
    """The row of what held the messages: kept once, and only for the sake of messages that are."""
    arrival = taken.arrival
    if arrival.carrier is None or not (taken.new or taken.bad):
        return arrival.carrier_n
    body = arrival.carrier.raw
    (row,) = tx.write(
        KEEP_CARRIER,
        project=arrival.project,
        sha256=hashlib.sha256(body).hexdigest(),
        received_at=arrival.received_at,
        body=body,
    )
    return int(row.n)


def _quarantine(
    tx: Tx,
    taken: _Taken,
    source: int,
    carrier: int | None,
    place: int,
    digest: str,
    reason: str,
    words: str,
) -> None:
    arrival, item = taken.arrival, taken.arrival.items[place]
    uid, stream = _uid_of(item), _stream_of(item)
    (row,) = tx.write(
        QUARANTINE,
        project=arrival.project,
        producer=arrival.producer,
        uid=uid,
        reason=reason,
        words=words.replace("\0", ""),
        received_at=arrival.received_at,
        source=source,
        carrier=carrier,
        stream=_text(stream.msgStream) or None,
        seq=stream.msgSeq,
        sha256=digest,
        raw=item.raw,
    )
    verdict = CONFLICT if reason == CONFLICT else "quarantined"
    taken.verdicts[place] = Verdict(verdict, uid, row.n, reason, words)
