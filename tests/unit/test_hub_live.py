"""Streams: coalesced and shared reads, back-pressure, bounds; over a log that lives in a list."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from chappe.core import limits
from chappe.core.errors import Busy, Gone, Invalid
from chappe.hub import live
from chappe.hub.live import Streams, position, since
from chappe.hub.metrics import Metrics
from chappe.hub.state import Hub
from chappe.store.feed import EventFilter
from chappe.store.principal import Principal

ME = Principal("user", 1, "p", "default", "aaaabbbbcccc")
ALL = EventFilter()


class Log:
    """A Hub whose EventLog is a number: Events 1 … head. It keeps which reads were made."""

    def __init__(self, head: int = 0) -> None:
        self.committed = head
        self.reads: list[tuple[int, int]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.store = SimpleNamespace(incarnation=1, head=lambda _project: self.committed)
        self.stopping = asyncio.Event()
        self.metrics = Metrics()
        self.now = 0.0
        self.streams = Streams(cast(Hub, self))

    def clock(self) -> float:
        return self.now

    async def read(
        self, _fn: Any, _p: Principal, after: int, head: int, _f: EventFilter, incarnation: int
    ) -> tuple[bytes, int, int]:
        self.reads.append((after, head))
        await self.gate.wait()
        upto = min(head, after + live.PAGE)
        told = [b"%d:%d;" % (incarnation, n) for n in range(after + 1, upto + 1)]
        return b"".join(told), len(told), upto

    def commit(self, n: int = 1, *, ends: bool = True) -> None:
        self.committed += n
        self.streams.hint({1: self.committed}, {1} if ends else ())

    @asynccontextmanager
    async def stream(
        self, cursor: str | None = None, f: EventFilter = ALL
    ) -> AsyncGenerator[AsyncGenerator[bytes, None], None]:
        """A stream after its `ready`."""
        async with aclosing(self.streams.open(ME, f, cursor)) as chunks:
            assert await anext(chunks) == b": ready\n\n"
            yield chunks


def at(log: Log, cursor: str | None) -> int:
    return position(cast(Hub, log), ME, cursor)


async def test_positions() -> None:
    log = Log(head=5)
    assert at(log, None) == 5
    assert at(log, "now") == 5
    assert since(cast(Hub, log), ME, None) is None
    assert since(cast(Hub, log), ME, "now") == 5
    assert at(log, "1:3") == 3
    for cursor in ("1:6", "2:1", "0:3"):
        with pytest.raises(Gone):
            at(log, cursor)
    for cursor in ("x", "1:x", "1:-1"):
        with pytest.raises(Invalid):
            at(log, cursor)


async def test_it_begins_where_it_was_told_and_goes_on() -> None:
    log = Log(head=3)
    async with log.stream("1:1") as chunks:
        assert await anext(chunks) == b"1:2;1:3;"
        log.commit()
        assert await anext(chunks) == b"1:4;"


async def test_what_is_committed_before_it_waits_is_not_missed() -> None:
    log = Log()
    async with log.stream() as chunks:
        log.commit()
        assert await anext(chunks) == b"1:1;"


async def test_many_commits_are_one_read() -> None:
    log = Log()
    async with log.stream() as chunks:
        log.commit()
        await anext(chunks)
        coming = asyncio.ensure_future(anext(chunks))
        for _ in range(50):
            log.commit()
            await asyncio.sleep(0)
        await coming
        assert len(log.reads) == 2


async def test_a_stream_that_tells_much_lets_more_gather(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "SPACING_S", 3600.0)
    monkeypatch.setattr(live, "FEW_PER_S", 1e-6)  # however long this machine pauses meanwhile
    log = Log()
    async with log.stream() as chunks:
        log.commit(live.PAGE)
        await anext(chunks)
        coming = asyncio.ensure_future(anext(chunks))
        for _ in range(50):
            log.commit()
            await asyncio.sleep(0)
        assert len(log.reads) == 1
        log.stopping.set()  # nothing else ends the pause soon
        assert (await coming).count(b";") == 50


async def test_a_page_that_was_not_enough_is_followed_by_the_next() -> None:
    log = Log()
    async with log.stream() as chunks:
        log.commit(live.PAGE + 1)
        assert (await anext(chunks)).count(b";") == live.PAGE
        assert (await anext(chunks)).count(b";") == 1


async def test_who_listens_for_ends_is_not_woken_for_anything_else() -> None:
    log = Log()
    async with log.stream(f=EventFilter(final=True)) as ends, log.stream() as chunks:
        coming = asyncio.ensure_future(anext(ends))
        await asyncio.sleep(0)
        log.commit(ends=False)
        await anext(chunks)
        assert log.reads == [(0, 1)]
        log.commit()
        assert await coming == b"1:1;1:2;"


async def test_a_slow_client_holds_one_page_and_no_queue() -> None:
    log = Log()
    async with log.stream() as chunks:
        for _ in range(5):
            log.commit(live.PAGE)
            await asyncio.sleep(0)
        # Nobody took anything: nothing was read ahead.
        assert log.reads == []
        assert (await anext(chunks)).count(b";") == live.PAGE
        assert len(log.reads) == 1


async def test_streams_at_one_place_share_a_read() -> None:
    log = Log()
    async with log.stream() as a, log.stream() as b, log.stream(f=EventFilter(final=True)) as c:
        coming = [asyncio.ensure_future(anext(s)) for s in (a, b, c)]
        await asyncio.sleep(0)
        log.commit()
        assert await asyncio.gather(*coming) == [b"1:1;"] * 3
        assert len(log.reads) == 2


async def test_who_leaves_a_shared_read_does_not_end_it() -> None:
    log = Log()
    log.gate.clear()
    async with log.stream() as a, log.stream() as b:
        coming = [asyncio.ensure_future(anext(s)) for s in (a, b)]
        await asyncio.sleep(0)
        log.commit()
        for _ in range(5):
            await asyncio.sleep(0)
        coming[0].cancel()
        log.gate.set()
        assert await coming[1] == b"1:1;"
        assert len(log.reads) == 1


async def test_quiet_streams_are_kept_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "KEEP_ALIVE_S", 0.01)
    log = Log()
    async with log.stream() as chunks:
        assert await anext(chunks) == b": keep-alive\n\n"


async def test_a_position_without_events_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "KEEP_ALIVE_S", 0.01)
    log = Log()

    async def nothing_passes(*args: Any) -> tuple[bytes, int, int]:
        return b"", 0, args[3]

    monkeypatch.setattr(log, "read", nothing_passes)
    async with log.stream() as chunks:
        log.commit(7)
        assert await anext(chunks) == b": keep-alive\nid: 1:7\n\n"
        assert await anext(chunks) == b": keep-alive\n\n"


async def test_a_stop_ends_all() -> None:
    log = Log()
    async with log.stream() as chunks:
        coming = asyncio.ensure_future(anext(chunks, b"end"))
        await asyncio.sleep(0)
        log.stopping.set()
        log.streams.stop()
        assert await coming == b"end"
    assert len(log.streams) == 0


async def test_a_new_incarnation_ends_the_streams_of_the_old() -> None:
    log = Log()
    async with log.stream() as chunks:
        log.store.incarnation = 2
        log.commit()
        assert await anext(chunks, b"end") == b"end"
    with pytest.raises(Gone):
        log.streams.open(ME, ALL, "1:1")


async def test_streams_are_bounded_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "STREAMS", 2)
    log = Log()
    async with log.stream(), log.stream():
        with pytest.raises(Busy):
            log.streams.open(ME, ALL, None)
    assert len(log.streams) == 0
    async with log.stream():
        assert len(log.streams) == 1


async def test_a_stream_ends_when_its_token_is_revoked_and_others_go_on() -> None:
    log = Log()
    other = replace(ME, token_prefix="ccccddddeeee")
    mine, theirs = (log.streams.open(p, ALL, None) for p in (ME, other))
    async with aclosing(mine), aclosing(theirs):
        for chunks in (mine, theirs):
            assert await anext(chunks) == b": ready\n\n"
        waiting = asyncio.ensure_future(anext(mine))
        await asyncio.sleep(0)
        log.streams.cut({ME.token_prefix})
        with pytest.raises(StopAsyncIteration):
            await waiting
        log.commit()
        assert await anext(theirs) == b"1:1;"


async def test_a_stream_that_was_opened_before_a_revocation_and_begins_after_it_ends() -> None:
    log = Log()
    async with aclosing(log.streams.open(ME, ALL, None)) as chunks:
        log.streams.cut({ME.token_prefix})
        assert await anext(chunks) == b": ready\n\n"
        with pytest.raises(StopAsyncIteration):
            await anext(chunks)
    assert len(log.streams) == 0


async def test_a_stream_does_not_outlive_its_token() -> None:
    log = Log()
    brief = replace(ME, expires_at=10.0)
    log.now = 9.0
    async with aclosing(log.streams.open(brief, ALL, None)) as chunks:
        assert await anext(chunks) == b": ready\n\n"
        log.commit()
        assert await anext(chunks) == b"1:1;"
        log.now = 10.0
        log.commit()
        with pytest.raises(StopAsyncIteration):
            await anext(chunks)
