"""Keeps a launcher for the head: finds the one that its predecessor left, or starts one; and when it dies,
ends what it had started before another begins.

The launcher's socket lies in a private directory on the node itself, which `launcher.json` in the Session's
directory names. Orders are sent in the order in which they are given, by one task, so that whoever gives
them never waits.
"""

from __future__ import annotations

import asyncio
import os
import signal
from asyncio.subprocess import Process
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
from structlog.types import FilteringBoundLogger

from chappe.core.errors import Unavailable
from chappe.core.faults import reach
from chappe.link.clock import boottime
from chappe.link.files import write_atomic
from chappe.pilot import sockets
from chappe.pilot.launch_client import LauncherClient, LauncherGone, start_process
from chappe.pilot.launch_wire import Bounds, Events, Key, KillReason, Snapshot, Task
from chappe.pilot.log import LogFile
from chappe.pilot.procs import children_by_parent, kill_marked, node_of, signal_marked
from chappe.pilot.scratch import remove, scratch_of, sweep
from chappe.pilot.session import Session
from chappe.pilot.shelf import environments
from chappe.pilot.sockets import forget, new_socket

FILE = "launcher.json"
_DEATHS_MOST = 5
_DEATHS_WITHIN_S = 600.0
_STOP_S = 30.0

Call = Callable[[LauncherClient], Coroutine[Any, Any, None]]


class _Place(msgspec.Struct, frozen=True):
    """Where a launcher listens: a socket, on one boot of one node."""

    socket: str
    node: str
    boot: str


