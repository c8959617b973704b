"""The live feed: Events as server-sent events, by cursor.

A commit is only a hint that there is more. Each stream keeps its own position and reads on from there,
up to the committed head, in a worker thread that also encodes. A stream waits for its client (TCP's
back-pressure reaches `send`), so a slow one is behind, and holds one page of memory. A stream that tells
much reads at most every 20 ms, others at once; one that tells ends only is not woken for anything else.
Streams that look for the same from the same position share one read.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
from sqlalchemy import Connection

from chappe.core import limits
from chappe.core.errors import Busy, Gone, Invalid
from chappe.core.rates import Rate
from chappe.store import feed
from chappe.store.feed import EventFilter
from chappe.store.principal import Principal
from chappe.wire.events import cursor_of, parse_cursor

if TYPE_CHECKING:
    from chappe.hub.state import Hub

SPACING_S = 0.02
FEW_PER_S = 150.0
"""A stream that told fewer Events a second, lately, reads at once: somebody may wait for just this one."""
KEEP_ALIVE_S = 15.0
PAGE = 1_000

_encode = msgspec.json.Encoder().encode

#: (project, filter, after, head): what one read answers.
_Read = tuple[int, EventFilter, int, int]
#: (chunk, Events in it, position behind them): the answer.
_Page = tuple[bytes, int, int]


def since(hub: Hub, principal: Principal, cursor: str | None) -> int | None:
    """Like `position`; no cursor means from the first Event that is there (None)."""
    return position(hub, principal, cursor) if cursor else None


def position(hub: Hub, principal: Principal, cursor: str | None) -> int:
    """The seq that a cursor stands for; no cursor means now.

    Raises Gone `cursor_reset` for a cursor of another incarnation, or from beyond the head.
    """
    head = hub.store.head(principal.project_n)
    if cursor is None or cursor in ("", "now"):
        return head
    try:
        incarnation, seq = parse_cursor(cursor)
    except ValueError:
        raise Invalid("a cursor is `now`, or one that the hub gave", field="cursor") from None
    if incarnation != hub.store.incarnation or seq > head:
        raise Gone(
            "the hub was restored from a backup since this cursor was given: read anew from the start",
            code="cursor_reset",
            field="cursor",
        )
    if seq < 0:
        raise Invalid("a cursor is `now`, or one that the hub gave", field="cursor")
    return seq


@dataclass(slots=True, eq=False)
class _Ear:
    """One open stream: the prefix of its token, whether it tells ends only, what wakes it, and whether it
    was told to end."""

    prefix: str
    final: bool
    more: asyncio.Event = field(default_factory=asyncio.Event)
    is_cut: bool = False


class Streams:
    """The open streams, and the reads that they share."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._open: dict[int, set[_Ear]] = {}
        self._count = 0
        self._cuts = 0
        self._reads: dict[_Read, asyncio.Future[_Page]] = {}

    def __len__(self) -> int:
        return self._count

    def hint(self, projects: Iterable[int], ended: Collection[int]) -> None:
        """Projects (row numbers) have new Events, those in `ended` also ends of Jobs."""
        for project in projects:
            for ear in self._open.get(project, ()):
                if not ear.final or project in ended:
                    ear.more.set()

    @contextmanager
    def listen(self, projects: Iterable[int]) -> Iterator[asyncio.Event]:
        """Something that is set whenever one of these projects (row numbers) has new Events."""
        ear = _Ear("", False)
        for project in projects:
            self._open.setdefault(project, set()).add(ear)
        try:
            yield ear.more
        finally:
            for project in projects:
                self._open[project].discard(ear)

    def stop(self) -> None:
        """Wake all streams, so that they see that the Hub stops."""
        for project in self._open.values():
            for ear in project:
                ear.more.set()

    def cut(self, tokens: Collection[str]) -> None:
        """End the streams of these tokens (prefixes): they were revoked, or may mean something else now."""
        self._cuts += 1
        for project in self._open.values():
            for ear in project:
                if ear.prefix in tokens:
                    ear.is_cut = True
                    ear.more.set()

    def open(self, p: Principal, f: EventFilter, cursor: str | None) -> AsyncGenerator[bytes, None]:
        """The chunks of a stream that begins after `cursor` (None: now). Raises Gone or Busy."""
        after = position(self._hub, p, cursor)
        if self._count >= limits.STREAMS:
            raise Busy(f"{limits.STREAMS} streams are open, which is the limit; close some")
        return self._run(p, f, after, self._cuts)

    async def _run(
        self, p: Principal, f: EventFilter, after: int, cuts: int
    ) -> AsyncGenerator[bytes, None]:
        store = self._hub.store
        loop = asyncio.get_running_loop()
        incarnation = store.incarnation
        # If tokens were revoked between `open` and now, this may be one: its client is to ask again.
        ear = _Ear(p.token_prefix, f.final, is_cut=cuts != self._cuts)
        more, rate = ear.more, Rate()
        more.set()
        self._count += 1
        self._open.setdefault(p.project_n, set()).add(ear)
        told, read_at = after, 0.0
        try:
            yield b": ready\n\n"
            while not self._is_over(p, ear) and store.incarnation == incarnation:
                woken = await _within(more, KEEP_ALIVE_S)
                more.clear()
                if store.head(p.project_n) > after:
                    await self._pace(read_at, rate.add(0, loop.time()))
                    read_at, head = loop.time(), store.head(p.project_n)
                    try:
                        chunk, count, after = await self._read(p, f, after, head)
                    except Gone:
                        return  # so slow that it was overtaken by the cut: it asks again, and is told
                    if after < head:
                        more.set()  # a page was not enough
                    if chunk:
                        rate.add(count, read_at)
                        told, woken = after, True
                        yield chunk
                if not woken:
                    # A position without an Event: who reconnects need not have it scanned again.
                    moved = f"id: {cursor_of(incarnation, after)}\n" if after > told else ""
                    told = after
                    yield f": keep-alive\n{moved}\n".encode()
        finally:
            self._count -= 1
            among = self._open[p.project_n]
            among.discard(ear)
            if not among:
                del self._open[p.project_n]

    def _is_over(self, p: Principal, ear: _Ear) -> bool:
        """Whether a stream ends: with the Hub, or with its token (looked at when it wakes, every 15 s)."""
        expired = p.expires_at is not None and p.expires_at <= self._hub.clock()
        return ear.is_cut or expired or self._hub.stopping.is_set()

    async def _pace(self, read_at: float, per_s: float) -> None:
        """Wait until SPACING_S after the last read if there is much to tell, or until the Hub stops."""
        left = read_at + SPACING_S - asyncio.get_running_loop().time()
        if left > 0 and per_s >= FEW_PER_S:
            await _within(self._hub.stopping, left)

    async def _read(self, p: Principal, f: EventFilter, after: int, head: int) -> _Page:
        """Encoded Events; one read for all who ask for the same now."""
        key = (p.project_n, f, after, head)
        shared = self._reads.get(key)
        if shared is None:
            shared = asyncio.ensure_future(
                self._hub.read(_page, p, after, head, f, self._hub.store.incarnation)
            )
            self._hub.metrics.stream_reads.inc()
            self._reads[key] = shared
            shared.add_done_callback(lambda done: self._read_done(key, done))
        # Shielded: a client that leaves must not cancel what others wait for.
        return await asyncio.shield(shared)

    def _read_done(self, key: _Read, done: asyncio.Future[_Page]) -> None:
        del self._reads[key]
        if not done.cancelled():
            done.exception()  # looked at here, because all who waited may have left


async def _within(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True


def _page(
    conn: Connection, p: Principal, after: int, head: int, f: EventFilter, incarnation: int
) -> _Page:
    events, scanned = feed.page(conn, p, after, head, PAGE, f)
    chunk = b"".join(
        b"id: %d:%d\ndata: %b\n\n" % (incarnation, event.seq, _encode(event)) for event in events
    )
    return chunk, len(events), scanned
