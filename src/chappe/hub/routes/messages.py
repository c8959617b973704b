"""Messages: the HTTPS door into the journal, and reading what is there."""

from __future__ import annotations

from typing import Annotated

import msgspec

from chappe.core import limits
from chappe.hub.call import Call
from chappe.ingest import body, mail
from chappe.ingest.sources import arrivals
from chappe.store import messages as store
from chappe.store import producers, rebuild, streams
from chappe.store import requeue as again
from chappe.store.journal import MAIN, Arrival
from chappe.store.messages import MessageFilter
from chappe.store.owners import Owner
from chappe.wire.messages import (
    Accepted,
    Compare,
    Compared,
    Difference,
    MessagePage,
    MessageStats,
    MessageView,
    NewProducer,
    ProducerList,
    ProducerView,
    QuarantinePage,
    QuarantineView,
    Requeue,
    Requeued,
    StreamPage,
    Verdict,
)

#: A body up to this is decoded at once: a way to another thread and back costs as much.
AT_ONCE_BYTES = 4 * limits.KIB

Limit = Annotated[int, msgspec.Meta(ge=1, le=limits.PAGE_MAX)]
Position = Annotated[int, msgspec.Meta(ge=0)]


class MessagesQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which messages; all conditions must hold. By position, rising from after `cursor`; with `newest`
    falling from before it."""

    simulation: str | None = None
    job: str | None = None
    type: str | None = None
    code: str | None = None
    producer: str | None = None
    cursor: Position | None = None
    newest: bool = False
    limit: Limit = limits.PAGE_DEFAULT


class MessageQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of which producer: `main` for the project's own."""

    producer: str | None = None


class StreamsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Those that messages of a simulation are of; `cursor` is that of the page before."""

    simulation: str | None = None
    cursor: str = ""


class QuarantineQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was put there for a `reason`; by number, from after `cursor`."""

    reason: str | None = None
    cursor: Position = 0
    limit: Limit = limits.PAGE_DEFAULT


async def receive(call: Call[bytes, None]) -> Accepted:
    """Store messages, and apply them, before answering; each gets a verdict.

    The body is one JSON object, a list of them, lines (`application/x-ndjson`), or CloudEvents (structured or
    batched), perhaps gzipped (`Content-Encoding: gzip`); or a mail (`message/rfc822`). Sending the same again
    is harmless. What cannot be read is kept too, in quarantine.
    """
    p, headers = call.principal, call.headers
    producer = MAIN if p.producer_n is None else p.producer_n
    kinds = headers.get("content-type", ""), headers.get("content-encoding", "")
    if body.is_mail(kinds[0]):
        return await _receive_mail(call, Owner(p.project_n, producer))
    if len(call.body) <= AT_ONCE_BYTES and not kinds[1]:
        items = body.items(call.body, *kinds)
    else:
        items = await call.hub.prepare(body.items, call.body, *kinds)
    # A Site's token is its agent's, which brings spools on; but its simulations may use it, too.
    direct = headers.get("user-agent", "").startswith("chappe-emit/")
    door = "spool" if p.scope == "site" and not direct else "https"
    arrival = Arrival(p.project_n, producer, door, p.name, 0.0, items)
    return Accepted(await call.hub.intake.take(arrival))


async def _receive_mail(call: Call[bytes, None], owner: Owner) -> Accepted:
    """A mail that somebody sends as it came: its messages are theirs, whoever signed it."""
    letter = await call.hub.prepare(mail.parse, call.body)
    verdicts: list[Verdict] = []
    for arrival in arrivals(call.body, letter.items, owner, "import", call.principal.name):
        verdicts += await call.hub.intake.take(arrival)
    return Accepted(verdicts)


async def index(call: Call[None, MessagesQuery]) -> MessagePage:
    """List messages by their position in the journal."""
    q = call.query
    wanted = MessageFilter(q.simulation, q.job, q.type, q.code, q.producer)
    return await call.hub.read(store.page, call.principal, wanted, q.cursor, q.newest, q.limit)


async def show(call: Call[None, MessageQuery]) -> MessageView:
    """Show one message, with its bytes as text."""
    return await call.hub.read(store.one, call.principal, call.path["uid"], call.query.producer)


async def stats(call: Call[None, None]) -> MessageStats:
    """Show what each source counted: received = stored + duplicate + quarantined."""
    return await call.hub.read(store.stats, call.principal)


async def check_streams(call: Call[None, StreamsQuery]) -> StreamPage:
    """Check streams of numbered messages: what is missing, was changed, or was put in between."""
    return await call.hub.read(
        streams.check, call.principal, call.query.simulation, call.query.cursor
    )


async def quarantine(call: Call[None, QuarantineQuery]) -> QuarantinePage:
    """List what no message could be made of, and why."""
    q = call.query
    return await call.hub.read(store.quarantine, call.principal, q.reason, q.cursor, q.limit)


async def show_quarantined(call: Call[None, None]) -> QuarantineView:
    """Show one of those, with its bytes as text."""
    return await call.hub.read(store.one_quarantined, call.principal, call.path["n"])


async def requeue(call: Call[Requeue, None]) -> Requeued:
    """Decode again some of what is in quarantine. Ask again with `cursor` as `after` until there is none."""
    return await call.hub.write(again.requeue, call.actor, call.body, bulk=True)


async def compare(call: Call[Compare, None]) -> Compared:
    """Fold the messages of some simulations anew, and hold the result against what is shown of them.

    With `correct` what differs is put right, beside whatever comes meanwhile. Ask again with `cursor` as
    `after` until there is none.
    """
    hub, actor = call.hub, call.actor
    found = await hub.read(rebuild.compare, actor.project_n, call.body.after)
    if call.body.correct:
        for refold in found.differing:
            await hub.write(rebuild.correct, actor, refold, bulk=True)
    differing = [Difference(r.entry.key[2], list(r.differs)) for r in found.differing]
    return Compared(found.simulations, found.messages, found.unreadable, differing, found.cursor)


async def list_producers(call: Call[None, None]) -> ProducerList:
    """List the project's producers of messages."""
    return await call.hub.read(producers.listed, call.principal, call.hub.clock())


async def add_producer(call: Call[NewProducer, None]) -> ProducerView:
    """Make a producer and a token for it, shown this once; for one that is there, a further token."""
    return await call.hub.write(producers.add, call.actor, call.body)


async def remove_producer(call: Call[None, None]) -> None:
    """Remove a producer: its tokens end at once, its messages stay."""
    await call.hub.write(producers.remove, call.actor, call.path["name"])
