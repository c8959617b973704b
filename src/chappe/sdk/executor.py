"""`chappe.Executor`: concurrent.futures, with a Site for its processes.

What is submitted while a request is on its way makes the next one, so a loop of `submit` costs a few
requests, and a `map` of 10 000 items is one. Ends come by the client's one stream; results are fetched many
at a time; and a thread of the executor's own sets the futures, so that a callback may use the client.
"""

from __future__ import annotations

import asyncio
import atexit
import queue
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor as Base
from concurrent.futures import Future
from contextlib import aclosing, suppress
from typing import Any, TypeVar, Unpack

from chappe.core import limits
from chappe.sdk import acts, values
from chappe.sdk.drafts import Draft, Options
from chappe.sdk.errors import ChappeError, Conflict, JobCancelled, error_of
from chappe.sdk.feed import Ended, Position
from chappe.sdk.functions import app
from chappe.sdk.results import ResultFile
from chappe.sdk.sync import Client

T = TypeVar("T")

Call = tuple[Draft, "JobFuture"]
_End = tuple["JobFuture", ResultFile | BaseException | None]


class JobFuture(Future[Any]):
    """The future of one Job, whose id is `job_id`. Cancelling it cancels the Job, also when that runs."""

    def __init__(self, job_id: str, on_cancel: Callable[[JobFuture], None]) -> None:
        super().__init__()
        self.job_id = job_id
        #: Whether those who wait for it know of its cancellation; only the executor's thread looks.
        self.told = False
        self._on_cancel = on_cancel

    def cancel(self) -> bool:
        """Cancel the Job; False when it has ended."""
        before = self.cancelled()
        done = super().cancel()
        if done and not before:
            self._on_cancel(self)
        return done


