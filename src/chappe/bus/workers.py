"""Consumers: they take from queues through the one writer, work in threads, and acknowledge with effects.

A message is dealt with in two steps. `work` is what takes time: it runs in one of N threads, beside all
others, and may touch anything but the store. `apply` gets what it returned and changes the store, in the
transaction that acknowledges: so a message whose worker was killed anywhere is worked on again, and has its
effect once. What `work` does outside must bear being done twice.

Nothing polls: whoever publishes wakes the queue's consumer (`hint`), and a delay or a lease that ends is
waited for by its time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import structlog

from chappe.core import faults
from chappe.core.errors import ChappeError
from chappe.store.queues import BUS, Message, Queues, Taken
from chappe.store.tx import Tx

#: A delay is looked up anew at least this often: the calendar may jump.
LOOK_S = 30.0
#: How long a consumer waits after the store refused to answer, at first and at most.
TROUBLE_S = 0.5
TROUBLE_MOST_S = 30.0

CRASH_POINTS = ("bus.taken", "bus.worked", "bus.before_ack", "bus.acked")

log = structlog.get_logger("chappe.bus.workers")


class Rejected(Exception):
    """Raised by `work` or `apply`: this message can never be dealt with, and is a dead letter at once."""


class Later(Exception):
    """Raised by `work` or `apply`: try again after `delay_s` seconds (None: as the queue has it)."""

    def __init__(self, reason: str, delay_s: float | None = None) -> None:
        super().__init__(reason)
        self.delay_s = delay_s


def _no_work(_message: Message) -> None:
    return None


def _no_effect(_tx: Tx, _message: Message, _made: Any) -> None:
    return None


@dataclass(frozen=True)
class Consumer:
    """What is done with the messages of a queue; `told` is called on the loop when one is acknowledged."""

    queue: str
    work: Callable[[Message], Any] = _no_work
    apply: Callable[[Tx, Message, Any], None] = _no_effect
    told: Callable[[Message], None] = field(default=lambda _message: None)


class Write(Protocol):
    """Runs `fn(tx, *args)` on the writer's thread, and returns what it did when that is committed."""

    def __call__(self, fn: Callable[..., Any], *args: Any) -> Awaitable[Any]:
        """Run it."""


class Workers:
    """Consumers over `write`, that share `threads` threads."""

    def __init__(
        self, write: Write, consumers: Iterable[Consumer], threads: int, bus: Queues = BUS
    ) -> None:
        self._write = write
        self._bus = bus
        self._consumers = {consumer.queue: consumer for consumer in consumers}
        self._wake = {queue: asyncio.Event() for queue in self._consumers}
        self._threads = threads
        self._free = asyncio.Semaphore(threads)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="chappe-worker")
        self._stopping = asyncio.Event()
        #: How many threads work now.
        self.busy = 0

    def hint(self, queues: Iterable[str]) -> None:
        """Something may be there in these queues."""
        for queue in queues:
            if queue in self._wake:
                self._wake[queue].set()

    def stop(self) -> None:
        """Take nothing more; `run` returns when what was begun is done, and the rest is given back."""
        self._stopping.set()
        for event in self._wake.values():
            event.set()

    async def run(self) -> None:
        """Consume until `stop`. First, what a Hub before this one had taken is put back."""
        try:
            await self._insist(self._bus.forsake)
            async with asyncio.TaskGroup() as group:
                for consumer in self._consumers.values():
                    group.create_task(self._consume(consumer))
        finally:
            self._pool.shutdown(wait=False, cancel_futures=True)

    async def _insist(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Write, also when the store is in trouble for a while; None if the end came first."""
        wait_s = TROUBLE_S
        while True:
            try:
                return await self._write(fn, *args)
            except ChappeError as error:
                if not error.transient:
                    raise
                log.warning("the bus waits for the store", reason=error.message)
            if self._stopping.is_set():
                return None
            await _within(self._stopping, wait_s)
            wait_s = min(2 * wait_s, TROUBLE_MOST_S)

    async def _consume(self, consumer: Consumer) -> None:
        """Hold up to the queue's prefetch of messages for each thread, until the end."""
        wake, terms = self._wake[consumer.queue], self._bus.topology.find(consumer.queue)
        most = terms.prefetch * self._threads
        held: set[asyncio.Task[None]] = set()

        def done(task: asyncio.Task[None]) -> None:
            held.discard(task)
            if len(held) <= most // 2:
                wake.set()
            if not task.cancelled() and task.exception() is not None:
                log.error("a message is left to its lease", exc_info=task.exception())

        while not self._stopping.is_set():
            wake.clear()
            taken = Taken([])
            if (room := most - len(held)) > 0:
                taken = await self._insist(self._bus.take, terms.name, room) or taken
            if taken.messages:
                faults.reach("bus.taken")
            for message in taken.messages:
                task = asyncio.create_task(self._deal(consumer, message, terms.lease_s / 2))
                held.add(task)
                task.add_done_callback(done)
            if taken.wait_s is None:
                await wake.wait()
            else:
                await _within(wake, min(max(taken.wait_s, 0.0), LOOK_S))
        if held:
            await asyncio.wait(held)

    async def _deal(self, consumer: Consumer, message: Message, patience_s: float) -> None:
        """See one message through, whatever comes of it."""
        if not await self._slot(patience_s):
            await self._insist(self._bus.release, message)
            return
        try:
            try:
                made = await asyncio.get_running_loop().run_in_executor(
                    self._pool, consumer.work, message
                )
            finally:
                self.busy -= 1
                self._free.release()
            faults.reach("bus.worked")
            acked = await self._insist(self._finish, consumer, message, made)
        except Exception as error:  # noqa: BLE001 - it is kept with the message, and logged
            await self._give_back(message, error)
            return
        faults.reach("bus.acked")
        if acked:
            consumer.told(message)

    async def _slot(self, patience_s: float) -> bool:
        """Wait for a thread. False: not within that time, or the end came: the message is to be given back
        while it is still its worker's, and this is no try."""
        try:
            async with asyncio.timeout(patience_s):
                await self._free.acquire()
        except TimeoutError:
            return False
        if self._stopping.is_set():
            self._free.release()
            return False
        self.busy += 1
        return True

    def _finish(self, tx: Tx, consumer: Consumer, message: Message, made: Any) -> bool:
        """Acknowledge, and only then apply: a message that was lost has no effect."""
        if not self._bus.ack(tx, message):
            return False
        consumer.apply(tx, message, made)
        faults.reach("bus.before_ack")
        return True

    async def _give_back(self, message: Message, error: Exception) -> None:
        """Another try, or none."""
        said = isinstance(error, Later | Rejected)
        reason = str(error) if said else f"{type(error).__name__}: {error}"
        if isinstance(error, Rejected):
            await self._insist(self._bus.reject, message, reason)
            return
        if not said:
            where = {"queue": message.queue, "position": message.position, "tries": message.tries}
            log.warning("a message failed", **where, exc_info=error)
        delay_s = error.delay_s if isinstance(error, Later) else None
        await self._insist(self._bus.nack, message, reason, delay_s)


async def _within(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
