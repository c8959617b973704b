"""The head's side of its hands: it listens, starts them, hears them, and knows when a node is lost.

A hand that is cut off may still have Jobs, so its silence proves nothing. But every few seconds the head
allows each launcher to go on until a time of its own choice (`Keep`), and past the last of these times a
launcher ends what it runs, whoever is frozen or cut off. Then, and a little later, the node is *lost*: its
Jobs are over. It is lost at once when nothing is left of it, as far as somebody can say.
"""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import Process
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from structlog.types import FilteringBoundLogger

from chappe.core.errors import ChappeError
from chappe.link import pinned
from chappe.link.clock import boottime, now
from chappe.pilot import hand_wire as wire
from chappe.pilot.hand_wire import Hello
from chappe.pilot.hosts import Hosts
from chappe.pilot.keeper import place_file
from chappe.pilot.launch_wire import Events, FrameError, HeadFrame, Keep, Snapshot, Stop
from chappe.pilot.log import LogFile
from chappe.pilot.session import Session

KEEP_EVERY_S = 5.0
SILENCE_S = 30.0
KNOWN_S = 10.0
"""So long a head that was started again waits to hear from all nodes before it goes on with those it has."""
LOST_MARGIN_S = 10.0
"""From the time that a launcher was allowed to the time when nothing is left: TERM, KILL, and some more."""

_START_PAUSE_S = 1.0
_START_PAUSE_MOST_S = 60.0
"""From one start of a hand to the next, the longer the more often it did not last."""
_REJOIN_S = 5.0
_HELLO_S = 20.0
_STOP_S = 30.0


class Listener(Protocol):
    """Who hears of the nodes."""

    def joined(self, hello: Hello, snapshot: Snapshot, *, same: bool) -> None:
        """A hand is there; `same` if its launcher is the one that was there before."""

    def heard(self, node: str, events: Events) -> None:
        """Something happened on a node."""

    def cut(self, node: str) -> None:
        """A hand is out of reach."""

    def lost(self, node: str, cause: str) -> None:
        """Nothing that was started on this node is left."""


class _Remote:
    """One further node, as far as the head knows it. `keep_until` is when its launcher ends what it has."""

    def __init__(self, name: str, keep_until: float | None) -> None:
        self.name = name
        self.keep_until = keep_until
        self.writer: asyncio.StreamWriter | None = None
        self.launcher = 0
        self.lost = False
        self.process: Process | None = None
        self.started_at = -_START_PAUSE_MOST_S
        self.pause_s = 0.0
        self.changed = asyncio.Event()


