"""The one stream that all waits of a client share: nobody polls.

The order is what makes it safe: the stream's position is fixed first, the Jobs' states are read after
that, so an end is either read or streamed, never missed. An Event older than what was read is ignored: it
may tell of the end before an explicit retry. When the Hub was replaced by a backup (410 `cursor_reset`)
the position is lost, so the states are read again from a new one.

The stream lives while somebody waits, and a few seconds longer for the next wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from typing import Any

import msgspec

from chappe.core.errors import ChappeError, Gone
from chappe.core.leases import Outcome
from chappe.core.states import FINAL_PHASES
from chappe.link.http import RETRY, HubClient, RetryPolicy
from chappe.wire.events import Event, EventPage
from chappe.wire.jobs import JobView

_LINGER_S = 5.0

#: A wait outlasts the Hub's absence: nothing but its own time-out ends it.
PATIENT = RetryPolicy(tries=1_000_000, budget_s=366 * 86_400.0)

ReadStates = Callable[[list[str]], Coroutine[Any, Any, list[JobView]]]


class Ended(msgspec.Struct, frozen=True):
    """A Job that reached a final phase. `view` is there when its state was read."""

    id: str
    state: str
    phase: str
    attempt: int
    outcome: Outcome | None = None
    view: JobView | None = None


class _Watch:
    """One wait: the Jobs it still expects, and when each was last known not to have ended."""

    def __init__(self, ids: Iterable[str]) -> None:
        self.pending: dict[str, float] = dict.fromkeys(ids, 0.0)
        # Bounded by `pending`: each Job is put once. An error ends the wait.
        self.queue: asyncio.Queue[Ended | ChappeError] = asyncio.Queue()

    def ended(self, job: Ended, at: float) -> None:
        known = self.pending.get(job.id)
        if known is not None and at >= known:
            del self.pending[job.id]
            self.queue.put_nowait(job)


class Feed:
    """Tells waits which Jobs ended. Lives on one event loop; `read_states` reads Jobs by their ids.

    A Hub that is away when the first wait begins is an error; later it is waited for.
    """

    def __init__(self, hub: HubClient, read_states: ReadStates) -> None:
        self._hub = hub
        self._read_states = read_states
        self._watches: set[_Watch] = set()
        self._stream: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[None] | None = None
        self._linger: asyncio.TimerHandle | None = None

    async def watch(self, ids: Iterable[str]) -> AsyncGenerator[Ended]:
        """Each of the Jobs once, as it ends; those that have ended already come first.

        Raises NotFound when one of them does not exist, and whatever ends the stream for good.
        """
        watch = _Watch(ids)
        left = len(watch.pending)
        self._watches.add(watch)
        try:
            await self._fix_position()
            await self._read(watch)
            while left:
                item = await watch.queue.get()
                if isinstance(item, ChappeError):
                    raise item
                left -= 1
                yield item
        finally:
            self._watches.discard(watch)
            self._rest()

    async def aclose(self) -> None:
        """End the stream."""
        if self._linger is not None:
            self._linger.cancel()
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.cancel()
            await asyncio.wait([stream])

    async def _fix_position(self) -> None:
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        if self._stream is None or self._stream.done():
            self._ready = asyncio.get_running_loop().create_future()
            self._stream = asyncio.create_task(self._follow(self._ready))
        assert self._ready is not None  # noqa: S101 - set wherever a stream is made
        # Shielded: a wait that is given up must not take the others' stream with it.
        await asyncio.shield(self._ready)

    async def _read(self, watch: _Watch) -> None:
        for view in await self._read_states(list(watch.pending)):
            if view.phase in FINAL_PHASES:
                ended = Ended(
                    view.id, view.state, view.phase, view.attempt, view.outcome, view=view
                )
                watch.ended(ended, view.changed_at)
            elif view.id in watch.pending:
                watch.pending[view.id] = view.changed_at

    async def _follow(self, ready: asyncio.Future[None]) -> None:
        """Follow the stream for as long as it takes; what ends it ends the waits too."""
        try:
            cursor = await self._position(RETRY)
            ready.set_result(None)
            while True:
                try:
                    await self._follow_from(cursor)
                except Gone:
                    # The log was replaced by a backup: a new position, then the truth from there.
                    cursor = await self._position(PATIENT)
                    await self._reread()
        except ChappeError as error:
            self._fail(ready, error)

    async def _position(self, retry: RetryPolicy) -> str:
        params = {"cursor": "now"}
        page = await self._hub.request(
            "GET", "/v1/events", reply=EventPage, params=params, retry=retry
        )
        return page.cursor

    async def _follow_from(self, cursor: str) -> None:
        async for _cursor, event in self._hub.stream_events(
            params={"final": 1}, last_event_id=cursor
        ):
            if event.new is not None and event.phase in FINAL_PHASES:
                self._deliver(event, event.new, str(event.phase))

    async def _reread(self) -> None:
        for watch in list(self._watches):
            watch.pending = dict.fromkeys(watch.pending, 0.0)
            await self._read(watch)

    def _deliver(self, event: Event, state: str, phase: str) -> None:
        interested = [w for w in self._watches if event.subject in w.pending]
        if interested:
            ended = Ended(event.subject, state, phase, event.attempt, outcome_of(event))
            for watch in interested:
                watch.ended(ended, event.received_at)

    def _fail(self, ready: asyncio.Future[None], error: ChappeError) -> None:
        if not ready.done():
            ready.set_exception(error)
            ready.exception()  # retrieved: every waiter may have left already
        for watch in self._watches:
            watch.queue.put_nowait(error)

    def _rest(self) -> None:
        if not self._watches and self._stream is not None and self._linger is None:
            loop = asyncio.get_running_loop()
            self._linger = loop.call_later(_LINGER_S, self._stop)

    def _stop(self) -> None:
        self._linger = None
        if self._stream is not None:
            self._stream.cancel()
            self._stream = None


def outcome_of(event: Event) -> Outcome | None:
    """The outcome that an Event which ends an attempt carries; None when it carries none."""
    found = event.data.get("outcome")
    return None if found is None else msgspec.convert(found, Outcome)
