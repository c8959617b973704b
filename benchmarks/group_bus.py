"""The bus in the store: published by one command each, taken by 100, acknowledged by one command each; and
what more workers bring when the work is waiting."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Future
from contextlib import closing
from typing import Any

from benchmarks.bench import Bench
from chappe.bus.workers import Consumer, Workers
from chappe.core.queues import Queue, Topology
from chappe.store.db import Store, open_store
from chappe.store.queues import Message, Queues
from chappe.testing.postgres import HOW_TO_GET, PostgresServer, binaries

BUS = Queues(Topology([Queue("work", ("work",), prefetch=32)], ["work"]))
TAKEN = 100
WORK_S = 0.005
MANY = 8


def run(bench: Bench) -> None:
    """Rounds on each store."""
    count = bench.scaled(8_000, 2_000)  # the writer queues no more than 10 000
    with bench.attempt("bus.sqlite", "bus.workers"), bench.private("bus") as directory:
        store = open_store(f"sqlite:///{directory}/hub.db", clock=time.time)
        with closing(store):
            for _ in range(bench.rounds):
                bench.add("bus.sqlite", count / _cycle(store, count))
                few, many = (_drain(store, bench.scaled(400, 200), n) for n in (1, MANY))
                bench.add("bus.workers", few / many)
    with bench.attempt("bus.postgresql"), bench.private("bus-postgresql") as directory:
        if binaries() is None:
            raise RuntimeError(f"no PostgreSQL; to get it: {HOW_TO_GET}")
        with PostgresServer.start(memory=False) as server:
            store = open_store(server.database(), clock=time.time, data=directory)
            with closing(store):
                for _ in range(bench.rounds):
                    bench.add("bus.postgresql", count / _cycle(store, count))


def _cycle(store: Store, count: int) -> float:
    """Seconds for so many messages through a queue; commands that wait share a commit, as in a hub."""
    submit = store.writer.submit
    began = time.perf_counter()
    _settle([submit(BUS.publish, "work", {"n": n}) for n in range(count)])
    acks: list[Future[Any]] = []
    while messages := submit(BUS.take, "work", TAKEN).result().messages:
        acks += [submit(BUS.ack, message) for message in messages]
    assert all(_settle(acks))
    return time.perf_counter() - began


def _settle(futures: list[Future[Any]]) -> list[Any]:
    return [future.result() for future in futures]


def _drain(store: Store, count: int, threads: int) -> float:
    """Seconds until so many workers have emptied the queue, of messages that take WORK_S each."""
    _settle([store.writer.submit(BUS.publish, "work", {"n": n}) for n in range(count)])
    return asyncio.run(_worked(store, count, threads))


async def _worked(store: Store, count: int, threads: int) -> float:
    left, done = count, asyncio.Event()

    def told(_message: Message) -> None:
        nonlocal left
        left -= 1
        if not left:
            done.set()

    async def write(fn: Any, *args: Any) -> Any:
        return await asyncio.wrap_future(store.writer.submit(fn, *args))

    consumer = Consumer("work", lambda _message: time.sleep(WORK_S), told=told)
    workers = Workers(write, [consumer], threads, BUS)
    began = time.perf_counter()
    running = asyncio.create_task(workers.run())
    await done.wait()
    taken_s = time.perf_counter() - began
    workers.stop()
    await running
    return taken_s