class Hands:
    """All hands of one allocation."""

    def __init__(
        self,
        session: Session,
        directory: Path,
        hosts: Hosts,
        listener: Listener,
        log: FilteringBoundLogger,
        file: LogFile,
    ) -> None:
        self._session = session
        self._directory = directory
        self._hosts = hosts
        self._listener = listener
        self._log = log
        self._file = file
        self._grace_s = session.options.head_grace_s
        self._silence_s = min(SILENCE_S, max(2.0, self._grace_s / 2))
        self._remotes: dict[str, _Remote] = {}
        self._server: asyncio.Server | None = None
        self._served: set[asyncio.StreamWriter] = set()
        self._stopping = False

    async def open(self, *, again: bool) -> None:
        """Listen; with `again` wait for all that a predecessor may have left. Raises Unavailable, OSError."""
        wire.make_certificate(self._directory, now())
        # What the head before us allowed, it allowed before now.
        until = boottime() + self._grace_s if again else None
        # A node that never had a launcher, or was lost with it, has nothing to tell.
        self._remotes = {
            name: _Remote(name, until if place_file(self._directory, name).exists() else None)
            for name in self._hosts.names[1:]
        }
        local = self._hosts.address(self._hosts.names[0])
        tls = wire.tls(self._directory, server=True)
        # On all interfaces, since nobody knows which the others can reach; only our own certificate is taken.
        everywhere = "0.0.0.0"  # noqa: S104
        self._server = await asyncio.start_server(self._serve, local or everywhere, 0, ssl=tls)
        port = self._server.sockets[0].getsockname()[1]
        addresses = pinned.addresses() if local is None else [local]
        wire.write_place(self._directory, wire.HeadPlace(addresses, port))

    async def run(self) -> None:
        """Start hands that are missing and keep those that are there, for ever."""
        tasks = [asyncio.create_task(self._tend(remote)) for remote in self._remotes.values()]
        try:
            while True:
                for remote in self._remotes.values():
                    self._keep(remote)
                done, _ = await asyncio.wait(
                    tasks,
                    timeout=min(KEEP_EVERY_S, self._grace_s / 4),
                    return_when=asyncio.FIRST_COMPLETED,
                )
                for task in done:
                    task.result()
        finally:
            for task in tasks:
                task.cancel()

    async def all_known(self) -> None:
        """Wait until each node that may have Jobs is there, or lost; but not for long, for a node that died
        with the head before us is lost only when all that it may have been allowed has passed."""
        with suppress(TimeoutError):
            async with asyncio.timeout(KNOWN_S):
                for remote in self._remotes.values():
                    while _is_missing(remote):
                        remote.changed.clear()
                        await remote.changed.wait()

    def missing(self) -> set[str]:
        """The nodes that may have Jobs, and are neither there nor lost."""
        return {remote.name for remote in self._remotes.values() if _is_missing(remote)}

    def send(self, node: str, frame: HeadFrame) -> bool:
        """Give an order; False when the hand is out of reach."""
        remote = self._remotes.get(node)
        if remote is None or remote.writer is None:
            return False
        remote.writer.write(wire.encode(frame))
        return True

    async def stop(self, *, kill: bool) -> None:
        """Let all hands end; those out of reach end by themselves."""
        self._stopping = True
        for remote in self._remotes.values():
            self.send(remote.name, Stop(kill, "allocation_end", 0.0))
        with suppress(TimeoutError):
            async with asyncio.timeout(_STOP_S):
                for remote in self._remotes.values():
                    while remote.writer is not None:
                        remote.changed.clear()
                        await remote.changed.wait()
        self._close()
        (self._directory / wire.FILE).unlink(missing_ok=True)

    def leave(self) -> None:
        """Let the hands wait for another head."""
        self._stopping = True
        self._close()

    # --- inside

    def _close(self) -> None:
        if self._server is not None:
            self._server.close()
        for writer in self._served:
            writer.close()

    def _keep(self, remote: _Remote) -> None:
        until = boottime() + self._grace_s
        if not self._stopping and self.send(remote.name, Keep(until)):
            remote.keep_until = until

    async def _tend(self, remote: _Remote) -> None:
        """Have a hand on this node, and notice when there is none any more."""
        if remote.keep_until is not None:
            await self._wait(remote, _REJOIN_S)
        while True:
            if remote.writer is not None:
                await self._wait(remote, None)
                continue
            self._judge(remote)
            wait_s = _REJOIN_S
            if remote.process is None or remote.process.returncode is not None:
                due_s = self._due_s(remote)
                if due_s <= 0.0:
                    await self._start(remote)
                else:
                    wait_s = min(wait_s, due_s)
            await self._wait(remote, wait_s)

    async def _wait(self, remote: _Remote, timeout_s: float | None) -> None:
        """For a change, or for the end of the process that was to start the hand."""
        remote.changed.clear()
        waits = [asyncio.create_task(_happened(remote.changed))]
        if remote.process is not None and remote.process.returncode is None:
            waits.append(asyncio.create_task(_ended(remote.process)))
        if remote.keep_until is not None and remote.writer is None and not remote.lost:
            left_s = max(0.0, remote.keep_until + LOST_MARGIN_S - boottime())
            timeout_s = left_s if timeout_s is None else min(timeout_s, left_s)
        try:
            await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def _judge(self, remote: _Remote) -> None:
        """Whether an unreached node is lost."""
        if remote.lost or remote.keep_until is None:
            return
        if boottime() >= remote.keep_until + LOST_MARGIN_S:
            self._lose(remote, "its hand was not heard, and its launcher has ended what it ran")
        elif self._hosts.gone(remote.name):
            self._lose(remote, "nothing is left on it")

    def _lose(self, remote: _Remote, cause: str) -> None:
        remote.lost = True
        remote.changed.set()
        place_file(self._directory, remote.name).unlink(missing_ok=True)
        self._log.error("node.lost", node=remote.name, cause=cause)
        self._listener.lost(remote.name, cause)

    def _due_s(self, remote: _Remote) -> float:
        """Until a hand may be started here again. A launcher that guards its node against a cut-off hand ends
        what bears the node's mark, and so may a new hand or two, before the node is free for another."""
        return remote.started_at + remote.pause_s - boottime()

    async def _start(self, remote: _Remote) -> None:
        if self._stopping:
            return
        lasted_s = boottime() - remote.started_at
        longer_s = min(_START_PAUSE_MOST_S, 2 * remote.pause_s)
        remote.pause_s = (
            _START_PAUSE_S if lasted_s >= _START_PAUSE_MOST_S else max(_START_PAUSE_S, longer_s)
        )
        remote.started_at = boottime()
        argv = [sys.executable, "-P", "-m", "chappe.pilot.hand"]
        argv += ["--dir", str(self._directory), "--node", remote.name]
        try:
            remote.process = await self._hosts.start(remote.name, argv, self._file.stream)
        except OSError as e:
            self._log.error("hand.not_started", node=remote.name, error=str(e))
        else:
            self._log.info("hand.started", node=remote.name, pid=remote.process.pid)

    # --- one connection

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._served.add(writer)
        node = ""
        try:
            hello = await self._greet(reader, writer)
            node = hello.node
            snapshot = await self._snapshot(reader)
            self._join(self._remotes[node], hello, snapshot, writer)
            while True:
                async with asyncio.timeout(self._silence_s):
                    frame = await wire.hear_hand(reader)
                if self._remotes[node].writer is not writer:
                    return
                if isinstance(frame, Events) and (frame.started or frame.ended or frame.refused):
                    self._listener.heard(node, frame)
        except (ChappeError, OSError, EOFError, TimeoutError) as e:
            self._log.warning("hand.cut", node=node, error=f"{type(e).__name__}: {e}")
        finally:
            self._served.discard(writer)
            writer.close()
            remote = self._remotes.get(node)
            if remote is not None and remote.writer is writer:
                remote.writer = None
                self._listener.cut(node)
                remote.changed.set()

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Hello:
        async with asyncio.timeout(_HELLO_S):
            hello = await wire.hear_hand(reader)
        if not isinstance(hello, Hello) or hello.session != self._session.session:
            raise FrameError("this is no hand of this session")
        remote = self._remotes.get(hello.node)
        if remote is None:
            raise FrameError(f"there is no node {hello.node!r}")
        if remote.writer is not None:
            # It begins anew, and knows nothing of its old connection.
            remote.writer.close()
            remote.writer = None
            self._listener.cut(hello.node)
        writer.write(wire.encode(wire.Welcome(boottime())))
        return hello

    async def _snapshot(self, reader: asyncio.StreamReader) -> Snapshot:
        parts: list[Snapshot] = []
        while not parts or parts[-1].more:
            # A new launcher may first have to end what a dead one left.
            async with asyncio.timeout(2 * SILENCE_S):
                part = await wire.hear_hand(reader)
            if not isinstance(part, Snapshot):
                raise FrameError("the hand did not say what runs on its node")
            parts.append(part)
        return together(parts)

    def _join(
        self, remote: _Remote, hello: Hello, snapshot: Snapshot, writer: asyncio.StreamWriter
    ) -> None:
        same = snapshot.pid == remote.launcher and not remote.lost
        remote.launcher, remote.lost = snapshot.pid, False
        remote.writer = writer
        self._log.info(
            "hand.joined",
            node=remote.name,
            running=len(snapshot.running),
            ended=len(snapshot.ended),
        )
        self._keep(remote)
        self._listener.joined(hello, snapshot, same=same)
        remote.changed.set()


def _is_missing(remote: _Remote) -> bool:
    return remote.writer is None and not remote.lost and remote.keep_until is not None


def together(parts: list[Snapshot]) -> Snapshot:
    """Several snapshots, or parts of one, as one."""
    return Snapshot(
        parts[0].session,
        parts[0].pid,
        [started for part in parts for started in part.running],
        [ended for part in parts for ended in part.ended],
        [key for part in parts for key in part.waiting],
        more=False,
    )


async def _happened(event: asyncio.Event) -> None:
    await event.wait()


async def _ended(process: Process) -> None:
    await process.wait()
