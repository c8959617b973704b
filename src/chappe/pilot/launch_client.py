"""The head's side of the launcher: start one, connect to it, order, and hear what happens.

The head binds the socket and hands it to the launcher that it starts, so it can connect at once and there
is no file to wait for. A restarted head connects to the same path; the first thing it hears is a snapshot
of all that runs and all ends that no head has acked. What comes after is given, frame by frame, to one
callback, in the order in which it happened.
"""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import Process
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from chappe.core.errors import Unavailable
from chappe.core.limits import HEAD_GRACE_S
from chappe.pilot.launch_link import listen
from chappe.pilot.launch_wire import (
    NO_BOUNDS,
    Ack,
    BaseEnv,
    Bounds,
    Environment,
    Events,
    FrameError,
    FrameReader,
    HeadFrame,
    Keep,
    Key,
    Kill,
    KillOrder,
    KillReason,
    LauncherFrame,
    Renew,
    Snapshot,
    Start,
    Stop,
    Task,
    Withdraw,
    decode_launcher,
    encode,
)

_TASKS_PER_FRAME = 256


class LauncherGone(Unavailable):
    """The launcher does not answer or has ended: what it ran must be killed by its mark."""

    default_code = "launcher_gone"


async def start_process(
    path: Path,
    session: str,
    log: IO[bytes],
    *,
    head_grace_s: float = HEAD_GRACE_S,
    env: Mapping[str, str] | None = None,
    umask: int = -1,
) -> Process:
    """Start a launcher that listens at `path` (in a directory 0700) and logs to `log`.

    `env` is its environment (default: ours), with CHAPPE_SESSION set: it bears the mark like all others.
    `umask` is for Jobs, and so its own (-1: ours).
    Its death is seen by `LauncherClient.gone`. Raises Invalid, Unavailable (a launcher lives at `path`).
    """
    with listen(path) as listener:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "chappe.pilot.launcher",
            *("--socket", str(path), "--session", session),
            *("--head-grace-s", str(head_grace_s), "--listen-fd", str(listener.fileno())),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**(os.environ if env is None else env), "CHAPPE_SESSION": session},
            pass_fds=(listener.fileno(),),
            start_new_session=True,
            umask=umask,
        )


