"""A launcher with a head that a test drives: starts one, orders, and waits on what it says."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from chappe.pilot.launch_client import LauncherClient, start_process
from chappe.pilot.launch_wire import Ended, Events, Refused, Snapshot, Started, Task
from chappe.pilot.procs import find_marked, kill_marked

DEADLINE_S = 60.0
BASE_ENV = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"}


def boot_in(seconds: float) -> float:
    """A CLOCK_BOOTTIME so many seconds from now."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) + seconds


def alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


async def until(condition: Callable[[], object]) -> None:
    """Wait on something that only the file system or /proc shows; bounded."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - nothing tells of a file or a process
            await asyncio.sleep(0.005)


class Rig:
    """One launcher, its head, and all that the head heard."""

    def __init__(self, directory: Path, session: str) -> None:
        self.directory = directory
        self.session = session
        self.socket = directory / "private" / "launcher.sock"
        self.log = directory / "launcher.log"
        self.shared_log = directory / "shared.log"
        self.process: Process
        self.client: LauncherClient
        self.snapshot: Snapshot
        self.started: list[Started] = []
        self.ended: list[Ended] = []
        self.refused: list[Refused] = []
        self.frames = 0
        self._heard = asyncio.Event()

    def task(self, job: str, *argv: str, **fields: Any) -> Task:
        """A task that runs `argv` in the rig's directory; give one string to have it run by sh."""
        command = ["/bin/sh", "-c", argv[0]] if len(argv) == 1 else list(argv)
        defaults: dict[str, Any] = {
            "job": job,
            "epoch": 1,
            "attempt": 1,
            "argv": command,
            "env": {},
            "cwd": str(self.directory),
            "start_by": boot_in(600),
        }
        return Task(**{**defaults, **fields})

    async def launch(self, head_grace_s: float, env: dict[str, str]) -> None:
        """Start the launcher."""
        with self.log.open("ab") as log:
            self.process = await start_process(
                self.socket,
                self.session,
                log,
                head_grace_s=head_grace_s,
                env={**os.environ, **env},
            )

    async def connect(self) -> Snapshot:
        """Become the head."""
        self.client, self.snapshot = await LauncherClient.connect(self.socket, self.on_events)
        await self.client.base_env(BASE_ENV, self.shared_log)
        return self.snapshot

    def on_events(self, events: Events) -> None:
        """Keep what the launcher says."""
        self.frames += 1
        self.started += events.started
        self.ended += events.ended
        self.refused += events.refused
        self._heard.set()

    async def hear(self, condition: Callable[[], object]) -> None:
        """Wait until what was heard fulfils `condition`; fails when the launcher goes away first."""
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                self._heard.clear()
                heard = asyncio.ensure_future(self._heard.wait())
                await asyncio.wait((heard, self.client.gone), return_when="FIRST_COMPLETED")
                heard.cancel()
                if self.client.gone.done() and not condition():
                    raise AssertionError(f"{self.client.gone.result()}\n{self.log.read_text()}")

    async def end_of(self, job: str) -> Ended:
        """The end of a job, once it is told."""
        await self.hear(lambda: any(end.job == job for end in self.ended))
        return next(end for end in self.ended if end.job == job)

    async def run(self, task: Task) -> Ended:
        """Start one task and wait for its end."""
        await self.client.start([task])
        return await self.end_of(task.job)

    async def start(self, *tasks: Task) -> None:
        """Start tasks and wait until all are said to have started."""
        await self.client.start(tasks)
        keys = {task.key for task in tasks}
        await self.hear(lambda: keys <= {started.key for started in self.started})

    async def leave_nothing(self) -> None:
        """Let go of the launcher and kill every process of the session."""
        if hasattr(self, "client"):
            self.client.close()
        await asyncio.to_thread(kill_marked, self.session, lambda _: True)
        assert find_marked(self.session) == []

    async def clean_up(self) -> None:
        """Kill the launcher that this rig started, and all that it ran."""
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        await self.leave_nothing()


@asynccontextmanager
async def rig(
    session: str, *, head_grace_s: float = 300.0, connect: bool = True, **env: str
) -> AsyncIterator[Rig]:
    """A running launcher, its head connected, in a directory of its own with a short name."""
    with tempfile.TemporaryDirectory(prefix="launcher-") as directory:
        made = Rig(Path(directory), session)
        made.socket.parent.mkdir(mode=0o700)
        await made.launch(head_grace_s, env)
        try:
            if connect:
                await made.connect()
            yield made
        finally:
            await made.clean_up()
