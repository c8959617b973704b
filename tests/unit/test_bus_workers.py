"""Workers: they wake without polling, work side by side, and lose and double nothing they were given."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from chappe.bus import workers
from chappe.bus.workers import Consumer, Later, Rejected, Workers
from chappe.core.access import Reach
from chappe.core.errors import Unavailable
from chappe.core.queues import Queue, Topology
from chappe.store.queue_views import Desk
from chappe.store.queues import Message, Queues
from chappe.store.tx import Effects, Tx
from chappe.testing.store import StoreRig

TOPOLOGY = Topology(
    [Queue("work", ("work",), prefetch=4, attempts=3, backoff_s=0.01), Queue("slow", ("slow",))],
    ["work", "slow"],
)
BUS, DESK = Queues(TOPOLOGY), Desk(TOPOLOGY)
WITHIN_S = 60.0


class Bench:
    """A store, workers over it, and what they did."""

    def __init__(self, rig: StoreRig) -> None:
        self.rig = rig
        self.done: list[Any] = []
        self.applied = asyncio.Event()
        self.trouble = 0

    async def write(self, fn: Callable[..., Any], *args: Any) -> Any:
        if self.trouble:
            self.trouble -= 1
            raise Unavailable("the disk is full")
        return await asyncio.wrap_future(self.rig.store.writer.submit(fn, *args))

    def publish(self, *bodies: Any, topic: str = "work") -> None:
        for body in bodies:
            self.rig.do(BUS.publish, topic, body)

    def apply(self, tx: Tx, message: Message, made: Any) -> None:
        """The effect, which the database itself counts."""
        tx.event(1, "worked", data=str(message.decode()))

    def told(self, message: Message) -> None:
        self.done.append(message.decode())
        self.applied.set()

    async def until_done(self, count: int) -> None:
        async with asyncio.timeout(WITHIN_S):
            while len(self.done) < count:
                self.applied.clear()
                await self.applied.wait()

    def effects(self) -> list[str]:
        return [r["data"] for r in self.rig.sql("SELECT data FROM event WHERE kind = 'worked'")]

    @asynccontextmanager
    async def workers(
        self, work: Callable[[Message], Any], threads: int = 2, **more: Any
    ) -> AsyncGenerator[Workers, None]:
        fields: dict[str, Any] = {"apply": self.apply, "told": self.told} | more
        consumers = [Consumer("work", work, **fields), Consumer("slow", work, **fields)]
        running = Workers(self.write, consumers, threads, BUS)
        loop = asyncio.get_running_loop()

        def committed(effects: Effects) -> None:
            queues = set(effects.queues)
            loop.call_soon_threadsafe(running.hint, queues)

        self.rig.store.writer.on_commit = committed
        task = asyncio.create_task(running.run())
        try:
            yield running
        finally:
            running.stop()
            async with asyncio.timeout(WITHIN_S):
                await task
            self.rig.store.writer.on_commit = lambda _effects: None


@pytest.fixture
def bench(rig: StoreRig) -> Bench:
    return Bench(rig)


async def test_what_is_published_wakes_them_and_has_its_effect_once(bench: Bench) -> None:
    bench.publish(*range(20))
    async with bench.workers(lambda _m: None):
        await bench.until_done(20)
        await asyncio.to_thread(bench.publish, *range(20, 40))
        await bench.until_done(40)
    assert sorted(map(int, bench.effects())) == list(range(40))
    assert bench.rig.sql("SELECT * FROM bus_delivery") == []


async def test_they_work_side_by_side_as_many_as_there_are_threads(bench: Bench) -> None:
    together = threading.Barrier(4)
    bench.publish(*range(8))
    async with bench.workers(lambda _m: together.wait(WITHIN_S), threads=4):
        await bench.until_done(8)  # fewer threads would wait for each other for ever


async def test_what_fails_is_tried_again_and_what_goes_on_failing_is_a_dead_letter(
    bench: Bench,
) -> None:
    def work(message: Message) -> None:
        body = message.decode()
        if body == "never":
            raise Rejected("this will not do")
        if body == "poison":
            raise ValueError("broken")
        if body == "later" and message.tries == 1:
            raise Later("not yet", 0.0)

    bench.publish("never", "poison", "later", "good")
    async with bench.workers(work):
        await bench.until_done(2)
        await gone(bench, 2)
    assert sorted(bench.effects()) == ["good", "later"]
    dead = bench.rig.ask(DESK.dead, bench.rig.user, Reach.HUB, None, 10, None).messages
    assert [(d.body, d.tries, d.reason) for d in dead] == [
        ('"never"', 1, "this will not do"),
        ('"poison"', 3, "ValueError: broken"),
    ]


async def gone(bench: Bench, dead: int) -> None:
    """Until so many are dead; the rig's clock is moved on, as delays are waited for."""
    async with asyncio.timeout(WITHIN_S):
        while len(bench.rig.sql("SELECT 1 FROM bus_delivery WHERE state = 'dead'")) < dead:
            bench.rig.clock.advance(0.1)
            await asyncio.sleep(0.01)


async def test_an_effect_that_fails_leaves_nothing_of_itself(bench: Bench) -> None:
    def apply(tx: Tx, message: Message, made: Any) -> None:
        bench.apply(tx, message, made)
        if message.tries < 3:
            raise Later("half-way", 0.0)

    bench.publish(1)
    async with bench.workers(lambda _m: None, apply=apply):
        await bench.until_done(1)
    assert bench.effects() == ["1"]


async def test_a_store_in_trouble_is_waited_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "TROUBLE_S", 0.01)

    def work(_message: Message) -> None:
        bench.trouble = 3  # when it is to be acknowledged

    bench.trouble = 3
    bench.publish(1, 2)
    async with bench.workers(work):
        await bench.until_done(2)
    assert sorted(bench.effects()) == ["1", "2"]


async def test_at_the_end_what_was_begun_is_finished_and_the_rest_given_back(bench: Bench) -> None:
    entered, go = threading.Event(), threading.Event()

    def work(_message: Message) -> None:
        entered.set()
        assert go.wait(WITHIN_S)

    bench.publish(1, 2, 3)
    async with bench.workers(work, threads=1) as running:
        assert await asyncio.to_thread(entered.wait, WITHIN_S)
        running.stop()
        go.set()
    assert len(bench.effects()) == 1
    left = bench.rig.sql("SELECT state, tries FROM bus_delivery")
    assert [tuple(dict(row).values()) for row in left] == [("ready", 0), ("ready", 0)]


async def test_what_a_dead_hub_had_taken_is_worked_on_by_the_next(bench: Bench) -> None:
    bench.publish(1, 2)
    bench.rig.do(BUS.take, "work", 1)
    async with bench.workers(lambda _m: None):
        await bench.until_done(2)
    assert sorted(bench.effects()) == ["1", "2"]
