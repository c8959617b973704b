"""The shared stream: no end is missed, no stale one is believed, and one stream serves all waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, cast

import pytest

from chappe.core.errors import Forbidden, Gone, NotFound, Unavailable
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
        self.head = 0
        self.reads: list[list[str]] = []
        self.streams: list[str] = []
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
        self.head += 4
        self._queue.put_nowait(
            Event(self.head, "job", job, at, at, None, state, PHASE[state], 1, 1, outcome)
        )

    def fail(self, error: Exception) -> None:
        self._queue.put_nowait(error)

    async def request(self, method: str, path: str, **options: Any) -> EventPage:
        assert (method, path, options["params"]) == ("GET", "/v1/events", {"cursor": "now"})
        self.positions += 1
        if self.refusal is not None:
            raise self.refusal
        return EventPage([], f"1:{self.head}")

    async def stream_events(
        self, *, params: dict[str, Any], last_event_id: str
    ) -> AsyncIterator[tuple[str, Event]]:
        assert params == {"final": 1}
        assert self.positions, "the Hub is asked first where it is"
        self.streams.append(last_event_id)
        self.open += 1
        try:
            while True:
                item = await self._queue.get()
                if isinstance(item, Exception):
                    raise item
                yield f"1:{item.seq}", item
        finally:
            self.open -= 1

    async def read(self, ids: list[str]) -> list[JobView]:
        assert self.positions, "the position must be fixed before states are read"
        self.reads.append(ids)
        self.before_read()
        return [
            JobView(i, "", str(s), str(PHASE[s]), [], 0.0, at)
            for i in ids
            if i in self.jobs
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


async def ends(feed: Feed, *ids: str, **created: int) -> list[Ended]:
    """How Jobs end: `ids` of others, and those that this client created, each with its position."""
    jobs = dict.fromkeys(ids) | {job: (1, seq) for job, seq in created.items()}
    async with asyncio.timeout(10), aclosing(feed.watch(jobs)) as watch:
        return [ended async for some in watch for ended in some]


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
    assert len(hub.streams) == 1


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
    assert len(hub.streams) == 2


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


async def test_a_job_that_does_not_exist_is_named(hub: FakeHub, feed: Feed) -> None:
    hub.change("a", State.RUNNING, 1.0, announce=False)
    with pytest.raises(NotFound, match="no job b"):
        await ends(feed, "a", "b")


async def test_of_a_job_of_its_own_nothing_is_read(hub: FakeHub, feed: Feed) -> None:
    """Also when it had ended before the wait: the stream begins before it."""
    hub.head = 100
    hub.say("b", State.JOB_FINISHED, 1.0)
    wait = asyncio.create_task(ends(feed, a=110, b=100))
    await settle()
    hub.say("a", State.JOB_FINISHED, 2.0)
    assert [e.id for e in await wait] == ["b", "a"]
    assert hub.streams == ["1:100"]
    assert hub.reads == []


async def test_what_the_stream_has_passed_is_read(hub: FakeHub, feed: Feed) -> None:
    hub.change("a", State.RUNNING, 1.0, announce=False)
    first = asyncio.create_task(ends(feed, "a"))
    await settle()
    hub.change("b", State.JOB_FINISHED, 2.0)
    await settle()
    wait = asyncio.create_task(ends(feed, b=0, c=4))
    await settle()
    assert hub.reads == [["a"], ["b"]]
    hub.change("c", State.JOB_FINISHED, 2.0)
    assert [e.id for e in await wait] == ["b", "c"]
    assert hub.streams == ["1:0"]
    hub.change("a", State.JOB_FINISHED, 3.0)
    await first


async def test_a_long_way_back_is_not_gone(hub: FakeHub, feed: Feed) -> None:
    """A few states are read rather than the ends of a million other Jobs."""
    hub.change("a", State.JOB_FINISHED, 1.0, announce=False)
    hub.head = 1_000_000
    assert len(await ends(feed, a=10)) == 1
    assert hub.streams == ["1:1000000"]
    assert hub.reads == [["a"]]


async def test_many_small_waits_begin_as_far_back_as_one_big_one(hub: FakeHub, feed: Feed) -> None:
    hub.head = 3_000
    waits = [asyncio.create_task(ends(feed, **{f"j{n}": 4 * n})) for n in range(500)]
    await settle()
    for n in range(500):
        hub.say(f"j{n}", State.JOB_FINISHED, 1.0)
    assert {e.id for wait in waits for e in await wait} == {f"j{n}" for n in range(500)}
    assert (hub.streams, hub.reads) == (["1:0"], [])


async def test_a_stream_that_nobody_needed_begins_again_for_many_jobs(
    hub: FakeHub, feed: Feed
) -> None:
    hub.change("a", State.JOB_FINISHED, 1.0, announce=False)
    await ends(feed, "a")
    begin = hub.head
    hub.say("j0", State.JOB_FINISHED, 2.0)
    await settle()  # the stream of the first wait is still there, and passes it
    few = asyncio.create_task(ends(feed, **{f"j{n}": begin for n in range(3)}))
    await settle()
    assert (len(hub.streams), len(hub.reads)) == (1, 2)
    few.cancel()
    await settle()
    many = asyncio.create_task(ends(feed, **{f"j{n}": begin for n in range(200)}))
    await settle()
    for n in range(200):
        hub.say(f"j{n}", State.JOB_FINISHED, 2.0)
    assert len(await many) == 200
    assert (hub.streams, len(hub.reads)) == (["1:0", f"1:{begin}"], 2)


async def test_another_incarnations_position_is_no_position(hub: FakeHub, feed: Feed) -> None:
    hub.change("a", State.JOB_FINISHED, 1.0, announce=False)
    async with asyncio.timeout(10), aclosing(feed.watch({"a": (0, 5)})) as watch:
        assert [e.id async for some in watch for e in some] == ["a"]
    assert hub.reads == [["a"]]


@pytest.mark.parametrize("state", [State.FAILED, State.CANCELLED])
async def test_an_end_that_a_retry_may_have_followed_is_read(
    hub: FakeHub, feed: Feed, state: State
) -> None:
    hub.change("a", state, 1.0)
    hub.change("b", state, 1.0)
    hub.change("b", State.RESTART_READY, 2.0, announce=False)
    wait = asyncio.create_task(ends(feed, a=0, b=0))
    await settle()
    assert hub.reads == [["a", "b"]]
    hub.change("b", State.JOB_FINISHED, 3.0)
    assert [(e.id, e.state) for e in await wait] == [("a", state), ("b", "JOB_FINISHED")]


async def test_an_end_while_an_earlier_one_is_looked_at_is_told(hub: FakeHub, feed: Feed) -> None:
    hub.change("a", State.FAILED, 1.0)
    hub.change("a", State.RESTART_READY, 2.0, announce=False)
    held = asyncio.Event()
    read = hub.read

    async def slowly(ids: list[str]) -> list[JobView]:
        views = await read(ids)
        await held.wait()
        return views

    feed._read_states = slowly
    wait = asyncio.create_task(ends(feed, a=0))
    await settle()
    hub.change("a", State.FAILED, 3.0)
    await settle()
    held.set()
    assert [e.state for e in await wait] == ["FAILED"]


async def test_a_job_that_failed_and_was_deleted_has_ended(hub: FakeHub, feed: Feed) -> None:
    hub.say("a", State.FAILED, 1.0)
    assert [e.state for e in await ends(feed, a=0)] == ["FAILED"]


async def test_a_replayed_end_is_not_believed_of_anothers_job(hub: FakeHub, feed: Feed) -> None:
    """The stream begins early for a, and so tells of b's end before its retry."""
    hub.say("b", State.FAILED, 1.0)
    hub.change("b", State.RUNNING, 2.0, announce=False)
    wait = asyncio.create_task(ends(feed, "b", a=0))
    await settle()
    hub.say("a", State.JOB_FINISHED, 3.0)
    hub.say("b", State.JOB_FINISHED, 4.0)
    assert [(e.id, e.state) for e in await wait] == [("a", "JOB_FINISHED"), ("b", "JOB_FINISHED")]


async def test_after_a_restored_backup_own_jobs_are_read_too(hub: FakeHub, feed: Feed) -> None:
    waits = [asyncio.create_task(ends(feed, **{job: 0})) for job in "ab"]
    await settle()
    hub.change("a", State.JOB_FINISHED, 1.0, announce=False)
    hub.fail(Gone("the cursor is of an older incarnation", code="cursor_reset"))
    assert len(await waits[0]) == 1
    with pytest.raises(NotFound, match="no job b"):
        await waits[1]


async def test_nothing_is_kept_of_what_nobody_waits_for(hub: FakeHub, feed: Feed) -> None:
    wait = asyncio.create_task(ends(feed, a=0, b=0))
    other = asyncio.create_task(ends(feed, a=0))
    await settle()
    hub.say("a", State.JOB_FINISHED, 1.0)
    await other
    assert list(feed._by_job) == ["b"]
    wait.cancel()
    await settle()
    assert feed._by_job == {}
