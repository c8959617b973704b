"""A Hub as its user starts it, and what stands around it: a Site, a Session, a client. All ended by pid."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec

import chappe
from benchmarks.jobs import Maker
from benchmarks.pilotlike import PilotLike
from benchmarks.processes import cpu_s, pss_bytes, rss_bytes, stop
from benchmarks.wire import Wire
from chappe.link.clock import new_id
from chappe.wire.jobs import CreateReply
from chappe.wire.sites import (
    AgentHello,
    AppView,
    BatchJobView,
    NewBatchJob,
    NewSession,
    NewSessionReply,
    NewSite,
    NewSiteReply,
    PublishApps,
)
from chappe.wire.sync import SyncReply, SyncRequest

_START_S = 60.0
_READY = b"hub ready "


class Config(msgspec.Struct):
    """The client's configuration, as the Hub writes it."""

    url: str
    project: str
    token: str
    ca_file: str


class HubProcess:
    """A running Hub. `ready_s` is how long it took from the start of the process to its ready line."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.database = directory / "data" / "hub.sqlite"
        self.config_file = directory / "client.json"
        self.key_file = directory / "key"
        self.environment = {
            **os.environ,
            "CHAPPE_CONFIG": str(self.config_file),
            "CHAPPE_KEY": str(self.key_file),
        }
        command = [sys.executable, "-m", "chappe.hub", "--data", str(directory / "data")]
        began = time.perf_counter()
        with (directory / "hub.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--port", "0"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=self.environment,
            )
        try:
            self._wait_ready()
            self.ready_s = time.perf_counter() - began
            self.config = msgspec.json.decode(self.config_file.read_bytes(), type=Config)
            with self.wire(self.config.token) as wire:
                wire.send("GET", "/readyz")
        except BaseException:
            self.stop()
            raise

    def _wait_ready(self) -> None:
        assert self.process.stdout is not None
        watchdog = threading.Timer(_START_S, self.process.kill)
        watchdog.start()
        try:
            line = self.process.stdout.readline()
        finally:
            watchdog.cancel()
        if not line.startswith(_READY):
            log = (self.directory / "hub.log").read_text(errors="replace")
            raise RuntimeError(f"the hub did not start: {line!r} {log[-2000:]}")

    @property
    def cpu_s(self) -> float:
        """CPU that the Hub has used."""
        return cpu_s(self.process.pid)

    @property
    def rss_bytes(self) -> int:
        """Its resident memory."""
        return rss_bytes(self.process.pid)

    @property
    def pss_bytes(self) -> int:
        """Its proportional memory."""
        return pss_bytes(self.process.pid)

    @property
    def disk_bytes(self) -> int:
        """What its database takes on disk, the write-ahead log included."""
        return sum(
            path.stat().st_blocks * 512
            for path in self.database.parent.iterdir()
            if path.name.startswith(self.database.name)
        )

    def wire(self, token: str) -> Wire:
        """A bare connection under a token."""
        return Wire(self.config.url, token, self.config.ca_file)

    def client(self) -> chappe.Client:
        """The SDK's client, with a key of its own."""
        return chappe.Client(config_file=self.config_file, key=self.key_file)

    def stop(self) -> None:
        """TERM, and wait until it has ended."""
        stop(self.process)
        if self.process.stdout is not None:
            self.process.stdout.close()


@contextmanager
def hub(directory: Path) -> Iterator[HubProcess]:
    """A Hub with its files below `directory` (made, or as an earlier one left them)."""
    process = HubProcess(directory)
    try:
        yield process
    finally:
        process.stop()


class Bed:
    """A Site with the App `true` and one Session, registered over HTTP; no agent, no pilot."""

    def __init__(self, running: HubProcess, stack: ExitStack) -> None:
        config = running.config
        self.hub = running
        self.user = stack.enter_context(running.wire(config.token))
        site = self.user.ask("POST", "/v1/sites", NewSite(new_id(), "bench"), NewSiteReply)
        agent = stack.enter_context(running.wire(site.token))
        apps = PublishApps([AppView("true", "1", "x")])
        agent.send("PUT", f"/v1/sites/{site.id}/apps", msgspec.json.encode(apps))
        hello = AgentHello(new_id(), "here")
        agent.send("POST", f"/v1/sites/{site.id}/agent", msgspec.json.encode(hello))
        batch = agent.ask("POST", "/v1/batch-jobs", NewBatchJob(new_id(), site.id), BatchJobView)
        session = agent.ask("POST", "/v1/sessions", NewSession(new_id(), batch.id), NewSessionReply)
        pilot = stack.enter_context(running.wire(session.token))

        def call(request: SyncRequest) -> SyncReply:
            return pilot.ask("POST", "/v1/sync", request, SyncReply)

        self.site_id = site.id
        self.pilot = PilotLike(session.id, call)
        self.maker = Maker(running.key_file, config.project, site.id)

    def create(self, body: bytes) -> CreateReply:
        """Post Jobs that were made before."""
        return msgspec.json.decode(self.user.send("POST", "/v1/jobs", body), type=CreateReply)


@contextmanager
def bed(directory: Path) -> Iterator[Bed]:
    """A Hub with a Site and a Session of ours."""
    with ExitStack() as stack:
        running = stack.enter_context(hub(directory))
        yield Bed(running, stack)
