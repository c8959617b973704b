"""The live feed over a real Hub: no gaps, nothing twice, nothing before it is committed."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import AsyncGenerator
from contextlib import aclosing, closing

import msgspec
import pytest

from chappe.core.errors import Gone, Invalid, TooLarge
from chappe.core.jobs import Envelope
from chappe.link.clock import new_id
from chappe.link.http import NO_RETRY, HubClient
from chappe.testing.hub import RunningHub
from chappe.wire.events import Event, EventPage, parse_cursor
from tests.integration.hub_rig import WITHIN_S, raw, world


async def everything(client: HubClient, **params: str | int) -> list[Event]:
    """All Events, page by page."""
    events: list[Event] = []
    cursor = None
    while True:
        page = await client.request(
            "GET", "/v1/events", reply=EventPage, params={**params, "cursor": cursor}
        )
        if page.cursor == cursor:
            return events
        events += page.events
        cursor = page.cursor


async def follow(
    client: HubClient, n: int, last: str | None = None, **params: str
) -> list[tuple[str, Event]]:
    """The next `n` Events of a stream."""
    found: list[tuple[str, Event]] = []
    async with (
        asyncio.timeout(WITHIN_S),
        aclosing(client.stream_events(params=params, last_event_id=last)) as stream,
    ):
        async for item in stream:
            found.append(item)
            if len(found) == n:
                break
    return found


async def test_seqs_have_no_gaps(hub: RunningHub) -> None:
    async with world(hub) as w:
        await w.create(2_500)
        events = await everything(w.user, limit=700)
        assert [e.seq for e in events] == list(range(1, len(events) + 1))
        assert sum(e.kind == "job" for e in events) == 2_500


async def test_a_stream_that_breaks_again_and_again_misses_nothing(shared_hub: RunningHub) -> None:
    """Readers reconnect by Last-Event-ID all the time while several clients write."""
    async with world(shared_hub) as w:
        start = await w.user.request("GET", "/v1/events", reply=EventPage, params={"cursor": "now"})
        total = 4 * 10 * 25

        async def write() -> None:
            client = w.client(shared_hub.token)
            for _ in range(10):
                await client.request("POST", "/v1/jobs", w.jobs(25))

        async def read(step: int) -> list[int]:
            client = w.client(shared_hub.token)
            seqs: list[int] = []
            cursor = start.cursor
            while len(seqs) < total:
                items = await follow(client, min(step, total - len(seqs)), cursor)
                seqs += [event.seq for _, event in items]
                cursor = items[-1][0]
                # What was shown is committed: a page shows it too.
                last = parse_cursor(cursor)[1]
                page = await client.request(
                    "GET",
                    "/v1/events",
                    reply=EventPage,
                    params={"cursor": f"{parse_cursor(cursor)[0]}:{last - 1}", "limit": 1},
                )
                assert page.events[0].seq == last
            return seqs

        *read_by, _, _, _, _ = await asyncio.gather(
            read(23), read(250), read(total), write(), write(), write(), write()
        )
        first = parse_cursor(start.cursor)[1] + 1
        for seqs in read_by:
            assert seqs == list(range(first, first + total))


async def test_a_stream_says_ready_then_events_with_their_cursor(shared_hub: RunningHub) -> None:
    async with world(shared_hub) as w, aclosing(_chunks(w.user, "/v1/events/stream")) as chunks:
        assert await anext(chunks) == b": ready\n\n"
        (id,) = await w.create(1)
        text = (await anext(chunks)).decode()
        found = re.fullmatch(r"id: (\d+):(\d+)\ndata: (.*)\n\n", text)
        assert found is not None
        event = msgspec.json.decode(found.group(3), type=Event)
        assert (event.seq, event.subject, event.new) == (int(found.group(2)), id, "PREPROCESSED")


async def _chunks(client: HubClient, path: str) -> AsyncGenerator[bytes, None]:
    async with client._http.stream("GET", client.url + path) as response:
        async for chunk in response.aiter_raw():
            yield chunk


async def test_filters(hub: RunningHub) -> None:
    async with world(hub) as w:
        pilot = await w.pilot()
        (red,) = await w.create(1, envelope=Envelope(tags={"colour": "red"}))
        (blue,) = await w.create(1, envelope=Envelope(tags={"colour": "blue"}))
        grants = (await pilot.sync(slots=2)).grants
        await pilot.sync([pilot.end(g) for g in grants])
        for params, subjects in (
            ({"kind": "job", "final": "1"}, [red, blue]),
            ({"tag": "colour=blue", "final": "1"}, [blue]),
            ({"job": red, "final": "1"}, [red]),
            ({"job": new_id()}, []),
            ({"kind": "site"}, [w.site_id] * 3),
        ):
            events = await everything(w.user, **params)
            assert [e.subject for e in events] == subjects, params
        assert {e.subject for e in await everything(w.user, job=red)} == {red}
        history = await w.user.request("GET", f"/v1/jobs/{red}/events", reply=EventPage)
        assert [e.new for e in history.events] == [
            "PREPROCESSED",
            "RUNNING",
            "RUN_DONE",
            "JOB_FINISHED",
        ]
        ((_, event),) = await follow(w.user, 1, "1:0", job=blue, final="1")
        assert (event.subject, event.phase) == (blue, "finished")


async def test_cursors_of_another_past_are_told_apart(shared_hub: RunningHub) -> None:
    async with world(shared_hub) as w:
        for cursor in ("2:1", "1:1000000", "0:0"):
            for path in ("/v1/events", "/v1/events/stream"):
                with pytest.raises(Gone) as gone:
                    await w.user.fetch("GET", path, params={"cursor": cursor}, retry=NO_RETRY)
                assert gone.value.code == "cursor_reset"
        for cursor in ("x", "1", "1:x", "1:-1", "1:2:3"):
            with pytest.raises(Invalid) as refused:
                await w.user.fetch("GET", "/v1/events", params={"cursor": cursor})
            assert refused.value.field == "cursor"


async def test_filters_are_bounded(shared_hub: RunningHub) -> None:
    async with world(shared_hub) as w:
        with pytest.raises(TooLarge):
            await w.user.fetch("GET", "/v1/events", params={"job": [new_id() for _ in range(101)]})
        for params in ({"limit": 0}, {"limit": 5_001}, {"job": "x"}, {"tag": "x"}, {"final": "x"}):
            with pytest.raises(Invalid) as refused:
                await w.user.fetch("GET", "/v1/events", params=params)
            assert refused.value.field == next(iter(params))


async def test_a_log_that_was_cut_says_where_it_begins(hub: RunningHub) -> None:
    """As retention cuts it. Pages, streams and a wait from before the cut: none is given a gap."""
    async with world(hub) as w:
        await w.create(50)
        events = await everything(w.user)
        first = events[20].seq
        await asyncio.to_thread(hub.stop)
        with closing(sqlite3.connect(hub.data / "hub.sqlite")) as conn, conn:
            conn.execute("DELETE FROM event WHERE seq < ?", (first,))
        await asyncio.to_thread(hub.start)
        assert [e.seq for e in await everything(w.user)] == [e.seq for e in events[20:]]
        for cursor in (f"1:{first - 2}", "1:0"):
            for path in ("/v1/events", "/v1/events/stream"):
                with pytest.raises(Gone) as gone:
                    await w.user.request(
                        "GET", path, reply=EventPage, params={"cursor": cursor}, retry=NO_RETRY
                    )
                assert gone.value.code == "cursor_too_old"
                assert gone.value.details == {"first_seq": first}
        with pytest.raises(Gone):
            await follow(w.user, 1, last=f"1:{first - 2}")
        assert [e.seq for _, e in await follow(w.user, 2, last=f"1:{first - 1}")] == [
            first,
            first + 1,
        ]


async def test_a_stream_survives_the_hubs_restart(hub: RunningHub) -> None:
    async with world(hub) as w:
        ready = asyncio.Event()
        stream = w.user.stream_events(on_ready=ready.set)
        first = asyncio.create_task(anext(stream))
        await ready.wait()
        await asyncio.to_thread(hub.restart)
        (id,) = await w.create(1)
        async with asyncio.timeout(WITHIN_S):
            _, event = await first
        assert event.subject == id
        await stream.aclose()


def test_a_stream_is_counted_and_forgotten(hub: RunningHub) -> None:
    for _ in range(3):
        assert raw(hub, "GET", "/v1/events/stream", hub.token).status == 200
    # Each left after the headers; the Hub notices, and counts none in the end.
    for _ in range(1_000):
        text = raw(hub, "GET", "/metrics").body.decode()
        if re.search(r"^chappe_streams 0", text, re.M):
            return
    raise AssertionError("streams of clients that left are still counted")
