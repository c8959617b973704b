"""The shared stream: no end is missed, no stale one is believed, and one stream serves all waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, cast

import pytest

from chappe.core.errors import Forbidden, Gone, Unavailable
from chappe.core.states import PHASE, State
from chappe.link.http import HubClient
from chappe.sdk.feed import Ended, Feed
from chappe.wire.events import Event, EventPage
from chappe.wire.jobs import JobView


class FakeHub:
    """A Hub whose Jobs and Events the test sets; it counts the streams that were opened."""

    def __init__(self) -> None:
        self.jobs: dict[str, tuple[State, float]] = {}
        self.positions = 0
        self.streams = 0
        self.refusal: Exception | None = None
        self.open = 0
        self._queue: asyncio.Queue[Event | Exception] = asyncio.Queue()
        self.before_read: Callable[[], None] = lambda: None

    def change(self, job: str, state: State, at: float, *, announce: bool = True) -> None:
        self.jobs[job] = state, at
        if announce:
            self.say(job, state, at)

    def say(self, job: str, state: State, at: float) -> None:
        outcome = {"outcome": {"reason": "exit", "exit": 0}}
        self._queue.put_nowait(
            Event(1, "job", job, at, at, None, state, PHASE[state], 1, 1, outcome)
        )

    def fail(self, error: Exception) -> None:
        self._queue.put_nowait(error)

    async def request(self, method: str, path: str, **options: Any) -> EventPage:
        assert (method, path, options["params"]) == ("GET", "/v1/events", {"cursor": "now"})
        self.positions += 1
        if self.refusal is not None:
            raise self.refusal
        return EventPage([], f"1:{self.positions}")

    async def stream_events(
        self, *, params: dict[str, Any], last_event_id: str
    ) -> AsyncIterator[tuple[str, Event]]:
        assert params == {"final": 1}
        assert last_event_id == f"1:{self.positions}"
        self.streams += 1
        self.open += 1
        try:
            while True:
                item = await self._queue.get()
                if isinstance(item, Exception):
                    raise item
                yield "1:1", item
        finally:
            self.open -= 1

    async def read(self, ids: list[str]) -> list[JobView]:
        assert self.positions, "the position must be fixed before states are read"
        self.before_read()
        return [
            JobView(i, "", str(s), str(PHASE[s]), [], 0.0, at)
            for i in ids
            for s, at in [self.jobs[i]]
        ]


@pytest.fixture
def hub() -> FakeHub:
    return FakeHub()


@pytest.fixture
async def feed(hub: FakeHub) -> AsyncIterator[Feed]:
    made = Feed(cast(HubClient, hub), hub.read)
    yield made
    await made.aclose()
    assert hub.open == 0


async def ends(feed: Feed, *ids: str) -> list[Ended]:
    async with asyncio.timeout(10), aclosing(feed.watch(ids)) as watch:
        return [ended async for ended in watch]


async def settle() -> None:
    """Let all that can run now run."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_what_has_ended_already_is_read(hub: FakeHub, feed: Feed) -> None:
    hub.change("a", State.FAILED, 5.0, announce=False)
    (ended,) = await ends(feed, "a")
    assert (ended.state, ended.phase) == ("FAILED", "failed")
    assert ended.view is not None


async def test_an_end_between_position_and_read_is_told_once(hub: FakeHub, feed: Feed) -> None:
    hub.change("a", State.RUNNING, 1.0, announce=False)
    hub.before_read = lambda: hub.change("a", State.JOB_FINISHED, 2.0)
    assert [e.state for e in await ends(feed, "a")] == ["JOB_FINISHED"]


async def test_an_end_after_the_read_comes_by_the_stream(hub: FakeHub, feed: Feed) -> None:
    hub.change("a", State.RUNNING, 1.0, announce=False)
    wait = asyncio.create_task(ends(feed, "a"))
    await settle()
    hub.change("a", State.JOB_FINISHED, 2.0)
    (ended,) = await wait
    assert ended.outcome is not None
    assert ended.outcome.ok


async def test_the_end_before_an_explicit_retry_is_not_believed(hub: FakeHub, feed: Feed) -> None:
    hub.change("a", State.RESTART_READY, 3.0, announce=False)
    wait = asyncio.create_task(ends(feed, "a"))
    await settle()
    hub.say("a", State.FAILED, 2.0)
    await settle()
    assert not wait.done()
    hub.change("a", State.JOB_FINISHED, 4.0)
    assert [e.state for e in await wait] == ["JOB_FINISHED"]


async def test_one_stream_serves_all_waits(hub: FakeHub, feed: Feed) -> None:
    for job in "abc":
        hub.change(job, State.RUNNING, 1.0, announce=False)
    waits = [asyncio.create_task(ends(feed, *jobs)) for jobs in ("ab", "bc", "c")]
    await settle()
    for job in "cab":
        hub.change(job, State.JOB_FINISHED, 2.0)
    told = [[e.id for e in await wait] for wait in waits]
    assert told == [["a", "b"], ["c", "b"], ["c"]]
    assert hub.streams == 1


async def test_a_wait_that_is_given_up_leaves_the_others_alone(hub: FakeHub, feed: Feed) -> None:
    hub.change("a", State.RUNNING, 1.0, announce=False)
    first, second = (asyncio.create_task(ends(feed, "a")) for _ in range(2))
    await settle()
    first.cancel()
    await settle()
    hub.change("a", State.JOB_FINISHED, 2.0)
    assert len(await second) == 1
    assert first.cancelled()


async def test_after_a_restored_backup_the_states_are_read_again(hub: FakeHub, feed: Feed) -> None:
    read_at: list[int] = []
    for job in "ab":
        hub.change(job, State.RUNNING, 9.0, announce=False)
    wait = asyncio.create_task(ends(feed, "a", "b"))
    await settle()
    # In the backup a had ended, at a time before the one that was read. The new
    # position must be fixed before the states are read anew.
    hub.change("a", State.FAILED, 5.0, announce=False)
    positions = hub.positions
    hub.before_read = lambda: read_at.append(hub.positions)
    hub.fail(Gone("the cursor is of an older incarnation", code="cursor_reset"))
    await settle()
    assert read_at == [positions + 1]
    hub.change("b", State.JOB_FINISHED, 10.0)
    assert [(e.id, e.state) for e in await wait] == [("a", "FAILED"), ("b", "JOB_FINISHED")]
    assert hub.streams == 2


async def test_what_ends_the_stream_for_good_ends_the_waits(hub: FakeHub, feed: Feed) -> None:
    hub.change("a", State.RUNNING, 1.0, announce=False)
    waits = [asyncio.create_task(ends(feed, "a")) for _ in range(2)]
    await settle()
    hub.fail(Forbidden("the token was revoked"))
    for wait in waits:
        with pytest.raises(Forbidden, match="revoked"):
            await wait
    hub.change("a", State.JOB_FINISHED, 2.0, announce=False)
    assert len(await ends(feed, "a")) == 1, "a later wait starts a new stream"


async def test_a_hub_that_is_away_at_the_start_is_an_error(hub: FakeHub, feed: Feed) -> None:
    hub.change("a", State.RUNNING, 1.0, announce=False)
    hub.refusal = Unavailable("refused")
    waits = [asyncio.create_task(ends(feed, "a")) for _ in range(2)]
    for wait in waits:
        with pytest.raises(Unavailable):
            await wait
