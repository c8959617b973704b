"""The launcher's warm workers: processes that stay, and call one function after the other.

A worker is a run's main process for as long as its call lasts: all that holds for programs (limits, kills,
takeover, the end that is told only when nothing is left) holds for it. What is different is how a run begins
(a message instead of a spawn) and how it usually ends (a message instead of a death). A task for which there
is no worker is parked until its zygote has forked one. Workers are ours, not the zygote's (see `zygote`): a
zygote that dies is replaced when it is next needed, and no call notices.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from chappe.pilot.launch_timer import Deadlines, boot_now
from chappe.pilot.launch_wire import (
    Done,
    Environment,
    Forked,
    FrameError,
    FrameReader,
    Key,
    Ready,
    Task,
    Work,
    decode_done,
    decode_zygote,
    encode,
)
from chappe.pilot.reap import WARM, Reaper, kill_group
from chappe.pilot.spawn import Spawner, StartError

if TYPE_CHECKING:
    from chappe.pilot.launch_table import Run, Table

_READ_BYTES = 64 * 1024
_ZYGOTE_START_S = 120.0
_ZYGOTE_DEATHS = 3


class Kind(NamedTuple):
    """What makes workers alike: environment, OMP_NUM_THREADS, and whether each serves one call only."""

    environment: str
    threads: str
    own: bool


class Worker:
    """One worker; `run` is its call. `used` is what its calls so far took (user, system seconds)."""

    __slots__ = ("blocked", "connection", "kind", "pid", "reader", "run", "unsent", "used")

    def __init__(self, connection: socket.socket, kind: Kind, pid: int) -> None:
        self.connection = connection
        self.kind = kind
        self.pid = pid
        self.reader = FrameReader()
        self.run: Run | None = None
        self.unsent = memoryview(b"")
        self.blocked = False
        self.used = (0.0, 0.0)


class _Zygote:
    """One zygote: `asked` are the workers it is still to be asked for, `sent` those it is to fork."""

    def __init__(self, pid: int, control: socket.socket) -> None:
        self.pid = pid
        self.control = control
        self.reader = FrameReader()
        self.ready = False
        self.error = ""
        self.asked: deque[Kind] = deque()
        self.sent: deque[tuple[socket.socket, Kind]] = deque()


class Warm:
    """The workers of one launcher. `on_done` hears what a worker says of its call."""

    def __init__(
        self,
        spawner: Spawner,
        table: Table,
        reaper: Reaper,
        deadlines: Deadlines,
        on_done: Callable[[Worker, Done], None],
    ) -> None:
        self.environments: dict[str, Environment] = {}
        self.poll = select.epoll()
        """Readable, for an outer epoll, when a worker or a zygote has something to say."""
        self._spawner = spawner
        self._table = table
        self._reaper = reaper
        self._deadlines = deadlines
        self._on_done = on_done
        self._idle: dict[Kind, list[Worker]] = {}
        self._idle_most = max(4, 2 * len(os.sched_getaffinity(0)))
        self._busy: dict[Key, Worker] = {}
        self._parked: dict[Kind, deque[Key]] = {}
        self._zygotes: dict[tuple[str, str], _Zygote] = {}
        self._deaths: dict[tuple[str, str], int] = {}
        self._by_fd: dict[int, Worker | _Zygote] = {}

    @property
    def forking(self) -> bool:
        """Whether a new child of ours may be a worker of which no zygote has told us yet."""
        return any(zygote.sent for zygote in self._zygotes.values())

    # --- calls

    def take(self, task: Task) -> Worker | None:
        """A worker for `task`; without one the task is parked, and None. Raises StartError."""
        call = task.call
        if call is None or call.environment not in self.environments:
            raise StartError("the pilot knows no such environment of functions")
        kind = Kind(call.environment, task.env.get("OMP_NUM_THREADS", "1"), call.own_process)
        idle = self._idle.get(kind, [])
        while idle:
            worker = idle.pop()
            if _lives(worker.pid):
                return worker
            self._drop(worker)
        self._table.park(task)
        parked = self._parked.setdefault(kind, deque())
        parked.append(task.key)
        try:
            zygote = self._zygote(kind)
        except StartError as error:
            self._fail(kind[:2], error.message)
            return None
        coming = zygote.asked.count(kind) + sum(one == kind for _, one in zygote.sent)
        if coming < len(parked):
            zygote.asked.append(kind)
            self._ask(zygote)
        return None

    def begin(self, worker: Worker, run: Run) -> None:
        """Send a call to a worker that was taken."""
        worker.run = run
        self._busy[run.task.key] = worker
        work = Work(run.task, self._spawner.environment(run.task), self._spawner.shared_log)
        worker.unsent = memoryview(encode(work))
        self._flush(worker)

    def free(self, worker: Worker, *, keep: bool) -> None:
        """The call of a worker is over; `keep` if the worker may have another."""
        if worker.run is not None:
            del self._busy[worker.run.task.key]
        worker.run = None
        self._reaper.keep(worker.pid)
        if not keep:
            self._drop(worker)
            return
        self._put(worker)
        if sum(map(len, self._idle.values())) > self._idle_most:
            for others in self._idle.values():
                if others:
                    self._drop(others.pop(0))  # it sees the end of its connection, and ends
                    return

    def last_words(self, key: Key) -> tuple[Done | None, tuple[float, float]]:
        """The main process of a run ended: what it said of its call before, if it was a worker, and what
        its calls before this one had used (user, system seconds)."""
        worker = self._busy.pop(key, None)
        if worker is None:
            return None, (0.0, 0.0)
        worker.run = None
        said, _ = _read(worker)
        self._drop(worker)
        return said, worker.used

    def exited(self, pid: int) -> None:
        """A zygote or a worker without a call ended."""
        for kind, zygote in self._zygotes.items():
            if zygote.pid == pid:
                self._hear(zygote)
                self._replace(kind, zygote)
                return
        for workers in self._idle.values():
            for worker in workers:
                if worker.pid == pid:
                    workers.remove(worker)
                    self._drop(worker)
                    return

    def overdue(self, pid: int) -> None:
        """A zygote had its time to be ready."""
        for zygote in self._zygotes.values():
            if zygote.pid == pid and not zygote.ready:
                zygote.error = f"it was not ready within {_ZYGOTE_START_S:.0f} s"
                kill_group(pid, signal.SIGKILL)

    def serve(self) -> None:
        """Take in what workers and zygotes say."""
        for fd, mask in self.poll.poll(0):
            peer = self._by_fd.get(fd)
            if isinstance(peer, _Zygote):
                if self._hear(peer):
                    kill_group(peer.pid, signal.SIGKILL)
            elif peer is not None:
                if mask & select.EPOLLOUT:
                    self._flush(peer)
                if mask & ~select.EPOLLOUT:
                    self._listen(peer)

    # --- workers

    def _listen(self, worker: Worker) -> None:
        done, over = _read(worker)
        if done is not None:
            self._on_done(worker, done)
        elif over:
            # Its death tells the rest. A function that only closed our connection is ended for it.
            self._silence(worker)
            kill_group(worker.pid, signal.SIGKILL)

    def _flush(self, worker: Worker) -> None:
        try:
            while worker.unsent:
                worker.unsent = worker.unsent[worker.connection.send(worker.unsent) :]
        except BlockingIOError:
            worker.blocked = True
            self.poll.modify(worker.connection.fileno(), select.EPOLLIN | select.EPOLLOUT)
            return
        except OSError:
            return  # it died: the reaper tells
        if worker.blocked:
            worker.blocked = False
            self.poll.modify(worker.connection.fileno(), select.EPOLLIN)

    def _put(self, worker: Worker) -> None:
        self._idle.setdefault(worker.kind, []).append(worker)
        parked = self._parked.get(worker.kind)
        while parked:
            if self._table.unpark(parked.popleft()):
                return

    def _drop(self, worker: Worker) -> None:
        self._silence(worker)
        worker.connection.close()

    def _silence(self, worker: Worker) -> None:
        fd = worker.connection.fileno()
        if self._by_fd.pop(fd, None) is not None:
            self.poll.unregister(fd)

    # --- zygotes

    def _zygote(self, kind: Kind) -> _Zygote:
        found = self._zygotes.get(kind[:2])
        if found is not None:
            return found
        environment = self.environments[kind.environment]
        ours, theirs = socket.socketpair()
        with theirs:
            argv = [environment.python, "-P", "-m", "chappe.pilot.zygote"]
            argv += ["--recycle-calls", str(environment.recycle_calls)]
            argv += ["--recycle-bytes", str(environment.recycle_bytes)]
            for module in environment.preload:
                argv += ["--preload", module]
            env = {
                **environment.env,
                "OMP_NUM_THREADS": kind.threads,
                "CHAPPE_JOB_ID": WARM,
                "CHAPPE_EPOCH": "0",
            }
            try:
                pid = self._spawner.start_zygote(argv, env, theirs.fileno())
            except StartError:
                ours.close()
                raise
        self._reaper.keep(pid)
        self._deadlines.add(boot_now() + _ZYGOTE_START_S, (WARM, pid))
        zygote = self._zygotes[kind[:2]] = _Zygote(pid, ours)
        ours.setblocking(False)
        self._by_fd[ours.fileno()] = zygote
        self.poll.register(ours.fileno(), select.EPOLLIN)
        return zygote

    def _ask(self, zygote: _Zygote) -> None:
        while zygote.ready and zygote.asked:
            ours, theirs = socket.socketpair()
            with theirs:
                try:
                    socket.send_fds(zygote.control, [b"f"], [theirs.fileno()])
                except OSError:
                    ours.close()
                    return  # it is dying, and its successor will be asked
            ours.setblocking(False)
            zygote.sent.append((ours, zygote.asked.popleft()))

    def _hear(self, zygote: _Zygote) -> bool:
        """Take in what a zygote says; whether it will say no more."""
        try:
            data = zygote.control.recv(_READ_BYTES)
            frames = [decode_zygote(payload) for payload in zygote.reader.feed(data)]
        except (BlockingIOError, InterruptedError):
            return False
        except (FrameError, OSError):
            data, frames = b"", []
        for frame in frames:
            match frame:
                case Ready(error):
                    zygote.error = error
                    zygote.ready = not error
                case Forked(pid):
                    self._forked(zygote, pid)
        self._ask(zygote)
        if not data and self._by_fd.pop(zygote.control.fileno(), None) is not None:
            self.poll.unregister(zygote.control.fileno())
        return not data

    def _forked(self, zygote: _Zygote, pid: int) -> None:
        connection, kind = zygote.sent.popleft()
        self._deaths.pop(kind[:2], None)
        worker = Worker(connection, kind, pid)
        if not _lives(pid):
            connection.close()
            zygote.asked.append(kind)
            return
        self._reaper.keep(pid)
        self._by_fd[connection.fileno()] = worker
        self.poll.register(connection.fileno(), select.EPOLLIN)
        self._put(worker)

    def _replace(self, kind: tuple[str, str], zygote: _Zygote) -> None:
        """A zygote ended: another one forks what it was asked for, unless none can."""
        del self._zygotes[kind]
        if self._by_fd.pop(zygote.control.fileno(), None) is not None:
            self.poll.unregister(zygote.control.fileno())
        zygote.control.close()
        for connection, _ in zygote.sent:
            connection.close()
        wanted = [one for _, one in zygote.sent] + list(zygote.asked)
        deaths = self._deaths[kind] = self._deaths.get(kind, 0) + 1
        if zygote.error or deaths >= _ZYGOTE_DEATHS:
            self._fail(kind, zygote.error or f"its zygote died {deaths} times, see shared.log")
            return
        try:
            for one in wanted:
                self._zygote(one).asked.append(one)
        except StartError as error:
            self._fail(kind, error.message)

    def _fail(self, kind: tuple[str, str], why: str) -> None:
        """No worker will come for these."""
        self._deaths.pop(kind, None)
        at = time.time()
        message = f"the environment {kind[0]!r} cannot be used: {why}"
        for one, keys in self._parked.items():
            if one[:2] == kind:
                for key in keys:
                    self._table.fail_parked(key, message, at)
                keys.clear()


def _read(worker: Worker) -> tuple[Done | None, bool]:
    """What a worker said, if it did; and whether its connection is at an end."""
    try:
        data = worker.connection.recv(_READ_BYTES)
        for payload in worker.reader.feed(data):
            return decode_done(payload), False
    except (BlockingIOError, InterruptedError):
        return None, False
    except (FrameError, OSError):
        return None, True
    return None, not data


def _lives(pid: int) -> bool:
    """Whether `pid` is a child of ours that has not ended."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    except ChildProcessError:
        return False
