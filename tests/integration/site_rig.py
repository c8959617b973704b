"""A scripted stand-in for the Hub, and Sites against it, for faults that a real Hub does not have on demand.

`StubHub` answers what an agent and an undertaker ask, remembers everything, and can go away, refuse a
token, or say that another agent is there. Pilots are shell scripts: what the agent starts as Python is
`pilot.sh` in the Site's directory, with the Session's directory as its argument.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec

from chappe.site import daemon
from chappe.site.init import HubAccess, init_site
from chappe.site.paths import SitePaths
from chappe.wire.sites import (
    AgentHello,
    AgentSync,
    AgentSyncReply,
    BatchJobIntent,
    BatchJobOrder,
    BatchJobView,
    Listing,
    NewBatchJob,
    NewSession,
    NewSessionReply,
    NewSite,
    NewSiteReply,
    PublishApps,
    Whoami,
)
from chappe.wire.sync import SyncReply, SyncRequest

DEADLINE_S = 60.0
KEY = "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="  # the public key of RFC 8032's first test
PROJECT = "01890000-0000-7000-8000-00000000abcd"


def wait_until(condition: Callable[[], Any], what: str, within_s: float = DEADLINE_S) -> Any:
    """What `condition` returns once it is true."""
    deadline = time.monotonic() + within_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.02)
    return value


class Refusal(Exception):
    def __init__(self, status: int, code: str, message: str = "scripted") -> None:
        self.status = status
        self.body = {"error": {"code": code, "message": message, "transient": status >= 500}}


class StubHub:
    """The state of the stand-in; read it freely, change it under `lock`."""

    def __init__(self) -> None:
        self.lock = threading.Condition()
        self.sites: dict[str, str] = {}
        self.agent: str | None = None
        self.hellos: list[AgentHello] = []
        self.batch_jobs: dict[str, str] = {}
        self.intents: dict[str, BatchJobIntent] = {}
        self.cancels: set[str] = set()
        self.sessions: dict[str, str] = {}
        self.apps: list[str] = []
        self.messages: dict[str, str] = {}
        self.calls: list[tuple[str, str]] = []
        self.syncs: list[SyncRequest] = []
        self.results: dict[str, bytes] = {}
        self.agent_syncs = 0
        self.refuse: dict[str, Refusal] = {}
        self.port = 0
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listen, at the same port as before."""
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = _Server(("127.0.0.1", self.port), handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Go away: no more answers, also to those who wait for one."""
        assert self._server is not None
        server, self._server = self._server, None
        server.shutdown()
        server.server_close()
        with self.lock:
            self.lock.notify_all()

    @property
    def up(self) -> bool:
        return self._server is not None

    def change(self, do: Callable[[], object]) -> None:
        """Change something that a waiting agent should hear of."""
        with self.lock:
            do()
            self.lock.notify_all()

    def states(self, *wanted: str) -> list[str]:
        """The BatchJobs in one of these states."""
        return [i for i, s in self.batch_jobs.items() if s in wanted]

    def answer(self, method: str, path: str, body: bytes) -> object:
        """What to answer one request."""
        path, _, query = path.partition("?")
        self.calls.append((method, path))
        parts = path.split("/")[2:]
        for part, refusal in self.refuse.items():
            if part in path:
                raise refusal
        match (method, parts):
            case ("GET", ["whoami"]):
                site = next(iter(self.sites), None)
                return Whoami("site", PROJECT, "p", "0", 1, 1, site=site)
            case ("POST", ["sites"]):
                new = msgspec.json.decode(body, type=NewSite)
                if new.name in self.sites.values() and new.id not in self.sites:
                    raise Refusal(409, "conflict", "the name is taken")
                self.sites[new.id] = new.name
                return NewSiteReply(new.id, new.name, PROJECT, "chp_s_stub_secret")
            case ("PUT", ["sites", _, "apps"]):
                published = msgspec.json.decode(body, type=PublishApps)
                self.apps = [app.name for app in published.apps]
                return None
            case ("POST", ["sites", _, "agent"]):
                self._hello(msgspec.json.decode(body, type=AgentHello))
                return None
            case ("POST", ["sites", _, "sync"]):
                return self._agent_sync(msgspec.json.decode(body, type=AgentSync))
            case ("GET", ["batch-jobs"]):
                return Listing(batch_jobs=[self._view(i) for i in self.batch_jobs])
            case ("POST", ["batch-jobs"]):
                wanted = msgspec.json.decode(body, type=NewBatchJob)
                self.batch_jobs.setdefault(wanted.id, "requested")
                self.intents[wanted.id] = wanted.intent
                return self._view(wanted.id)
            case ("POST", ["sessions"]):
                session = msgspec.json.decode(body, type=NewSession)
                self.sessions[session.batch_job] = session.id
                token = f"chp_p_{session.id}"
                return NewSessionReply(session.id, token, PROJECT, next(iter(self.sites)))
            case ("POST", ["sync"]):
                request = msgspec.json.decode(body, type=SyncRequest)
                self.syncs.append(request)
                return SyncReply(1, 1, request.request_no, 60.0)
            case ("PUT", ["jobs", job, "result"]):
                self.results[f"{job}?{query}"] = body
                return None
        raise Refusal(404, "not_found", f"{method} {path} is not scripted")

    def order(self, ident: str, intent: BatchJobIntent | None = None) -> None:
        """A user asks for an allocation."""
        self.intents[ident] = intent or BatchJobIntent()
        self.change(lambda: self.batch_jobs.setdefault(ident, "requested"))

    def cancel(self, ident: str) -> None:
        """A user takes one back."""
        self.change(lambda: self.cancels.add(ident))

    def _hello(self, hello: AgentHello) -> None:
        self.hellos.append(hello)
        if self.agent not in (None, hello.agent, hello.previous):
            raise Refusal(409, "agent_present", "an agent of this site runs on faraway")
        self.agent = hello.agent

    def _agent_sync(self, sync: AgentSync) -> AgentSyncReply:
        with self.lock:
            self.agent_syncs += 1
            if sync.agent != self.agent:
                raise Refusal(409, "agent_superseded", "another agent has taken over")
            for report in sync.reports:
                self.batch_jobs[report.id] = report.state
                self.messages[report.id] = report.message
            deadline = time.monotonic() + min(sync.wait_s, 30.0)
            while self.up and not (orders := self._orders(sync)):
                if sync.agent != self.agent:
                    raise Refusal(409, "agent_superseded", "another agent has taken over")
                if not self.lock.wait(max(0.0, deadline - time.monotonic())):
                    break
            return AgentSyncReply(1, 60.0, orders, [], [r.id for r in sync.reports])

    def _orders(self, sync: AgentSync) -> list[BatchJobOrder]:
        return [
            BatchJobOrder(i, wishes(self.intents[i]), cancel=i in self.cancels)
            for i in self.states("requested", "submitted", "running")
            if i not in sync.known or (i in self.cancels and sync.wait_s == 0)
        ] + [
            BatchJobOrder(i, wishes(self.intents[i]), cancel=True)
            for i in self.states("requested", "submitted", "running")
            if i in sync.known and i in self.cancels and sync.wait_s > 0
        ]

    def _view(self, ident: str) -> BatchJobView:
        return BatchJobView(
            ident,
            next(iter(self.sites)),
            self.batch_jobs[ident],
            self.intents[ident],
            1.0,
            session=self.sessions.get(ident),
        )


def wishes(intent: BatchJobIntent) -> msgspec.Raw:
    """What an order carries."""
    return msgspec.Raw(msgspec.json.encode(intent))


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """An agent that was killed in the middle of a request is no news here."""


class _Handler(BaseHTTPRequestHandler):
    hub: StubHub
    protocol_version = "HTTP/1.1"
    timeout = 60

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        try:
            answer = self.hub.answer(self.command, self.path, body)
            status, data = (204, b"") if answer is None else (200, msgspec.json.encode(answer))
        except Refusal as refusal:
            status, data = refusal.status, json.dumps(refusal.body).encode()
        if not self.hub.up:
            self.close_connection = True
            return
        self.send_response(status)
        self.send_header("content-type", "application/json")
        if status != 204:
            self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = do_DELETE = _serve

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


class Site:
    """A Site's directory with scripted pilots, and its agent as a real process."""

    def __init__(self, root: Path, hub: StubHub, pilot: str, settings: str = "") -> None:
        self.hub = hub
        self.made = init_site(root, root.name, HubAccess(hub.url, "chp_u_x_y"), KEY, "tester")
        self.paths = SitePaths.of(root)
        self.pilot = root / "pilot.sh"
        self.pilot.write_text(pilot)
        python = root / "python"
        python.write_text(f'#!/bin/sh\nexec /bin/sh {self.pilot} "$5"\n')
        python.chmod(0o755)
        text = self.paths.config.read_text()
        text = text.replace('# python = ""', f'python = "{python}"', 1)
        self.paths.config.write_text(text + settings)

    def setting(self, before: str, after: str) -> None:
        """Change a line of site.toml."""
        text = self.paths.config.read_text()
        assert before in text
        self.paths.config.write_text(text.replace(before, after))

    def log(self) -> list[dict[str, Any]]:
        """The agent's log."""
        lines = (self.paths.logs / "agent.log").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def said(self, words: str) -> list[dict[str, Any]]:
        """Entries of the agent's log that contain these words."""
        return [entry for entry in self.log() if words in json.dumps(entry)]

    def agent(self, **environ: str) -> subprocess.Popen[bytes]:
        """The agent as a child, for tests that see it die."""
        argv = [sys.executable, "-P", "-m", "chappe.site", "--dir", str(self.paths.root)]
        return subprocess.Popen(argv, env={**os.environ, **environ})

    def lines(self, name: str) -> list[str]:
        """The lines that pilots wrote to a file in the Site's directory."""
        try:
            return (self.paths.root / name).read_text().splitlines()
        except FileNotFoundError:
            return []

    def clean(self) -> None:
        """Stop the agent, and kill what it started."""
        daemon.stop(self.paths.root)
        sessions = {f"CHAPPE_SESSION={s}".encode() for s in self.hub.sessions.values()}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    if sessions & set((entry / "environ").read_bytes().split(b"\0")):
                        os.kill(int(entry.name), signal.SIGKILL)
                except OSError:
                    continue


@contextmanager
def stub_hub() -> Iterator[StubHub]:
    """A running stand-in."""
    hub = StubHub()
    hub.start()
    try:
        yield hub
    finally:
        if hub.up:
            hub.stop()