class Executor(Base):
    """Runs calls as Jobs at a Site: `with chappe.Executor(site="paris") as ex: ex.map(f, range(100))`.

    `client` is the connection to use, by default one of its own. `environment`, `process` and the options
    are those of `chappe.app`. Jobs outlive this process; `shutdown(wait=False)` leaves them alone.
    """

    def __init__(
        self,
        site: str | None = None,
        *,
        sites: Sequence[str] = (),
        client: Client | None = None,
        environment: str = "default",
        process: str = "warm",
        **options: Unpack[Options],
    ) -> None:
        self._make = app(
            site=site, sites=sites, environment=environment, process=process, **options
        )
        self._owns = client is None
        self._client = Client() if client is None else client
        self._engine = self._client._engine
        self._lock = threading.Lock()
        self._waiting: list[Call] = []
        self._cancels: list[str] = []
        self._futures: set[JobFuture] = set()
        self._shut = False
        self._idle = threading.Condition(self._lock)
        self._ends: queue.SimpleQueue[list[_End] | None] = queue.SimpleQueue()
        self._client._run(self._open())
        self._thread = threading.Thread(target=self._deliver, name="chappe-executor", daemon=True)
        self._thread.start()
        # As with other executors, the interpreter waits for what was submitted.
        atexit.register(self.shutdown)

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Run one call at the Site. What cannot be pickled is raised by the future."""
        return self._submit(fn, [(args, kwargs)])[0]

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        **more: Any,
    ) -> Iterator[T]:
        """The builtin `map`, at the Site: one request for up to 10 000 items, results in their order.

        Raises TimeoutError when a result is not there `timeout` seconds after the call. `chunksize` is
        taken for the sake of other executors; each item is a Job of its own.
        """
        if more:
            raise TypeError(f"map() got an unexpected keyword argument {min(more)!r}")
        deadline = None if timeout is None else time.monotonic() + timeout
        no_keywords: dict[str, Any] = {}
        calls = [(args, no_keywords) for args in zip(*iterables, strict=False)]
        futures = self._submit(fn, calls)
        futures.reverse()
        return _results(futures, deadline)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; with `wait`, return when all have ended. Idempotent.

        With `cancel_futures`, Jobs that have not ended are cancelled.
        """
        with self._lock:
            first, self._shut = not self._shut, True
            left = tuple(self._futures) if cancel_futures else ()
        for future in left:
            future.cancel()
        if first:
            threading.Thread(target=self._close, name="chappe-executor-close", daemon=True).start()
        if wait and threading.current_thread() is not self._thread:
            self._thread.join()

    # --- submitting

    def _submit(
        self, fn: Callable[..., Any], calls: Sequence[tuple[Sequence[Any], Mapping[str, Any]]]
    ) -> list[JobFuture]:
        futures: list[JobFuture] = []
        with self._lock:
            if self._shut or self._server.done():
                raise RuntimeError("cannot schedule new futures after shutdown")
            try:
                drafts = self._make(fn).drafts(calls)
            except ChappeError as error:
                return [_broken(error) for _ in calls]
            for draft in drafts:
                future = JobFuture(draft.id, self._cancel)
                futures.append(future)
                self._waiting.append((draft, future))
            self._futures.update(futures)
        self._wake()
        return futures

    def _cancel(self, future: JobFuture) -> None:
        # What waits in a list is left out when it is sent; what was sent is cancelled at the Hub.
        with self._lock:
            self._cancels.append(future.job_id)
        self._ends.put([(future, None)])
        self._wake()

    def _wake(self) -> None:
        with suppress(
            RuntimeError
        ):  # the client was closed: its futures are failed by `_serve`'s end
            self._client._loop._loop.call_soon_threadsafe(self._todo.set)

    # --- on the client's loop

    async def _open(self) -> None:
        self._todo = asyncio.Event()
        self._ending = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._server = asyncio.create_task(self._serve())

    async def _serve(self) -> None:
        """Send what waits, one request after the other."""
        most = limits.JOBS_PER_REQUEST
        try:
            # What was said before the end is still done: a Job that was on its way may be cancelled by then.
            while not self._ending or self._todo.is_set():
                await self._todo.wait()
                self._todo.clear()
                with self._lock:
                    waiting, self._waiting = self._waiting, []
                    cancels, self._cancels = self._cancels, []
                for start in range(0, len(waiting), most):
                    await self._send(waiting[start : start + most])
                for start in range(0, len(cancels), most):
                    # Its future is cancelled; a Job that could not be told runs in vain.
                    with suppress(ChappeError):
                        await acts.by_ids(self._engine, "cancel", cancels[start : start + most])
        except asyncio.CancelledError:
            error = Conflict("the client was closed", code="client_closed")
            self._ends.put([(future, error) for future in tuple(self._futures)])
            raise

    async def _send(self, calls: list[Call]) -> None:
        calls = [call for call in calls if not call[1].cancelled()]
        try:
            created = await self._engine.submit([draft for draft, _ in calls])
        except ChappeError as error:
            self._ends.put([(future, error) for _, future in calls])
            return
        if calls:
            self._start(self._watch({f.job_id: f for _, f in calls}, created))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _watch(self, futures: dict[str, JobFuture], since: dict[str, Position]) -> None:
        """Hear how these Jobs end, and fetch what they left."""
        try:
            watched = self._engine.watch({job: since.get(job) for job in futures}, None)
            async with aclosing(watched) as ends:
                async for some in ends:
                    self._ends.put(await self._learn(some, futures))
        except ChappeError as error:
            self._ends.put([(future, error) for future in futures.values()])

    async def _learn(self, some: list[Ended], futures: dict[str, JobFuture]) -> list[_End]:
        left = [e.id for e in some if e.outcome is not None and e.outcome.result_sha256]
        results = await self._engine.results(left) if left else {}
        missing = [e.id for e in some if e.id not in results]
        errors: dict[str, ChappeError] = {}
        try:
            views = await self._engine.views(missing) if missing else []
            errors = {view.id: error_of(view) for view in views}
        except ChappeError as error:  # deleted meanwhile
            errors = dict.fromkeys(missing, error)
        return [(futures[e.id], results.get(e.id) or errors[e.id]) for e in some]

    # --- on the executor's thread

    def _deliver(self) -> None:
        """Set the futures, until the executor is shut and none is left."""
        while (ends := self._ends.get()) is not None:
            for future, found in ends:
                self._settle(future, found)
            with self._idle:
                self._futures.difference_update(future for future, _ in ends)
                self._idle.notify_all()

    def _settle(self, future: JobFuture, found: ResultFile | BaseException | None) -> None:
        if found is None or isinstance(found, JobCancelled):
            Future.cancel(future)
        if future.told or (future.done() and not future.cancelled()):
            return  # by another way
        if not future.set_running_or_notify_cancel():
            future.told = True
        elif isinstance(found, ResultFile):
            try:
                future.set_result(values.load(found, future.job_id, self._engine.keyring()))
            except BaseException as error:  # noqa: BLE001 - whatever the function raised
                future.set_exception(error)
        else:
            future.set_exception(found)

    def _close(self) -> None:
        """Wait for the last future, then end what was begun."""
        with self._idle:
            self._idle.wait_for(lambda: not self._futures)
        atexit.unregister(self.shutdown)
        with suppress(Conflict):  # the client was closed
            self._client._run(self._stop())
        if self._owns:
            self._client.close()
        self._ends.put(None)

    async def _stop(self) -> None:
        self._ending = True
        self._todo.set()
        await asyncio.wait([self._server])
        for task in self._tasks:
            task.cancel()


def _broken(error: BaseException) -> JobFuture:
    future = JobFuture("", lambda _: None)
    future.set_exception(error)
    return future


def _results(futures: list[JobFuture], deadline: float | None) -> Iterator[Any]:
    """The results from the last to the first; what is not taken is cancelled."""
    try:
        while futures:
            left = None if deadline is None else deadline - time.monotonic()
            yield futures.pop().result(left)
    finally:
        for future in futures:
            future.cancel()
