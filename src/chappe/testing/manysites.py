"""Many Sites in one process: their agents and pilots as the Hub sees them, over TLS, running nothing.

    echo SETTINGS | python -m chappe.testing.manysites

The settings are one line of JSON (see Settings), on standard input because it holds a token. Each Site has
an agent that waits for orders, and Sessions with a connection each; half of them get a Job, and hold it for
ever, the others ask for work that never comes. The line `ready` says that all of them have been heard; when
standard input ends, so does the process, with a line of JSON: a Report.
"""

from __future__ import annotations

import asyncio
import importlib
import random
import resource
import ssl
import subprocess
import sys
import time
from collections.abc import Coroutine, Generator
from contextlib import contextmanager
from typing import TypeVar
from urllib.parse import urlsplit

import msgspec

from chappe.core import limits
from chappe.core.hidden import HidesToken
from chappe.core.jobs import AppRef, JobSpec
from chappe.core.shapes import Capacity
from chappe.link.clock import new_id
from chappe.wire.jobs import CreateJobs, CreateReply, NewJob
from chappe.wire.sites import (
    AgentHello,
    AgentSync,
    AgentSyncReply,
    AppView,
    BatchJobView,
    NewBatchJob,
    NewSession,
    NewSessionReply,
    NewSite,
    NewSiteReply,
    PublishApps,
)
from chappe.wire.sync import HeldJob, SyncReply, SyncRequest
from chappe.wire.sync import Report as JobReport

T = TypeVar("T")

APP = AppView("stay", "1", "0" * 64, unsigned=True)
_IDLE = Capacity(1, 1 << 30, 1, 1 << 30)
_BUSY = Capacity(0, 0, 1, 1 << 30)
_AT_ONCE = 16
"""Sites that are made at a time."""


class Settings(HidesToken, msgspec.Struct, frozen=True):
    """Where the Hub is, and what to be: `sites` of so many `sessions`, that sync every `sync_s`."""

    url: str
    token: str
    project: str
    ca_file: str
    name: str
    sites: int
    sessions: int
    sync_s: float


class Report(msgspec.Struct):
    """What happened. `slowest_s` is the longest that an answer took beyond what was waited for on purpose."""

    syncs: int = 0
    polls: int = 0
    grants: int = 0
    slowest_s: float = 0.0
    problems: list[str] = []


class Line:
    """One connection under one token, which is kept."""

    def __init__(self, settings: Settings, context: ssl.SSLContext, token: str) -> None:
        parts = urlsplit(settings.url)
        self._host, self._port = parts.hostname or "", parts.port or 443
        self._context = context
        self._head = f"Host: {self._host}\r\nAuthorization: Bearer {token}\r\n"
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, path: str, body: msgspec.Struct, reply: type[T]) -> T:
        """Send a wire type and decode the answer. Raises RuntimeError for any status but 2xx."""
        return msgspec.json.decode(await self.send(method, path, body), type=reply)

    async def send(self, method: str, path: str, body: msgspec.Struct) -> bytes:
        """Send a wire type; the answer's bytes. Anew where the Hub has closed a connection that rested."""
        try:
            return await self._send(method, path, body)
        except asyncio.IncompleteReadError as e:
            if e.partial:
                raise
        self.close()
        self._streams = None
        return await self._send(method, path, body)

    async def _send(self, method: str, path: str, body: msgspec.Struct) -> bytes:
        if self._streams is None:
            self._streams = await asyncio.open_connection(
                self._host, self._port, ssl=self._context, server_hostname=self._host
            )
        reader, writer = self._streams
        data = msgspec.json.encode(body)
        head = f"{method} {path} HTTP/1.1\r\n{self._head}Content-Length: {len(data)}\r\n\r\n"
        writer.write(head.encode() + data)
        answer = await reader.readuntil(b"\r\n\r\n")
        length = 0
        for line in answer.split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        found = await reader.readexactly(length)
        if not answer.startswith(b"HTTP/1.1 2"):
            raise RuntimeError(f"{method} {path}: {answer[9:12].decode()} {found[:300]!r}")
        return found

    def close(self) -> None:
        """Cut the connection."""
        if self._streams is not None:
            self._streams[1].transport.abort()


