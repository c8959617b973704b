"""The one stream that all waits of a client share: nobody polls.

The order is what makes it safe. Of a Job that this client has just created, nothing is read: the stream
begins at the feed's position before the Job's own Events. For any other, the stream's position is fixed
first and the Job's state is read after that, so an end is either read or streamed, never missed.

Success is for good. A failure or a cancellation may have been followed by an explicit retry, of which the
stream says nothing; so an Event older than what was read is ignored, and where nothing was read yet, the
state is. When the Hub was replaced by a backup (410 `cursor_reset`), or has cut the log beyond
it (410 `cursor_too_old`), the position is lost, and all states are read from a new one.

The stream lives while somebody waits, and a few seconds longer for the next wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Mapping
from typing import Any

import msgspec

from chappe.core.errors import ChappeError, Gone, NotFound
from chappe.core.leases import Outcome
from chappe.core.states import FINAL_PHASES, Phase
from chappe.link.http import RETRY, HubClient, RetryPolicy
from chappe.wire.events import Event, EventPage, cursor_of, parse_cursor
from chappe.wire.jobs import JobView

_LINGER_S = 5.0
#: So many Events back, for a wait and for each of its Jobs, the stream may begin: beyond that, to read the
#: states costs less than to hear of the others' ends (30 µs a Job, 10 µs an end, one Event in four).
_BACK = 1_000
_BACK_PER_JOB = 10
#: So many Jobs are worth a new stream when one that nobody needed any more has passed their Events.
_RESTART = 100

#: A wait outlasts the Hub's absence: nothing but its own time-out ends it.
PATIENT = RetryPolicy(tries=1_000_000, budget_s=366 * 86_400.0)

#: Reads Jobs by their ids; those that do not exist are left out.
ReadStates = Callable[[list[str]], Coroutine[Any, Any, list[JobView]]]


#: (incarnation, seq): a cursor of the feed, to be compared.
Position = tuple[int, int]


class Ended(msgspec.Struct, frozen=True):
    """A Job that reached a final phase. `view` is there when its state was read."""

    id: str
    state: str
    phase: str
    attempt: int
    outcome: Outcome | None = None
    view: JobView | None = None


class _Watch:
    """One wait: what it still expects, and what it has to tell."""

    def __init__(self, jobs: Mapping[str, Position | None]) -> None:
        #: When each Job was last known not to have ended; None while nothing is known.
        self.pending: dict[str, float | None] = dict.fromkeys(jobs)
        #: Where the Events of its Jobs begin: few, since many are created at once.
        self.begins = {one for one in set(jobs.values()) if one is not None}
        # All three are bounded by `pending`: each Job ends once.
        self.ready: list[Ended] = []
        self.doubts: dict[str, Ended] = {}
        self.error: ChappeError | None = None
        self.news = asyncio.Event()

    def fail(self, error: ChappeError) -> None:
        self.error = error
        self.news.set()


class Feed:
    """Tells waits which Jobs ended. Lives on one event loop.

    A Hub that is away when the first wait begins is an error; later it is waited for.
    """

    def __init__(self, hub: HubClient, read_states: ReadStates) -> None:
        self._hub = hub
        self._read_states = read_states
        self._watches: set[_Watch] = set()
        #: Who waits for a Job: an Event costs the same however many wait for others.
        self._by_job: dict[str, list[_Watch]] = {}
        self._stream: asyncio.Task[None] | None = None
        #: Up to where ends were told; None until that is known.
        self._at: Position | None = None
        #: Where the stream began, once it has.
        self._ready: asyncio.Future[Position] | None = None
        self._linger: asyncio.TimerHandle | None = None

    async def watch(self, jobs: Mapping[str, Position | None]) -> AsyncGenerator[list[Ended]]:
        """Each of the Jobs once, as it ends, some at a time; those that have ended already come first.

        `jobs` says where the Events of a Job begin; None when this client did not create it.
        Raises NotFound when one of those does not exist, and whatever ends the stream for good.
        """
        watch = _Watch(jobs)
        left = len(watch.pending)
        self._enter(watch)
        try:
            at = await self._begin(watch)
            ahead = {one for one in watch.begins if _ahead(one, at)}
            missing = await self._read(watch, [job for job in jobs if jobs[job] not in ahead])
            if missing:
                raise not_found(missing)
            while left:
                if watch.ready:
                    some, watch.ready = watch.ready, []
                    left -= len(some)
                    yield some
                elif watch.doubts:
                    await self._settle(watch)
                elif watch.error is not None:
                    raise watch.error
                else:
                    watch.news.clear()
                    await watch.news.wait()
        finally:
            self._leave(watch)

    async def aclose(self) -> None:
        """End the stream."""
        if self._linger is not None:
            self._linger.cancel()
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.cancel()
            await asyncio.wait([stream])

    # --- the stream

    async def _begin(self, watch: _Watch) -> Position:
        """Have the stream run; returns the position from where on all ends will be told."""
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
            passed = any(self._at is None or not _ahead(one, self._at) for one in watch.begins)
            if passed and len(watch.pending) >= _RESTART:
                self._stop()
        if self._stream is None or self._stream.done():
            self._at = None
            self._ready = asyncio.get_running_loop().create_future()
            self._stream = asyncio.create_task(self._follow(self._ready))
        at = self._at
        assert self._ready is not None  # noqa: S101 - set wherever a stream is made
        # Shielded: a wait that is given up must not take the others' stream with it.
        began = await asyncio.shield(self._ready)
        return began if at is None else at

    async def _follow(self, ready: asyncio.Future[Position]) -> None:
        """Follow the stream for as long as it takes; what ends it ends the waits too."""
        try:
            at = self._at = _start(self._watches, await self._position(RETRY))
            ready.set_result(at)
            while True:
                try:
                    await self._follow_from(at)
                except Gone:
                    # The log was replaced or cut: a new position, then the truth from there.
                    self._at = at = await self._position(PATIENT)
                    await self._reread()
        except ChappeError as error:
            self._fail(ready, error)

    async def _position(self, retry: RetryPolicy) -> Position:
        params = {"cursor": "now"}
        page = await self._hub.request(
            "GET", "/v1/events", reply=EventPage, params=params, retry=retry
        )
        return parse_cursor(page.cursor)

    async def _follow_from(self, at: Position) -> None:
        incarnation = at[0]
        async for _cursor, event in self._hub.stream_events(
            params={"final": 1}, last_event_id=cursor_of(*at)
        ):
            self._at = incarnation, event.seq
            watches = self._by_job.get(event.subject)
            if watches is not None and event.new is not None and event.phase in FINAL_PHASES:
                ended = Ended(
                    event.subject, event.new, event.phase, event.attempt, outcome_of(event)
                )
                for watch in tuple(watches):
                    self._told(watch, ended, event.received_at)

    def _fail(self, ready: asyncio.Future[Position], error: ChappeError) -> None:
        if not ready.done():
            ready.set_exception(error)
            ready.exception()  # retrieved: every waiter may have left already
        for watch in self._watches:
            watch.fail(error)

    # --- what the waits learn

    def _told(self, watch: _Watch, ended: Ended, at: float) -> None:
        """The stream tells of an end at `at`: believe it, doubt it, or know better."""
        known = watch.pending[ended.id]
        if known is None and ended.phase != Phase.FINISHED:
            watch.pending[ended.id] = at
            watch.doubts[ended.id] = ended
            watch.news.set()
        elif known is None or at >= known:
            self._end(watch, ended)

    def _end(self, watch: _Watch, ended: Ended) -> None:
        del watch.pending[ended.id]
        self._forget(watch, ended.id)
        watch.ready.append(ended)
        watch.news.set()

    async def _read(self, watch: _Watch, ids: list[str]) -> list[str]:
        """Learn the states of Jobs that are still expected; returns those that do not exist."""
        views = await self._read_states(ids) if ids else []
        for view in views:
            if view.id not in watch.pending:
                continue  # its end was told meanwhile
            if view.phase in FINAL_PHASES:
                ended = Ended(view.id, view.state, view.phase, view.attempt, view.outcome, view)
                self._end(watch, ended)
            else:
                watch.pending[view.id] = view.changed_at
        found = {view.id for view in views}
        return [job for job in ids if job in watch.pending and job not in found]

    async def _settle(self, watch: _Watch) -> None:
        """Read whether ends that were told are still so."""
        doubts, watch.doubts = watch.doubts, {}
        for job in await self._read(watch, [job for job in doubts if job in watch.pending]):
            self._end(watch, doubts[job])  # deleted since: it did not go on

    async def _reread(self) -> None:
        for watch in list(self._watches):
            missing = await self._read(watch, list(watch.pending))
            if missing:
                watch.fail(not_found(missing))

    # --- who waits

    def _enter(self, watch: _Watch) -> None:
        self._watches.add(watch)
        for job in watch.pending:
            self._by_job.setdefault(job, []).append(watch)

    def _leave(self, watch: _Watch) -> None:
        self._watches.discard(watch)
        for job in watch.pending:
            self._forget(watch, job)
        if not self._watches and self._stream is not None and self._linger is None:
            loop = asyncio.get_running_loop()
            self._linger = loop.call_later(_LINGER_S, self._stop)

    def _forget(self, watch: _Watch, job: str) -> None:
        watches = self._by_job[job]
        watches.remove(watch)
        if not watches:
            del self._by_job[job]

    def _stop(self) -> None:
        self._linger = None
        if self._stream is not None:
            self._stream.cancel()
            self._stream = None


def _start(watches: Iterable[_Watch], now: Position) -> Position:
    """Where a stream best begins for these waits: as far back as some Job's Events, and as pays; or now."""
    jobs = sum(len(watch.pending) for watch in watches)
    back = now[0], now[1] - _BACK - _BACK_PER_JOB * jobs
    return min((b for w in watches for b in w.begins if _ahead(b, back)), default=now)


def _ahead(one: Position, at: Position) -> bool:
    """Whether a stream at `at` has not passed `one` yet, and will."""
    return one[0] == at[0] and one[1] >= at[1]


def not_found(missing: Iterable[str]) -> NotFound:
    """The error that names one of the Jobs that do not exist."""
    return NotFound(f"there is no job {min(missing)} (it may have been deleted)")


def outcome_of(event: Event) -> Outcome | None:
    """The outcome that an Event which ends an attempt carries; None when it carries none."""
    found = event.data.get("outcome")
    return None if found is None else msgspec.convert(found, Outcome)
