"""The launcher's event loop: one thread that waits in one place, for whatever comes first.

What can come: a child ended (SIGCHLD writes a byte to a pipe), the head connected, spoke or went, a deadline
passed. Each turn handles all that came and tells the head in one frame. While tasks wait in lanes the
launcher has work to go on with and gathers events for up to 12 ms; otherwise it tells at once, since the head
may be waiting for just that.

The guard: without a head the launcher keeps its runs for `head_grace_s`, or until the time that a distant
head last allowed (`Keep`), which counts even while a hand is connected. If none comes by then it ends every
process that carries the Session's mark, wherever it hides, and exits.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from math import inf

from chappe.core.errors import Unavailable
from chappe.core.faults import reach
from chappe.pilot.launch_link import HeadLink, peer
from chappe.pilot.launch_runs import Runs, log
from chappe.pilot.launch_table import Table
from chappe.pilot.launch_timer import Deadlines, boot_now
from chappe.pilot.launch_wire import (
    Ack,
    BaseEnv,
    FrameError,
    HeadFrame,
    Keep,
    Key,
    Kill,
    Renew,
    Snapshot,
    Start,
    Stop,
    Withdraw,
)
from chappe.pilot.procs import kill_marked, signal_marked

CRASH_POINTS = (
    "launcher.before_spawn",
    "launcher.after_spawn",
    "launcher.after_reap",
    "launcher.before_send",
    "launcher.after_ack",
)
"""Where a test may kill the launcher (see `core.faults`)."""

_GATHER_S = 0.012
_GATHER_EVENTS = 64
_END_GRACE_S = 5.0
_GUARD: Key = ("", -1)


class Launcher:
    """Starts and reaps the processes of one Session on this node."""

    def __init__(
        self, session: str, listener: socket.socket, head_grace_s: float, node: str = ""
    ) -> None:
        self._session = session
        self._node = node
        self._listener = listener
        self._head_grace_s = head_grace_s
        self._table = Table()
        self._deadlines = Deadlines()
        self._runs = Runs(session, self._table, self._deadlines, node)
        self._head: HeadLink | None = None
        self._snapshot: Iterator[Snapshot] = iter(())
        self._gather_until: float | None = None
        self._stop: Stop | None = None
        self._ending = False  # the guard's verdict: no head will be heard any more
        self._guard_at = inf
        self._keep_until: float | None = None
        listener.setblocking(False)
        self._wakeup = _wakeup_pipe()
        self._epoll = select.epoll()
        for fd in (self._wakeup, self._deadlines.fd, self._runs.warm.poll.fileno()):
            self._epoll.register(fd, select.EPOLLIN)
        self._await_head()

    def run(self) -> None:
        """Serve until told to stop, or until no head comes within the grace."""
        log("launcher.started", session=self._session)
        while not self._finished():
            ready = dict(self._epoll.poll(self._timeout_s()))
            if self._wakeup in ready:
                self._on_signals()
            if self._head is not None:
                self._on_head(self._head, ready)
            elif self._listener.fileno() in ready:
                self._accept()
            if self._runs.warm.poll.fileno() in ready:
                self._runs.warm.serve()
            if self._deadlines.fd in ready:
                self._on_deadlines()
            if self._table.ready:
                self._runs.start_ready()
                self._compact_deadlines()
            self._report()
        log("launcher.exit", session=self._session)

    def _finished(self) -> bool:
        if self._table.runs or self._table.waiting:
            return False
        if self._ending:
            try:
                kill_marked(self._session, lambda _: True, self._node)
            except Unavailable as error:
                log("launcher.leftovers", error=error.message)
            self._runs.clear_scratch()
            return True
        if self._stop is None or self._head is None or self._head.blocked:
            return False
        return self._table.unsent == 0

    def _timeout_s(self) -> float | None:
        if self._table.ready:
            return 0.0
        if self._gather_until is not None:
            return max(0.0, self._gather_until - time.monotonic())
        return None

    # The head

    def _await_head(self) -> None:
        if self._ending:
            return
        self._guard_at = self._keep_until or boot_now() + self._head_grace_s
        self._deadlines.add(self._guard_at, _GUARD)
        self._epoll.register(self._listener.fileno(), select.EPOLLIN)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError as error:  # it went again, or we are out of descriptors
            log("launcher.accept_failed", error=str(error))
            return
        if peer(connection)[1] != os.getuid():
            connection.close()
            return
        head = HeadLink(connection)
        self._head = head
        self._guard_at = self._keep_until or inf
        self._snapshot = self._table.snapshot(self._session, os.getpid())
        # The next head waits in the backlog until this one has been read to its end.
        self._epoll.unregister(self._listener.fileno())
        self._epoll.register(head.fd, select.EPOLLIN)
        if head.pidfd >= 0:
            self._epoll.register(head.pidfd, select.EPOLLIN)
        log("launcher.head_connected", head=head.pid, running=len(self._table.runs))

    def _on_head(self, head: HeadLink, ready: dict[int, int]) -> None:
        mask = ready.get(head.fd, 0)
        dead = head.pidfd in ready
        if mask & select.EPOLLOUT and head.flush():
            self._epoll.modify(head.fd, select.EPOLLIN)
        if not dead and not mask & ~select.EPOLLOUT:
            return
        try:
            for frame in head.receive():
                self._obey(frame)
        except FrameError as error:
            log("launcher.bad_frame", error=error.message)
            head.closed = True
        if head.closed or dead:
            self._lose(head)

    def _lose(self, head: HeadLink) -> None:
        self._epoll.unregister(head.fd)
        if head.pidfd >= 0:
            self._epoll.unregister(head.pidfd)
        head.close()
        self._head = None
        self._stop = None
        self._snapshot = iter(())
        self._await_head()
        log("launcher.head_gone", head=head.pid, running=len(self._table.runs))

    def _obey(self, frame: HeadFrame) -> None:
        match frame:
            case Start():
                for task in frame.tasks:
                    if self._stop is None:
                        self._table.add(task)
                    else:
                        self._table.refuse(task, "stopping")
            case Ack():
                self._table.ack(frame.keys)
                reach("launcher.after_ack")
            case Kill():
                self._runs.kill(frame.orders)
            case Withdraw():
                for key in frame.keys:
                    self._table.withdraw(key, "withdrawn")
            case Renew():
                for job, epoch, deadline in frame.deadlines:
                    self._runs.renew((job, epoch), deadline)
            case Keep():
                self._keep_until = self._guard_at = frame.until
                self._deadlines.add(self._guard_at, _GUARD)
            case BaseEnv():
                self._runs.set_base(frame)
            case Stop():
                self._begin_stop(frame)

    def _begin_stop(self, stop: Stop) -> None:
        self._stop = stop
        self._table.withdraw_all("stopping")
        if stop.kill:
            self._runs.kill_all(stop.reason, stop.grace_s)

    def _report(self) -> None:
        head = self._head
        if head is None:
            self._table.drop_events()
            self._gather_until = None
            return
        if head.blocked:
            return
        if not self._tell(head):
            self._epoll.modify(head.fd, select.EPOLLIN | select.EPOLLOUT)

    def _tell(self, head: HeadLink) -> bool:
        """Send what there is to say; False when the socket takes no more."""
        for part in self._snapshot:
            if not head.send(part):
                return False
        while self._table.unsent and not self._gathering():
            reach("launcher.before_send")
            if not head.send(self._table.take_events()):
                return False
        return True

    def _gathering(self) -> bool:
        """Whether to hold events back a little, because more will come without the head's doing."""
        if self._table.waiting and self._table.unsent < _GATHER_EVENTS:
            now = time.monotonic()
            until = self._gather_until
            if until is None:
                until = self._gather_until = now + _GATHER_S
            if now < until:
                return True
        self._gather_until = None
        return False

    # Signals and deadlines

    def _on_signals(self) -> None:
        signals = os.read(self._wakeup, 65536)
        self._runs.reap()
        if signal.SIGTERM in signals:
            # The batch system ends the allocation, or somebody ends us: as if the head had said so.
            log("launcher.sigterm", running=len(self._table.runs))
            self._begin_stop(Stop(kill=True, reason="allocation_end", grace_s=_END_GRACE_S))
            if self._head is None:
                self._begin_ending()

    def _on_deadlines(self) -> None:
        keys = dict.fromkeys(self._deadlines.due(boot_now()))
        if _GUARD in keys and boot_now() >= self._guard_at:
            self._begin_ending()
        self._runs.expire(keys)

    def _compact_deadlines(self) -> None:
        if self._deadlines.bloated(len(self._table.runs)):
            self._deadlines.clear()
            self._deadlines.add(self._guard_at, _GUARD)
            self._runs.watch_all()

    def _begin_ending(self) -> None:
        """No head came: end everything of this Session, then exit."""
        if self._ending:
            return
        log("launcher.guard", session=self._session, running=len(self._table.runs))
        self._ending = True
        self._guard_at = inf
        with suppress(FileNotFoundError):
            os.unlink(self._listener.getsockname())
        if self._head is None:
            self._epoll.unregister(self._listener.fileno())
        self._listener.close()
        self._table.withdraw_all("stopping")
        self._runs.kill_all("allocation_end", _END_GRACE_S)
        signal_marked(self._session, lambda _: True, signal.SIGTERM, self._node)


def _wakeup_pipe() -> int:
    """The end to read of a pipe that gets a byte for each SIGCHLD and SIGTERM."""
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    # A full pipe already wakes us, and children are found by waitid, not by counting bytes.
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for signum in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(signum, lambda *_: None)
    return reading