class Crowd:
    """All of them."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._context = ssl.create_default_context(cafile=settings.ca_file)
        self._lines: list[Line] = []
        self._unheard = settings.sites * settings.sessions
        self.all_heard = asyncio.Event()
        self.report = Report()
        self.tasks: list[asyncio.Task[None]] = []

    def line(self, token: str) -> Line:
        """A new connection."""
        made = Line(self._settings, self._context, token)
        self._lines.append(made)
        return made

    async def make(self) -> None:
        """Register everything, and begin."""
        numbers = iter(range(self._settings.sites))

        async def some() -> None:
            user = self.line(self._settings.token)
            for k in numbers:
                await self._site(user, f"{self._settings.name}-{k}")

        async with asyncio.TaskGroup() as group:
            for _ in range(_AT_ONCE):
                group.create_task(some())

    async def _site(self, user: Line, name: str) -> None:
        site = await user.ask("POST", "/v1/sites", NewSite(new_id(), name), NewSiteReply)
        agent, me = self.line(site.token), new_id()
        await agent.send("PUT", f"/v1/sites/{site.id}/apps", PublishApps([APP]))
        await agent.send("POST", f"/v1/sites/{site.id}/agent", AgentHello(me, name))
        batch_jobs = []
        for _ in range(self._settings.sessions):
            new = NewBatchJob(new_id(), site.id)
            batch = await agent.ask("POST", "/v1/batch-jobs", new, BatchJobView)
            session = NewSession(new_id(), batch.id)
            made = await agent.ask("POST", "/v1/sessions", session, NewSessionReply)
            batch_jobs.append(batch.id)
            self._begin(self._sync(made))
        specs = [
            JobSpec(new_id(), self._settings.project, (site.id,), AppRef(APP.name))
            for _ in batch_jobs[::2]
        ]
        jobs = [NewJob(msgspec.Raw(msgspec.json.encode(spec))) for spec in specs]
        await user.ask("POST", "/v1/jobs", CreateJobs(jobs, []), CreateReply)
        self._begin(self._listen(agent, site.id, me, batch_jobs))

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        self.tasks.append(asyncio.ensure_future(self._watched(work)))

    async def _watched(self, work: Coroutine[None, None, None]) -> None:
        try:
            await work
        except Exception as e:  # noqa: BLE001 - it is told at the end
            self.report.problems.append(f"{type(e).__name__}: {e}")

    async def _listen(self, line: Line, site: str, me: str, batch_jobs: list[str]) -> None:
        """An agent's life."""
        while True:
            request = AgentSync(me, known=batch_jobs, wait_s=limits.WAIT_MAX_S)
            reply = await self._timed(
                line, f"/v1/sites/{site}/sync", request, AgentSyncReply, limits.WAIT_MAX_S
            )
            self.report.polls += 1
            if reply.orders or reply.silent or reply.unknown:
                self.report.problems.append(f"an agent was told {reply}")

    async def _sync(self, session: NewSessionReply) -> None:
        """A pilot's life: one Job at most, and nothing but syncs."""
        line = self.line(session.token)
        held: list[HeldJob] = []
        reports: list[JobReport] = []
        seen, number, wait_s = (0, 0), 0, 0.0
        while True:
            number += 1
            room = _BUSY if held else _IDLE
            request = SyncRequest(
                session.id, number, number - 1, seen, held, [], reports, room, wait_s=wait_s
            )
            reply = await self._timed(line, "/v1/sync", request, SyncReply, wait_s)
            self._told(reply)
            if number == 1:
                # From here on they are spread over time, as pilots are that were not started together.
                self._heard()
                wait_s = random.uniform(0.0, self._settings.sync_s)  # noqa: S311 - no secret
            else:
                wait_s = self._settings.sync_s
            seen = (reply.incarnation, reply.commit_no)
            now = time.time()
            held += [HeldJob(g.job, g.epoch, True) for g in reply.grants]
            reports = [JobReport(1, g.job, g.epoch, g.attempt, "start", now) for g in reply.grants]

    async def _timed(
        self, line: Line, path: str, body: msgspec.Struct, reply: type[T], wait_s: float
    ) -> T:
        began = time.monotonic()
        answer = await line.ask("POST", path, body, reply)
        self.report.slowest_s = max(self.report.slowest_s, time.monotonic() - began - wait_s)
        return answer

    def _told(self, reply: SyncReply) -> None:
        self.report.syncs += 1
        self.report.grants += len(reply.grants)
        refused = [v for v in reply.verdicts if v.verdict != "applied"]
        if reply.unknown or reply.kill or reply.drain or refused:
            self.report.problems.append(f"a session was told {reply}")

    def _heard(self) -> None:
        self._unheard -= 1
        if not self._unheard:
            self.all_heard.set()

    async def close(self) -> None:
        """End all of them."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for line in self._lines:
            line.close()


@contextmanager
def start(settings: Settings) -> Generator[subprocess.Popen[bytes]]:
    """The process, told its settings; killed in the end if it is still there."""
    argv = [sys.executable, "-m", "chappe.testing.manysites"]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        _write(process, msgspec.json.encode(settings) + b"\n")
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_ready(process: subprocess.Popen[bytes]) -> bool:
    """Whether all were heard; False when the process ended before."""
    assert process.stdout is not None  # noqa: S101 - start() made the pipe
    return process.stdout.readline() == b"ready\n"


def end(process: subprocess.Popen[bytes]) -> Report:
    """End it; what happened."""
    out, _ = process.communicate()
    return msgspec.json.decode(out, type=Report)


def _write(process: subprocess.Popen[bytes], line: bytes) -> None:
    assert process.stdin is not None  # noqa: S101 - start() made the pipe
    process.stdin.write(line)
    process.stdin.flush()


async def main() -> None:
    """Be them until standard input ends."""
    loop = asyncio.get_running_loop()
    line = await loop.run_in_executor(None, sys.stdin.readline)
    crowd = Crowd(msgspec.json.decode(line, type=Settings))
    try:
        await crowd.make()
        await crowd.all_heard.wait()
        print("ready", flush=True)
        await loop.run_in_executor(None, sys.stdin.readline)
    finally:
        await crowd.close()
    print(msgspec.json.encode(crowd.report).decode(), flush=True)


def allow_files() -> None:
    """As many connections as the system lets this process have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    allow_files()
    # Its connections cost a tenth of the memory of asyncio's own.
    uvloop = importlib.import_module("uvloop")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
