"""What the routes share: the store seen from the event loop, who waits for what, and whether we stop.

Writes go to the writer's thread and are awaited; reads go to as many threads as the store has readers.
After each commit the writer hands over what changed (`Effects`); here that becomes hints on the loop,
gathered so that a burst of commits costs one call.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from sqlalchemy.exc import DataError, DBAPIError, InterfaceError, OperationalError

from chappe.bus.workers import Workers
from chappe.core import limits
from chappe.core.errors import Busy, ChappeError, Invalid, Unavailable
from chappe.hub.auth import Auth
from chappe.hub.ingest import Intake
from chappe.hub.live import Streams
from chappe.hub.liveness import Liveness
from chappe.hub.metrics import Metrics
from chappe.hub.passwords import Passwords
from chappe.hub.polls import Polls
from chappe.hub.wishes import Wishes
from chappe.store.db import READERS, Store
from chappe.store.principal import find
from chappe.store.tx import Effects

if TYPE_CHECKING:
    from chappe.bus.amqp_link import Standing

T = TypeVar("T")
P = ParamSpec("P")

#: Reads that may wait for a reader before the Hub says that it is busy.
READS_WAITING = 2_000
#: Bytes of request bodies held at once.
BODIES_BYTES = 8 * limits.BODY_BYTES


class Hub:
    """The running service, on its event loop. `start` it there, `stop` it before the store is closed."""

    def __init__(self, store: Store, clock: Callable[[], float], boot: Callable[[], float]) -> None:
        self.store = store
        self.clock = clock
        self.polls = Polls()
        self.wishes = Wishes(self.polls, clock)
        self.metrics = Metrics()
        self.streams = Streams(self)
        self.liveness = Liveness(boot, clock)
        self.auth = Auth(lambda token: self.read(find, token), clock)
        self.passwords = Passwords(boot)
        #: Messages, by whichever door.
        #: Links to message brokers, by name (hub.amqp).
        self.links: dict[str, Standing] = {}
        self.intake = Intake(self.write, clock)
        self.due = asyncio.Event()
        self.acts = asyncio.Event()
        self.unsettled = asyncio.Event()
        self.stopping = asyncio.Event()
        #: Who takes from the bus, while they run; who waits for a message that goes through it, by its id.
        self.workers: Workers | None = None
        self.checks: dict[str, asyncio.Future[None]] = {}
        self.bodies_bytes = 0
        #: The database refused to write, and nobody has tried since whether it does again.
        self.in_trouble = False
        #: By Site: its agent, and what that was told that stays true for long (see routes.sites).
        self.agents_told: dict[int | None, tuple[str, frozenset[str]]] = {}
        self._reads = 0
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="chappe-read")
        self._preparer = ThreadPoolExecutor(1, thread_name_prefix="chappe-prepare")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()
        self._effects: Effects | None = None

    def start(self) -> None:
        """Begin to listen to the writer. Called on the event loop."""
        self._loop = asyncio.get_running_loop()
        self.store.writer.on_commit = self._committed

    def stop(self) -> None:
        """Answer everybody who waits. May be called twice."""
        self.stopping.set()
        self.polls.stop()
        self.streams.stop()

    def close(self) -> None:
        """Cease to listen to the writer, and end the threads. After the last request."""
        self.store.writer.on_commit = lambda _effects: None
        self.passwords.close()
        self._readers.shutdown(cancel_futures=True)
        self._preparer.shutdown(cancel_futures=True)

    async def write(self, fn: Callable[..., T], *args: Any, bulk: bool = False) -> T:
        """Run `fn(tx, *args)` on the writer's thread; its value, once it is committed."""
        command = self.store.writer.submit(fn, *args, bulk=bulk)
        return await self.answer(asyncio.wrap_future(command))

    async def answer(self, future: asyncio.Future[T]) -> T:
        """What the writer answers to a command, once it is committed."""
        try:
            return await future
        except DBAPIError as e:
            self.in_trouble = True
            raise in_words(e) from e

    async def read(self, fn: Callable[..., T], *args: Any) -> T:
        """Run `fn(conn, *args)` in a snapshot, on a reader's thread. Busy when too many wait."""
        if self._reads >= READS_WAITING:
            raise Busy("too many reads wait; try again in a moment")
        self._reads += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._readers, self.store.read, fn, *args
            )
        except DBAPIError as e:
            raise in_words(e) from e
        finally:
            self._reads -= 1

    async def prepare(self, fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a long computation beside the loop, one at a time."""
        return await asyncio.get_running_loop().run_in_executor(
            self._preparer, lambda: fn(*args, **kwargs)
        )

    # -- hints -------------------------------------------------------------------------------------

    def _committed(self, effects: Effects) -> None:
        """Called on the writer's thread after each commit, before the commit is answered."""
        with self._lock:
            waiting = self._effects
            if waiting is not None:
                _merge(waiting, effects)
                return
            self._effects = effects
        assert self._loop is not None  # noqa: S101 - set by start(), which is what installed this
        self._loop.call_soon_threadsafe(self._dispatch)

    def _dispatch(self) -> None:
        with self._lock:
            effects, self._effects = self._effects, None
        if effects is None:
            return
        if effects.revoked:
            self.auth.revoked(effects.revoked)
            self.streams.cut(effects.revoked)
        self.polls.hint(("work", n) for n in effects.work)
        self.polls.hint(("waiting", n) for n in effects.work | effects.left)
        self.polls.hint(("session", id) for id in effects.kill)
        self.polls.hint(("agent", n) for n in effects.agents)
        self.streams.hint(effects.events, effects.ends)
        if effects.queues and self.workers is not None:
            self.workers.hint(effects.queues)
        if effects.unsettled:
            self.unsettled.set()
        if effects.acts:
            self.polls.hint(("act", n) for n in effects.acts)
            self.acts.set()
        if effects.due:
            self.due.set()


def _merge(into: Effects, more: Effects) -> None:
    into.events.update(more.events)
    into.ends |= more.ends
    into.work |= more.work
    into.left |= more.left
    into.kill |= more.kill
    into.agents |= more.agents
    into.revoked |= more.revoked
    into.acts |= more.acts
    into.queues |= more.queues
    into.unsettled = into.unsettled or more.unsettled
    into.due = into.due or more.due


def in_words(error: DBAPIError) -> ChappeError:
    """A failure of the database as an error that the caller can act on."""
    words = str(error.orig).strip()
    if isinstance(error, DataError):
        return Invalid(f"the database cannot store this: {words.splitlines()[0]}")
    if isinstance(error, OperationalError | InterfaceError) or error.connection_invalidated:
        if any(full in words for full in ("disk is full", "disk I/O", "No space left")):
            return Unavailable(
                "the hub's disk is full or failing: nothing was changed; free some space there",
                code="disk_full",
            )
        return Unavailable(f"the hub's database does not answer: {words}", code="database")
    raise error
