"""One background thread with one event loop: how the synchronous face drives the asynchronous one.

It works where a loop runs already (notebooks), from several threads at once, and ends with the
interpreter. What a caller gives up (Ctrl-C) is cancelled, and its clean-up awaited.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from typing import Any, TypeVar

from chappe.sdk.errors import Conflict

T = TypeVar("T")


class Loop:
    """An event loop on a daemon thread of its own; `close` ends both."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._pid = os.getpid()
        #: Awaited on the loop before it ends, however it is closed.
        self.at_close: Callable[[], Coroutine[Any, Any, None]] | None = None
        self._open: set[AsyncGenerator[Any]] = set()
        self._thread = threading.Thread(target=self._run, name="chappe-client", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine there and return what it returns. Raises Conflict once closed."""
        problem = self._problem()
        if problem is not None:
            work.close()
            raise Conflict(problem, code="client_closed")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def iterate(self, make: Callable[[], AsyncGenerator[T]]) -> Generator[T]:
        """The items of an asynchronous generator; leaving the iteration early closes it there."""
        items = make()
        self._open.add(items)
        try:
            while True:
                found = self.run(_next(items))
                if not found:
                    return
                yield found[0]
        finally:
            self._open.discard(items)
            with contextlib.suppress(Conflict):  # closed meanwhile: the loop has ended it
                self.run(_close(items))

    def close(self) -> None:
        """End what still runs, then the loop and its thread. Idempotent, and harmless after a fork."""
        if os.getpid() == self._pid and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            # The garbage collector may drop a client on its own loop, which cannot wait for itself.
            if threading.current_thread() is not self._thread:
                self._thread.join()

    def _problem(self) -> str | None:
        if os.getpid() != self._pid:
            return "this client was made before a fork: make one in each process"
        if threading.current_thread() is self._thread:
            return "a blocking call on the client's own loop would never return"
        return None if self._thread.is_alive() else "the client is closed: make a new one"

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            left = asyncio.all_tasks(self._loop)
            for task in left:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            # One by one, before what they are made of: asyncio's own sweep closes all at once, and a
            # connection that is closed from two sides complains.
            for items in tuple(self._open):
                self._loop.run_until_complete(items.aclose())
            if self.at_close is not None:
                self._loop.run_until_complete(self.at_close())
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        finally:
            self._loop.close()


async def _next(items: AsyncGenerator[T]) -> tuple[T] | None:
    """The next item in a tuple, None at the end: StopAsyncIteration cannot cross threads in a future."""
    try:
        return (await anext(items),)
    except StopAsyncIteration:
        return None


async def _close(items: AsyncGenerator[Any]) -> None:
    await items.aclose()
