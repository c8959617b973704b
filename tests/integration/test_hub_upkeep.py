"""The Hub's own timers over a real store, on a clock that the test holds."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import structlog
from sqlalchemy import Connection, text

from chappe.core.shapes import Capacity
from chappe.hub import loops
from chappe.hub.state import Hub
from chappe.link.clock import new_id
from chappe.store import create, prepare, sites, sync, tokens
from chappe.store.db import open_store
from chappe.store.principal import Principal, find
from chappe.wire.jobs import CreateJobs, NewJob
from chappe.wire.sites import AppView, NewBatchJob, NewSession, NewSite, PublishApps
from chappe.wire.sync import HeldJob, SyncRequest
from tests.integration.hub_rig import WITHIN_S


class Clock:
    """CLOCK_BOOTTIME and the time of day, moved by hand."""

    def __init__(self) -> None:
        self.boot = 1_000.0
        self.day = time.time()

    def forward(self, seconds: float) -> None:
        self.boot += seconds
        self.day += seconds


class Rig:
    """A Hub without a network: one Site, one Session, one pilot that syncs when told."""

    def __init__(self, hub: Hub, clock: Clock) -> None:
        self.hub = hub
        self.clock = clock
        self.number = 0
        self.held: list[HeldJob] = []
        self.looked = asyncio.Event()

    async def set_up(self) -> None:
        made = await self.hub.write(tokens.bootstrap)
        assert made is not None
        self.user = await self.who(made[1])
        self.site_id, batch = new_id(), new_id()
        site = await self.hub.write(sites.create_site, self.user, NewSite(self.site_id, "paris"))
        self.site = await self.who(site.token)
        app = AppView("nop", "1", "0" * 64, unsigned=True)
        await self.hub.write(sites.publish_apps, self.site, self.site_id, PublishApps([app]))
        await self.hub.write(sites.create_batch_job, self.user, NewBatchJob(batch, self.site_id))
        session = await self.hub.write(sites.create_session, self.site, NewSession(new_id(), batch))
        self.pilot = await self.who(session.token)

    async def who(self, token: str) -> Principal:
        found = await self.hub.read(find, token)
        assert found is not None
        return found

    async def create(self, **fields: Any) -> str:
        spec = {
            "id": new_id(),
            "project": self.user.project_id,
            "sites": [self.site_id],
            "app": {"name": "nop"},
            **fields,
        }
        body = CreateJobs([NewJob(msgspec.Raw(json.dumps(spec).encode()))])
        catalog = self.hub.store.writer.catalog
        prepared = prepare.prepare(catalog, self.user, body, self.clock.day)
        await self.hub.write(create.create_jobs, self.user, prepared)
        return str(spec["id"])

    async def sync(self, hard_end_in_s: float | None = None) -> None:
        """What the route does: renew, then sync; it holds what it is granted."""
        self.number += 1
        assert self.pilot.session_n is not None
        self.hub.liveness.heard(self.pilot.session_n)
        self.hub.liveness.ends(self.pilot.session_n, hard_end_in_s)
        request = SyncRequest(
            self.pilot.session_id or "",
            self.number,
            self.number - 1,
            (1, 0),
            self.held,
            capacity=Capacity(1, 2**40, 8, 2**40),
            hard_end_in_s=hard_end_in_s,
        )
        reply = await self.hub.write(sync.sync, self.pilot, request)
        self.held = self.held + [HeldJob(g.job, g.epoch, True) for g in reply.grants]

    async def value(self, sql: str) -> Any:
        def scalar(conn: Connection) -> Any:
            return conn.execute(text(sql)).scalar()

        return await self.hub.read(scalar)

    async def until(self, sql: str, wanted: Any) -> None:
        """Return when the answer to `sql` is `wanted`."""
        deadline = time.monotonic() + WITHIN_S
        while (found := await self.value(sql)) != wanted:
            assert time.monotonic() < deadline, f"{sql}: {found!r}, not {wanted!r}"
            await asyncio.sleep(0.005)

    async def passes(self, n: int = 3) -> None:
        """Return after the loop over the Sessions has run `n` times more."""
        for _ in range(n):
            self.looked.clear()
            await self.looked.wait()


SESSION = "SELECT state FROM session"


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Rig, None]:
    clock = Clock()
    monkeypatch.setattr(loops, "LOOK_S", 0.01)
    monkeypatch.setattr(loops, "DUE_LOOK_S", 0.01)
    store = open_store(f"sqlite:///{tmp_path / 'hub.sqlite'}", clock=lambda: clock.day)
    hub = Hub(store, lambda: clock.day, lambda: clock.boot)
    hub.start()
    rig = Rig(hub, clock)
    ago_s = hub.liveness.ago_s

    def watched() -> dict[int, float]:
        rig.looked.set()
        return ago_s()

    monkeypatch.setattr(hub.liveness, "ago_s", watched)
    await rig.set_up()
    running = asyncio.create_task(loops.run(hub))
    yield rig
    hub.stop()
    await running
    hub.close()
    store.close()


async def test_silence_is_marked_after_the_ttl_and_ends_with_the_next_sync(rig: Rig) -> None:
    await rig.create()
    await rig.sync()
    rig.clock.forward(59)
    await rig.passes()
    assert await rig.value(SESSION) == "live"
    rig.clock.forward(2)
    await rig.until(SESSION, "silent")
    # Silence is not death: what it holds stays its own.
    assert await rig.value("SELECT session IS NOT NULL FROM job") == 1
    await rig.sync()
    assert await rig.value(SESSION) == "live"
    rig.clock.forward(61)
    await rig.until(SESSION, "silent")


async def test_a_session_is_marked_once(rig: Rig) -> None:
    await rig.sync()
    rig.clock.forward(61)
    await rig.until(SESSION, "silent")
    before = await rig.value("SELECT commit_no FROM hub")
    await rig.passes(5)
    assert await rig.value("SELECT commit_no FROM hub") == before


async def test_a_session_that_never_spoke_is_silent_too(rig: Rig) -> None:
    await rig.passes()
    rig.clock.forward(61)
    await rig.until(SESSION, "silent")


async def test_jobs_that_asked_for_it_are_taken_over(rig: Rig) -> None:
    await rig.create(takeover_s=60.0)
    await rig.sync()
    rig.clock.forward(61)
    await rig.until(SESSION, "silent")
    # The pilot kills it after 60 s without an answer; the Hub waits for longer than that.
    assert await rig.value("SELECT session IS NOT NULL FROM job") == 1
    rig.clock.forward(60)
    await rig.until("SELECT session IS NULL FROM job", 1)


async def test_other_jobs_are_not_taken_over_however_long_the_silence(rig: Rig) -> None:
    await rig.create()
    await rig.sync()
    rig.clock.forward(86_400)
    await rig.until(SESSION, "silent")
    await rig.passes()
    assert await rig.value("SELECT session IS NOT NULL FROM job") == 1


async def test_the_hard_end_of_an_allocation_is_proof_of_death(rig: Rig) -> None:
    await rig.create()
    await rig.sync(hard_end_in_s=100.0)
    rig.clock.forward(110)
    await rig.passes()
    assert await rig.value(SESSION) != "dead"
    rig.clock.forward(100)
    await rig.until(SESSION, "dead")
    await rig.until("SELECT session IS NULL FROM job", 1)


async def test_jobs_that_start_later_become_due(rig: Rig) -> None:
    await rig.create(not_before=rig.clock.day + 100)
    await rig.passes()
    assert await rig.value("SELECT not_before IS NULL FROM job") == 0
    rig.clock.forward(101)
    await rig.until("SELECT not_before IS NULL FROM job", 1)


async def test_a_loop_that_fails_is_begun_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    structlog.configure(
        processors=[structlog.processors.format_exc_info, structlog.processors.JSONRenderer()],
        logger_factory=structlog.WriteLoggerFactory(out),
    )
    monkeypatch.setattr(loops, "RESTART_FIRST_S", 0.001)
    times = 0
    enough = asyncio.Event()

    async def fails(hub: Hub) -> None:
        nonlocal times
        times += 1
        if times == 3:
            enough.set()
            await hub.stopping.wait()
            return
        raise KeyError("broken")

    task = asyncio.create_task(loops.supervised(rig.hub, fails))
    try:
        async with asyncio.timeout(WITHIN_S):
            await enough.wait()
        assert out.getvalue().count("KeyError: 'broken'") == 2
    finally:
        structlog.reset_defaults()
        rig.hub.stop()
        await task
