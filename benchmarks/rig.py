"""A Hub as its user starts it, and what stands around it: a Site, a Session, a client. All ended by pid."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec

import chappe
from benchmarks.jobs import Maker
from benchmarks.pilotlike import PilotLike
from benchmarks.processes import cpu_s, rss_bytes
from benchmarks.wire import Wire
from chappe.link.clock import new_id
from chappe.testing.hub import start_hub
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


class HubProcess:
    """A running Hub with its files in `directory`/data, as `chappe hub start` makes it.

    `ready_s` is how long it took from the start of the process to its ready line.
    """

    def __init__(self, directory: Path, **options: Any) -> None:
        self.key_file = directory / "key"
        began = time.perf_counter()
        self.running = start_hub(directory / "data", log_level="info", **options)
        self.ready_s = time.perf_counter() - began
        self.database = self.running.data / "hub.sqlite"
        self.pid = self.running.process.pid

    @property
    def cpu_s(self) -> float:
        """CPU that the Hub has used."""
        return cpu_s(self.pid)

    @property
    def rss_bytes(self) -> int:
        """Its resident memory."""
        return rss_bytes(self.pid)

    @property
    def disk_bytes(self) -> int:
        """What its database takes on disk, the write-ahead log included."""
        return sum(
            path.stat().st_blocks * 512
            for path in self.database.parent.iterdir()
            if path.name.startswith(self.database.name)
        )

    def wire(self, token: str | None = None) -> Wire:
        """A bare connection under a token (the user's)."""
        return Wire(self.running.url, token or self.running.token, self.running.ca_file)

    def client(self) -> chappe.Client:
        """The SDK's client, with a key of its own."""
        return chappe.Client(config_file=self.running.client_config, key=self.key_file)


@contextmanager
def hub(directory: Path, **options: Any) -> Iterator[HubProcess]:
    """A Hub with its files below `directory` (made, or as an earlier one left them)."""
    process = HubProcess(directory, **options)
    try:
        yield process
    finally:
        process.running.stop()


class Bed:
    """A Site with the App `true` and Sessions, registered over HTTP; no agent, no pilot."""

    def __init__(self, running: HubProcess, stack: ExitStack, pilots: int) -> None:
        self.hub = running
        self.user = stack.enter_context(running.wire())
        site = self.user.ask("POST", "/v1/sites", NewSite(new_id(), "bench"), NewSiteReply)
        agent = stack.enter_context(running.wire(site.token))
        apps = PublishApps([AppView("true", "1", "x")])
        agent.send("PUT", f"/v1/sites/{site.id}/apps", msgspec.json.encode(apps))
        hello = AgentHello(new_id(), "here")
        agent.send("POST", f"/v1/sites/{site.id}/agent", msgspec.json.encode(hello))
        self.site_id = site.id
        self.pilots = [self._pilot(agent, stack) for _ in range(pilots)]
        self.pilot = self.pilots[0]
        self.maker = Maker(running.key_file, running.running.project, site.id)

    def _pilot(self, agent: Wire, stack: ExitStack) -> PilotLike:
        new = NewBatchJob(new_id(), self.site_id)
        batch = agent.ask("POST", "/v1/batch-jobs", new, BatchJobView)
        session = agent.ask("POST", "/v1/sessions", NewSession(new_id(), batch.id), NewSessionReply)
        pilot = stack.enter_context(self.hub.wire(session.token))

        def call(request: SyncRequest) -> SyncReply:
            return pilot.ask("POST", "/v1/sync", request, SyncReply)

        return PilotLike(session.id, call)

    def create(self, body: bytes) -> CreateReply:
        """Post Jobs that were made before."""
        return msgspec.json.decode(self.user.send("POST", "/v1/jobs", body), type=CreateReply)


@contextmanager
def bed(directory: Path, pilots: int = 1, **options: Any) -> Iterator[Bed]:
    """A Hub with a Site and Sessions of ours. `options` are the Hub's."""
    with ExitStack() as stack:
        running = stack.enter_context(hub(directory, **options))
        yield Bed(running, stack, pilots)
