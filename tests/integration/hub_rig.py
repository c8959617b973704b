"""A project on a running Hub, with clients for each of its roles: user, site and pilot."""

from __future__ import annotations

import asyncio
import http.client
import json
import ssl
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from chappe.core.jobs import Envelope
from chappe.core.leases import Outcome, Reason
from chappe.core.shapes import Capacity
from chappe.link.clock import new_id
from chappe.link.http import NO_RETRY, HubClient
from chappe.testing.hub import RunningHub
from chappe.wire.jobs import CreateJobs, CreateReply, NewJob
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
from chappe.wire.sync import Grant, HeldJob, Report, SyncReply, SyncRequest

WITHIN_S = 30.0


@dataclass
class Pilot:
    """A pilot as the Hub sees one: it numbers its requests and reports."""

    client: HubClient
    session: str
    number: int = 0
    report_no: int = 0
    seen: tuple[int, int] = (0, 0)
    held: list[HeldJob] = field(default_factory=list)

    def request(
        self, reports: Sequence[Report] = (), *, slots: int = 1, wait_s: float = 0.0
    ) -> SyncRequest:
        """The next sync: it offers `slots` cores, or asks for nothing when that is 0."""
        self.number += 1
        return SyncRequest(
            session=self.session,
            request_no=self.number,
            answered=self.number - 1,
            seen=self.seen,
            held=list(self.held),
            reports=list(reports),
            capacity=Capacity(slots, 2**40, 10_000, 2**40) if slots else None,
            wait_s=wait_s,
        )

    async def send(self, request: SyncRequest) -> SyncReply:
        """Send a sync, and hold what it grants."""
        reply = await self.client.request(
            "POST", "/v1/sync", request, SyncReply, timeout_s=60.0, retry=NO_RETRY
        )
        self.seen = max(self.seen, (reply.incarnation, reply.commit_no))
        self.held += [HeldJob(g.job, g.epoch) for g in reply.grants]
        return reply

    async def sync(
        self, reports: Sequence[Report] = (), *, slots: int = 1, wait_s: float = 0.0
    ) -> SyncReply:
        """The next sync and its reply."""
        return await self.send(self.request(reports, slots=slots, wait_s=wait_s))

    def start(self, grant: Grant) -> Report:
        """The report that a granted Job has started."""
        self.report_no += 1
        return Report(self.report_no, grant.job, grant.epoch, grant.attempt, "start", time.time())

    def end(self, grant: Grant, exit: int = 0) -> Report:
        """The report that it has ended; it is no longer held."""
        self.report_no += 1
        self.held = [h for h in self.held if h.job != grant.job]
        now = time.time()
        return Report(
            self.report_no,
            grant.job,
            grant.epoch,
            grant.attempt,
            "end",
            now,
            started_at=now,
            outcome=Outcome(reason=Reason.EXIT, exit=exit),
        )


@dataclass
class World:
    """A Hub with one Site, its agent said hello, one App that unsigned Jobs may use."""

    hub: RunningHub
    user: HubClient
    site: HubClient
    site_id: str
    agent: str
    stack: AsyncExitStack

    def client(self, token: str | None) -> HubClient:
        """A client that is closed with the world."""
        client = HubClient(self.hub.url, token, ca_file=self.hub.ca_file)
        self.stack.push_async_callback(client.aclose)
        return client

    async def pilot(self) -> Pilot:
        """A pilot with a Session of its own."""
        batch, session = new_id(), new_id()
        await self.user.request(
            "POST", "/v1/batch-jobs", NewBatchJob(batch, self.site_id), BatchJobView
        )
        made = await self.site.request(
            "POST", "/v1/sessions", NewSession(session, batch), NewSessionReply
        )
        return Pilot(self.client(made.token), session)

    def spec(self, **fields: Any) -> dict[str, Any]:
        """A Job's spec, as a dict to be encoded."""
        return {
            "id": new_id(),
            "project": self.hub.project,
            "sites": [self.site_id],
            "app": {"name": "nop"},
            **fields,
        }

    def jobs(self, n: int, **fields: Any) -> CreateJobs:
        """`n` unsigned Jobs."""
        envelope = fields.pop("envelope", Envelope())
        return CreateJobs(
            [
                NewJob(msgspec.Raw(json.dumps(self.spec(**fields)).encode()), envelope)
                for _ in range(n)
            ]
        )

    async def create(self, n: int, **fields: Any) -> list[str]:
        """Create `n` Jobs; their ids."""
        reply = await self.user.request("POST", "/v1/jobs", self.jobs(n, **fields), CreateReply)
        return [v.id for v in reply.verdicts]


@asynccontextmanager
async def world(hub: RunningHub, name: str | None = None) -> AsyncGenerator[World, None]:
    """Set a World up on a running Hub, with a Site of a name of its own."""
    name = name or f"site-{new_id()}"
    async with AsyncExitStack() as stack:
        user = await stack.enter_async_context(HubClient(hub.url, hub.token, ca_file=hub.ca_file))
        made = await user.request("POST", "/v1/sites", NewSite(new_id(), name), NewSiteReply)
        site = await stack.enter_async_context(HubClient(hub.url, made.token, ca_file=hub.ca_file))
        agent = new_id()
        await site.request("POST", f"/v1/sites/{made.id}/agent", AgentHello(agent, "here"))
        app = AppView("nop", "1", "0" * 64, unsigned=True)
        await site.request("PUT", f"/v1/sites/{made.id}/apps", PublishApps([app]))
        yield World(hub, user, site, made.id, agent, stack)


class Answer(NamedTuple):
    """A reply as it came."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        """The body of an error."""
        found: dict[str, Any] = json.loads(self.body)["error"]
        return found


def raw(
    hub: RunningHub,
    method: str,
    path: str,
    token: str | None = None,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """One request on a connection of its own, as it stands. A stream is read up to its headers only."""
    host, _, port = hub.url.removeprefix("https://").rpartition(":")
    context = ssl.create_default_context(cafile=hub.ca_file)
    connection = http.client.HTTPSConnection(host, int(port), timeout=WITHIN_S, context=context)
    try:
        auth = {"authorization": f"Bearer {token}"} if token else {}
        connection.request(method, path, body, {**auth, **(headers or {})})
        response = connection.getresponse()
        found = {k.lower(): v for k, v in response.getheaders()}
        endless = found.get("content-type") == "text/event-stream"
        return Answer(response.status, found, b"" if endless else response.read())
    finally:
        connection.close()


async def until(condition: Callable[[], bool], what: str) -> None:
    """Return when a condition that the event loop makes true is true; fail after WITHIN_S."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + WITHIN_S
    while not condition():
        if loop.time() > deadline:
            raise AssertionError(f"not within {WITHIN_S:.0f} s: {what}")
        await asyncio.sleep(0.002)
