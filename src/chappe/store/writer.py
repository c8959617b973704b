"""The one writer: a thread that merges waiting commands into one transaction (group commit).

A durable commit costs an fsync, so commands share one: whatever waits when the thread is free is
executed in order, committed once, then answered. There is no gathering delay; under load the fsync
itself is the gathering. Bulk commands (large creates) wait in a lane of their own and are committed one at
a time, when nothing quick waits, so that a small acquire stands behind one large create at most.

What stays until there is work for it (store.standing) is run in the transaction that makes the work. Its
first look may be patient: then it waits a moment for others, or goes along with whatever is quick, because
thousands of idle pilots would else cost a commit each.

A group in which one command fails unexpectedly is rolled back and retried command by command. A command
that refuses (a ChappeError before its first write) harms nobody and is answered with its refusal. Where the
database's connection may break, the `Line` knows what became of the group (store.line).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import structlog
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from chappe.core import faults, limits
from chappe.core.errors import Busy, ChappeError, Unavailable
from chappe.store import catalog as catalogs
from chappe.store.line import After, Line, Superseded
from chappe.store.standing import Command, Standing, Stay
from chappe.store.tx import Effects, Tx

T = TypeVar("T")

#: How many groups of quick commands may go before a bulk command that waits.
PASSES = 4
#: So long may those wait that have patience. What somebody waits for takes them along at once.
PATIENCE_S = 0.05
#: How often a group is tried that met a deadlock, a lock's time-out or a lost connection.
TRIES = 3

CRASH_POINTS = ("hub.before_commit", "hub.after_commit", "hub.after_answer")

log = structlog.get_logger("chappe.store.writer")


class _Failed(NamedTuple):
    """Why a transaction failed, what came of it, and whether others than its group had a part in it."""

    error: Exception
    after: After
    served: bool


#: What a command came to: its value, or the refusal that it raised.
_Answers = dict[Command, tuple[Any, BaseException | None]]


@dataclass(slots=True)
class WriterStats:
    """Counters for /metrics: commits, commands, rollbacks, and seconds spent in transactions."""

    commits: int = 0
    commands: int = 0
    rollbacks: int = 0
    busy_s: float = 0.0
    largest_group: int = 0


class Writer:
    """Runs commands `fn(tx, *args)` on its thread; `submit` returns a future set after the commit.

    `mark(incarnation, commit_no)` is called after each commit that wrote anything.
    """

    def __init__(
        self, line: Line, clock: Callable[[], float], mark: Callable[[int, int], None]
    ) -> None:
        self._line = line
        self._clock = clock
        self._mark = mark
        self._quick: deque[Command] = deque()
        self._bulk: deque[Command] = deque()
        self._patient: deque[Command] = deque()
        self._patient_until = 0.0
        self._hurry = False
        self.standing = Standing()
        self._wake = threading.Condition()
        self._stopping = False
        self._reload = False
        self._passed = 0
        self.on_commit: Callable[[Effects], None] = lambda _effects: None
        #: Called once, on the writer's thread, when another Hub writes the database and this one must not.
        self.on_superseded: Callable[[], None] = lambda: None
        self._over: Superseded | None = None
        self.stats = WriterStats()
        self._shared: dict[str, int] = {}
        with line.connection().begin():
            self.catalog = catalogs.load(line.connection())
        line.known(self.catalog.incarnation, self.catalog.commit_no)
        #: Per project, the highest *committed* seq: readers never go beyond it.
        self.heads = {p: n - 1 for p, n in self.catalog.next_seq.items()}
        self._thread = threading.Thread(target=self._run, name="chappe-writer", daemon=True)
        self._thread.start()

    def submit(self, fn: Callable[..., T], *args: Any, bulk: bool = False) -> Future[T]:
        """Queue `fn(tx, *args)`. Raises Busy when the queue is full, Unavailable when stopping."""
        future: Future[T] = Future()
        self._queue(Command(fn, args, future), self._bulk if bulk else self._quick)
        return future

    def stand(self, stay: Stay, fn: Callable[..., T], *args: Any, patient: bool = False) -> Command:
        """Queue `fn(tx, *args)`, whose answer may be long in coming: see Stay. `leave` ends the wait. With
        `patient` its first run may come up to PATIENCE_S later. Raises like `submit`."""
        command = Command(fn, args, Future(), stay)
        self._queue(command, self._patient if patient else self._quick)
        return command

    def leave(self, command: Command) -> None:
        """Nobody waits for more than there is: have what stands answered now, or as soon as it was run."""
        self.standing.leave(command)
        if not command.future.done():
            with self._wake:
                self._hurry = bool(self._patient)
                self._wake.notify()

    def _queue(self, command: Command, lane: deque[Command]) -> None:
        with self._wake:
            if self._over is not None:
                raise self._over
            if self._stopping:
                raise Unavailable("the hub is stopping; try again in a moment")
            if self.depth >= limits.WRITER_QUEUE:
                raise Busy("the hub's write queue is full; try again in a moment")
            lane.append(command)
            if lane is not self._patient:
                self._wake.notify()
            elif len(lane) == 1:
                self._patient_until = time.monotonic() + PATIENCE_S
                self._wake.notify()

    @property
    def depth(self) -> int:
        """How many commands wait."""
        return len(self._quick) + len(self._bulk) + len(self._patient)

    @property
    def superseded(self) -> bool:
        """Whether another Hub has taken the database over."""
        return self._over is not None

    def stop(self) -> None:
        """Finish what is queued, then end the thread."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._quick or self._bulk or self._stopping) and self._has_time():
                    left_s = self._patient_until - time.monotonic() if self._patient else None
                    self._wake.wait(left_s)
                group = self._next_group()
            if not group:
                return
            group = [c for c in group if c.future.set_running_or_notify_cancel()]
            if not group:
                continue
            started = time.perf_counter()
            self._commit(group)
            self.stats.busy_s += time.perf_counter() - started
            self.stats.largest_group = max(self.stats.largest_group, len(group))

    def _has_time(self) -> bool:
        """Whether nobody is in a hurry: those that have patience are none, or may wait."""
        return not self._patient or (not self._hurry and time.monotonic() < self._patient_until)

    def _next_group(self) -> list[Command]:
        """All quick commands or one bulk command, and those that have patience.

        An acquire that shared its transaction with a create of 1 000 Jobs would wait for all of it. After
        PASSES groups that passed it, a bulk command has its turn.
        """
        group = list(self._patient)
        self._patient.clear()
        self._hurry = False
        if self._bulk and (not self._quick or self._passed >= PASSES):
            self._passed = 0
            return [*group, self._bulk.popleft()]
        self._passed += bool(self._bulk)
        group += self._quick
        self._quick.clear()
        return group

    def _commit(self, group: list[Command], *, serve: bool = True) -> None:
        """Execute a group in one transaction; if it fails, each command in one of its own, without what
        stays: that may be what fails, and a hint will have it look."""
        for _ in range(TRIES):
            if self._over is not None:
                self._refuse(group, self._over)
                return
            failed = self._try(group, serve)
            if failed is None:
                return
            error, after, served = failed
            self.stats.rollbacks += 1
            if isinstance(error, Superseded):
                self._end(error)
                continue
            self._forget()
            if after is not After.AGAIN:
                break
        if len(group) > 1 or served:
            for command in group:
                self._commit([command], serve=False)
            return
        if not isinstance(error, ChappeError):
            log.error("command failed", command=group[0].fn.__name__, exc_info=error)
        self._refuse(group, error)

    def _try(self, group: list[Command], serve: bool) -> _Failed | None:
        """Execute a group in one transaction and answer it; else why not, and what came of it."""
        tx = None
        served = False
        answers: _Answers = {}
        try:
            conn = self._line.connection()
            with conn.begin():
                if self._reload:
                    self._load(conn)
                tx = Tx(conn, self.catalog, self._clock(), time.clock_gettime(time.CLOCK_BOOTTIME))
                for command in group:
                    answers[command] = self._execute(tx, command, command.fn)
                if serve and tx.effects.work:
                    served = True  # as long as it is not known
                    served = self._serve(tx, answers)
                tx.flush()
                if tx.written:
                    self._line.before_commit(self.catalog.incarnation, self.catalog.commit_no)
                faults.reach("hub.before_commit")
            self._line.committed()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is answered to those who asked
            after = self._line.after(error)
            if tx is None or after is not After.COMMITTED:
                for command in answers:
                    self.standing.fail(command)
                return _Failed(error, after, served)
        faults.reach("hub.after_commit")
        if tx.written:
            self._mark(self.catalog.incarnation, self.catalog.commit_no)
        self.heads.update(tx.effects.events)
        self.stats.commits += 1
        self.stats.commands += len(group)
        self._tell(tx.effects)
        for command, (value, refusal) in answers.items():
            if refusal is None:
                self.standing.settle(command, value)
            else:
                self.standing.refuse(command, refusal)
        faults.reach("hub.after_answer")
        return None

    def _end(self, error: Superseded) -> None:
        """Another Hub writes this database: refuse what is asked, from now on."""
        self._over = error
        log.error("another hub has taken over", reason=error.message)
        self.on_superseded()

    @staticmethod
    def _refuse(group: list[Command], error: Exception) -> None:
        for command in group:
            command.future.set_exception(error)

    def _forget(self) -> None:
        """After a rollback: what is in memory may be of a past that never was, so read it anew."""
        self._reload = True
        try:
            conn = self._line.connection()
            with conn.begin():
                self._load(conn)
        except (DBAPIError, Unavailable):
            # A disk that fails now fails the next transaction too, which begins by reading again.
            log.exception("cannot read the catalog")

    def share(self, named: dict[str, int]) -> None:
        """Count these things, such as licences, over all Sites: there are so many of each."""
        self._shared = named
        self.catalog.shared = named

    def _load(self, conn: Connection) -> None:
        self.catalog = catalogs.load(conn)
        self.catalog.shared = self._shared
        self._reload = False

    def _tell(self, effects: Effects) -> None:
        """Hints: whoever waits reads the truth again some day, so a failure here stops nobody."""
        try:
            self.on_commit(effects)
        except Exception:
            log.exception("a hint was lost")

    def _serve(self, tx: Tx, answers: _Answers) -> bool:
        """Have those look, within this transaction, that stay for a Site for which it made work. Sites where
        no other pilot need look are struck from the hints; what is left there, an agent may want to know.
        Whether any looked."""
        served = False
        for site in tuple(tx.effects.work):
            more = self.standing.has_more(site)
            stayed = self.standing.begin(site)
            here = [c for c, (value, no) in answers.items() if not no and c.stays_for(site, value)]
            answers.update((command, (command.answer, None)) for command in stayed)
            for command in (*here, *stayed):
                if command.stay is not None and tx.has_work(site):
                    answers[command] = self._execute(tx, command, command.stay.fn)
                    served = True
            if not tx.has_work(site):
                tx.effects.work.discard(site)
            elif not more:
                tx.effects.work.discard(site)
                tx.effects.left.add(site)
        return served

    @staticmethod
    def _execute(
        tx: Tx, command: Command, fn: Callable[..., Any]
    ) -> tuple[Any, BaseException | None]:
        """Run one command. A refusal before its first write is an answer; after it, the group fails."""
        tx.dirty = False
        try:
            answer = (fn(tx, *command.args), None)
        except ChappeError as refusal:
            if tx.dirty:
                raise
            return (None, refusal)
        finally:
            tx.written = tx.written or tx.dirty
        return answer