class LauncherClient(asyncio.Protocol):
    """A connection to the launcher. Make it with `connect`."""

    def __init__(self, on_events: Callable[[Events], None]) -> None:
        loop = asyncio.get_running_loop()
        self.pid = 0
        """The launcher's process."""
        self.gone: asyncio.Future[str] = loop.create_future()
        """Done, with the cause in words, once the launcher or the connection to it is gone."""
        self._loop = loop
        self._on_events = on_events
        self._first: asyncio.Future[Snapshot] = loop.create_future()
        self._parts: list[Snapshot] = []
        self._reader = FrameReader()
        self._transport: asyncio.Transport | None = None
        self._pidfd = -1
        self._writable = asyncio.Event()
        self._writable.set()

    @classmethod
    async def connect(
        cls, path: Path, on_events: Callable[[Events], None], *, timeout_s: float = 30.0
    ) -> tuple[LauncherClient, Snapshot]:
        """Connect, and hear what the launcher knows; `on_events` is called for all that comes after.

        Another head's connection is served to its end first, up to `timeout_s`. Raises LauncherGone.
        """
        client = cls(on_events)
        try:
            async with asyncio.timeout(timeout_s):
                await client._loop.create_unix_connection(lambda: client, str(path))
                await asyncio.wait(
                    (client._first, client.gone), return_when=asyncio.FIRST_COMPLETED
                )
        except TimeoutError as error:
            raise LauncherGone(
                f"the launcher at {path} said nothing for {timeout_s:g} s; has it another head?"
            ) from error
        except OSError as error:
            raise LauncherGone(f"no launcher listens at {path}: {error.strerror}") from error
        finally:
            if not client._first.done():
                client.close()
        if not client._first.done():
            raise LauncherGone(f"the launcher at {path} went away: {client.gone.result()}")
        return client, client._first.result()

    async def base_env(
        self,
        env: Mapping[str, str],
        shared_log: Path | None = None,
        environments: Mapping[str, Environment] | None = None,
        bounds: Bounds = NO_BOUNDS,
    ) -> None:
        """Say what all tasks share; the first order on a connection. The log is opened at its first use."""
        log = "" if shared_log is None else str(shared_log)
        await self._send(BaseEnv(dict(env), log, dict(environments or {}), bounds))

    async def start(self, tasks: Sequence[Task]) -> None:
        """Start these. A task too large for a frame raises FrameError, and those before it are ordered."""
        for at in range(0, len(tasks), _TASKS_PER_FRAME):
            await self._send_tasks(tasks[at : at + _TASKS_PER_FRAME])

    async def kill(self, keys: Sequence[Key], reason: KillReason, grace_s: float) -> None:
        """End these runs: SIGTERM and, `grace_s` later, SIGKILL (0: at once); refuse the waiting ones."""
        await self._send(Kill([KillOrder(job, epoch, reason, grace_s) for job, epoch in keys]))

    async def withdraw(self, keys: Sequence[Key]) -> None:
        """Take back those of these that still wait in a lane; each is told as refused, "withdrawn"."""
        await self._send(Withdraw(list(keys)))

    async def renew(self, deadlines: Mapping[Key, float]) -> None:
        """Move takeover deadlines (CLOCK_BOOTTIME seconds)."""
        await self._send(Renew([(job, epoch, at) for (job, epoch), at in deadlines.items()]))

    async def keep(self, until: float) -> None:
        """Let it stay until then (CLOCK_BOOTTIME seconds), unless told again."""
        await self._send(Keep(until))

    async def ack(self, keys: Sequence[Key]) -> None:
        """Say that these ends are safe: the launcher forgets them."""
        await self._send(Ack(list(keys)))

    async def stop(
        self, *, kill: bool = False, reason: KillReason = "cancelled", grace_s: float = 10.0
    ) -> None:
        """Let the launcher exit once nothing runs; `gone` tells when. Waiting tasks are refused."""
        await self._send(Stop(kill, reason, grace_s))

    def close(self) -> None:
        """Leave the launcher to the next head."""
        self._lost("closed by us")

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection stands."""
        if not isinstance(transport, asyncio.Transport):
            raise TypeError(f"{transport!r} is not a stream")
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        try:
            for payload in self._reader.feed(data):
                self._hear(decode_launcher(payload))
        except FrameError as error:
            self._lost(error.message)

    def connection_lost(self, exc: Exception | None) -> None:
        """The launcher closed the connection or died."""
        self._lost("its connection ended" if exc is None else str(exc))

    def pause_writing(self) -> None:
        """The launcher reads slower than we write."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """The launcher has caught up."""
        self._writable.set()

    async def _send_tasks(self, tasks: Sequence[Task]) -> None:
        try:
            await self._send(Start(list(tasks)))
        except FrameError:
            if len(tasks) == 1:
                raise
            half = len(tasks) // 2
            await self._send_tasks(tasks[:half])
            await self._send_tasks(tasks[half:])

    async def _send(self, frame: HeadFrame) -> None:
        await self._writable.wait()
        if self._transport is None or self.gone.done():
            raise LauncherGone("the launcher is gone: what it ran must be killed by its mark")
        self._transport.write(encode(frame))

    def _hear(self, frame: LauncherFrame) -> None:
        if isinstance(frame, Events):
            self._on_events(frame)
            return
        self._parts.append(frame)
        if not frame.more and not self._first.done():
            self._watch(frame.pid)
            self._first.set_result(
                Snapshot(
                    frame.session,
                    frame.pid,
                    [started for part in self._parts for started in part.running],
                    [ended for part in self._parts for ended in part.ended],
                    [key for part in self._parts for key in part.waiting],
                    more=False,
                )
            )
            self._parts.clear()

    def _watch(self, pid: int) -> None:
        self.pid = pid
        try:
            self._pidfd = os.pidfd_open(pid)
        except OSError:
            return  # a kernel before 5.3, or gone already: the connection tells
        self._loop.add_reader(self._pidfd, self._on_process_end)

    def _on_process_end(self) -> None:
        """Its last words may still be in the socket, which a child between vfork and exec holds open."""
        if self._transport is not None and not self._transport.is_closing():
            fd = self._transport.get_extra_info("socket").fileno()
            with suppress(OSError):
                while data := os.read(fd, 65536):
                    self.data_received(data)
        self._lost("its process ended")

    def _lost(self, cause: str) -> None:
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        if self._transport is not None:
            self._transport.close()
        self._writable.set()
        if not self.gone.done():
            self.gone.set_result(cause)