class Keeper:
    """The head's launcher. `env` is what all Jobs find; `on_events` hears what happens to them."""

    def __init__(
        self,
        session: Session,
        directory: Path,
        env: Mapping[str, str],
        log: FilteringBoundLogger,
        file: LogFile,
        on_events: Callable[[Events], None],
        node: str = "",
    ) -> None:
        self._session = session
        self._directory = directory
        self._env = env
        self._log = log
        self._file = file
        self._on_events = on_events
        self._node = node
        self._place = place_file(directory, node)
        self._client: LauncherClient | None = None
        self._process: Process | None = None
        self._orders: deque[Call] = deque()
        self._ordered = asyncio.Event()
        self._deaths: deque[float] = deque(maxlen=_DEATHS_MOST)
        self._stopping = False

    @property
    def up(self) -> bool:
        """Whether there is a launcher to give orders to."""
        return self._client is not None

    @property
    def gone(self) -> asyncio.Future[str]:
        """Done, with the cause in words, once the launcher is gone. Raises LauncherGone without one."""
        if self._client is None:
            raise LauncherGone("there is no launcher")
        return self._client.gone

    @property
    def pid(self) -> int:
        """The launcher's process, 0 without one."""
        return 0 if self._client is None else self._client.pid

    async def send_orders(self) -> None:
        """Send orders to this launcher, and to no other, until it is gone."""
        if self._client is not None:
            await self._send_orders(self._client)

    async def open(self) -> Snapshot | None:
        """Connect to the launcher that is there, and say what it knows; without one, end what a dead one
        may have left, start another, and return None. Raises Unavailable, OSError."""
        self._client, self._stopping = None, False
        self._orders.clear()
        place = _recorded(self._place)
        if place is not None and (place.node, place.boot) == _here():
            try:
                return await self._connect(Path(place.socket))
            except LauncherGone as e:
                if isinstance(e.__cause__, TimeoutError):
                    raise  # it lives, and has another head or none that it can hear
                self._log.warning("launcher.not_found", error=e.message)
        await self._end_leftovers(0)
        await asyncio.to_thread(sockets.sweep, self._session.local, self._session.session)
        swept = await asyncio.to_thread(sweep, self._session.scratch_base, self._session.session)
        if swept:
            self._log.info("scratch.swept", sessions=swept)
        await self._begin()
        return None

    async def run(self, on_lost: Callable[[str], None], on_back: Callable[[], None]) -> None:
        """Send orders, and replace a launcher that dies: `on_lost` is called once nothing of what it had
        started is left, `on_back` when there is another. Raises Unavailable when launchers keep dying.
        Ends after `stop`."""
        while self._client is not None:
            client = self._client
            sender = asyncio.create_task(self._send_orders(client))
            try:
                await asyncio.wait((client.gone, sender), return_when=asyncio.FIRST_COMPLETED)
            finally:
                sender.cancel()
            if sender.done() and not sender.cancelled() and not client.gone.done():
                sender.result()
            self._client = None
            self._orders.clear()
            if self._stopping:
                return
            cause = await client.gone
            self._log.error("launcher.lost", cause=cause)
            self._count_death()
            await self._end_leftovers(client.pid)
            on_lost(cause)
            await self._begin()
            on_back()

    def start(self, tasks: Sequence[Task]) -> None:
        """Start these."""
        self._order(lambda client: _start(client, tasks))

    def kill(self, keys: Sequence[Key], reason: KillReason, grace_s: float) -> None:
        """End these runs."""
        self._order(lambda client: client.kill(keys, reason, grace_s))

    def withdraw(self, keys: Sequence[Key]) -> None:
        """Take back those that have not begun."""
        self._order(lambda client: client.withdraw(keys))

    def renew(self, deadlines: Mapping[Key, float]) -> None:
        """Move takeover deadlines (CLOCK_BOOTTIME seconds)."""
        self._order(lambda client: client.renew(deadlines))

    def keep(self, until: float) -> None:
        """Let the launcher stay until then (CLOCK_BOOTTIME seconds), unless told again."""
        self._order(lambda client: client.keep(until))

    def ack(self, keys: Sequence[Key]) -> None:
        """Let the launcher forget these ends."""
        self._order(lambda client: client.ack(keys))

    async def stop(self, *, kill: bool) -> None:
        """Let the launcher end, with `kill` after ending what runs; then see to it that nothing is left."""
        self._stopping = True
        client = self._client
        if client is not None:
            with suppress(LauncherGone, TimeoutError):
                await client.stop(kill=kill, reason="allocation_end", grace_s=0.0)
                async with asyncio.timeout(_STOP_S):
                    await asyncio.shield(client.gone)
        await self._end_leftovers(0 if client is None else client.pid)
        if self._process is not None:
            await self._process.wait()
        place = _recorded(self._place)
        if place is not None:
            forget(Path(place.socket))
            self._place.unlink()

    def leave(self) -> None:
        """Let the launcher go on without us: another head will come."""
        self._stopping = True
        if self._client is not None:
            self._client.close()

    # --- inside

    def _order(self, call: Call) -> None:
        """Orders to a launcher that is gone are pointless: its runs are ended."""
        if self._client is not None:
            self._orders.append(call)
            self._ordered.set()

    async def _send_orders(self, client: LauncherClient) -> None:
        while True:
            await self._ordered.wait()
            self._ordered.clear()
            while self._orders:
                try:
                    await self._orders.popleft()(client)
                except LauncherGone:
                    return

    async def _begin(self) -> None:
        path = new_socket(self._session.local, self._session.session)
        node, boot = _here()
        write_atomic(
            self._place,
            msgspec.json.encode(_Place(str(path), node, boot)),
            durable=False,
        )
        self._process = await start_process(
            path,
            self._session.session,
            self._file.stream,
            head_grace_s=self._session.options.head_grace_s,
            env={**os.environ, "CHAPPE_NODE": self._node} if self._node else None,
            umask=self._session.options.umask,
        )
        await self._connect(path)

    async def _connect(self, path: Path) -> Snapshot:
        client, snapshot = await LauncherClient.connect(path, self._on_events)
        options = self._session.options
        await client.base_env(
            self._env,
            self._directory / "shared.log",
            environments(self._session),
            Bounds(options.file_bytes, options.processes),
        )
        self._client = client
        self._log.info(
            "launcher.connected",
            launcher=client.pid,
            running=len(snapshot.running),
            ended=len(snapshot.ended),
        )
        return snapshot

    async def _end_leftovers(self, launcher: int) -> None:
        """Kill a launcher that we lost, what carries the Session's mark, and what we inherited."""
        session = self._session.session
        killed = await asyncio.to_thread(_end_all, session, launcher, self._node)
        await asyncio.to_thread(remove, scratch_of(self._session, self._node))
        if killed:
            self._log.warning("leftovers.killed", processes=len(killed))

    def _count_death(self) -> None:
        now = boottime()
        if len(self._deaths) == _DEATHS_MOST and now - self._deaths[0] < _DEATHS_WITHIN_S:
            raise Unavailable(f"{_DEATHS_MOST + 1} launchers died within {_DEATHS_WITHIN_S:.0f} s")
        self._deaths.append(now)


def place_file(directory: Path, node: str) -> Path:
    """Where it is written down which launcher a node has."""
    return directory / (f"launcher-{node}.json" if node else FILE)


async def _start(client: LauncherClient, tasks: Sequence[Task]) -> None:
    await client.start(tasks)
    reach("pilot.after_launch_sent")


def _end_all(session: str, launcher: int, node: str) -> list[int]:
    """End the launcher, the Session's Jobs, and our other children: what a launcher had started and not
    yet given its mark (between vfork and exec) is one of them, since we are a subreaper. What says that it
    belongs to another node is none of ours."""
    signal_marked(session, lambda process: process.pid == launcher, signal.SIGKILL, node)
    orphans = [
        pid
        for pid in children_by_parent(os.getpid())
        if pid != launcher and node_of(pid) in ("", node)
    ]
    for pid in orphans:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    killed = kill_marked(session, node=node)
    for pid in orphans:
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
    return orphans + killed


def _recorded(path: Path) -> _Place | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Place)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def _here() -> tuple[str, str]:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return os.uname().nodename, boot
