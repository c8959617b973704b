"""The long polls of pilots and agents over a real Hub: what wakes them, what ends them."""

from __future__ import annotations

import asyncio
import re
import ssl
import time

import msgspec
import pytest

from chappe.core.errors import Conflict, NotFound
from chappe.link.clock import new_id
from chappe.link.http import HubClient
from chappe.store.standing import LOOKS
from chappe.testing.hub import RunningHub
from chappe.wire.demand import Demand
from chappe.wire.jobs import ActOnJobs, JobFilter, JobView
from chappe.wire.sites import (
    AgentHello,
    AgentSync,
    AgentSyncReply,
    BatchJobReport,
    BatchJobView,
    EndSession,
    NewBatchJob,
)
from tests.integration.hub_rig import WITHIN_S, World, world

#: Longer than any of these tests may take: an answer that comes was not for want of time.
WAIT_S = 30.0


async def polls(client: HubClient) -> int:
    """How many requests wait at the Hub."""
    text = (await client.fetch("GET", "/metrics")).data.decode()
    found = re.search(r"^chappe_long_polls (\d+)", text, re.M)
    assert found is not None
    return int(float(found.group(1)))


async def waiting(w: World, n: int) -> None:
    """Return when exactly `n` requests wait at the Hub."""
    deadline = time.monotonic() + WITHIN_S
    while await polls(w.user) != n:
        assert time.monotonic() < deadline, f"there are never {n} requests that wait"


async def test_a_new_job_wakes_a_waiting_pilot(shared_hub: RunningHub) -> None:
    async with world(shared_hub) as w:
        pilot = await w.pilot()
        task = asyncio.create_task(pilot.sync(wait_s=WAIT_S))
        await waiting(w, 1)
        (id,) = await w.create(1)
        reply = await task
        assert [(g.job, g.epoch) for g in reply.grants] == [(id, 1)]
        assert reply.request_no == 1


async def test_a_job_of_another_site_wakes_nobody_and_work_for_one_goes_to_one(
    shared_hub: RunningHub,
) -> None:
    async with world(shared_hub) as w, world(shared_hub) as other:
        first, second = await w.pilot(), await w.pilot()
        tasks = [asyncio.create_task(p.sync(wait_s=WAIT_S)) for p in (first, second)]
        await waiting(w, 2)
        await other.create(5)
        await w.create(1)
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        assert len(done) == 1
        assert len(done.pop().result().grants) == 1
        await waiting(w, 1)
        await w.create(1)
        assert len((await pending.pop()).grants) == 1


async def test_a_pilot_without_room_is_not_woken_for_work(shared_hub: RunningHub) -> None:
    async with world(shared_hub) as w:
        pilot = await w.pilot()
        task = asyncio.create_task(pilot.sync(slots=0, wait_s=WAIT_S))
        await waiting(w, 1)
        await w.create(1)
        await pilot.client.request("POST", "/v1/sync/wake")
        reply = await task
        assert reply.grants == []


async def commands(client: HubClient) -> int:
    """How many commands the Hub has committed."""
    text = (await client.fetch("GET", "/metrics")).data.decode()
    found = re.search(r"^chappe_commands_total (\S+)", text, re.M)
    assert found is not None
    return int(float(found.group(1)))


async def test_who_is_woken_for_nothing_waits_on(shared_hub: RunningHub) -> None:
    async with world(shared_hub) as w:
        # More than look in the commit that makes the work: all are woken, and it fits none of them.
        pilots = [await w.pilot() for _ in range(LOOKS + 1)]
        tasks = [asyncio.create_task(p.sync(wait_s=WAIT_S)) for p in pilots]
        await waiting(w, len(pilots))
        await w.create(1, resources={"nodes": 5})
        deadline, before = time.monotonic() + WITHIN_S, -1
        while (now := await commands(w.user)) != before:
            assert time.monotonic() < deadline, "they look again and again"
            before = now
            await asyncio.sleep(0.5)
        for pilot in pilots:
            await pilot.client.request("POST", "/v1/sync/wake")
        assert [reply.grants for reply in await asyncio.gather(*tasks)] == [[]] * len(pilots)


async def test_the_time_it_waits_is_bounded(shared_hub: RunningHub) -> None:
    async with world(shared_hub) as w:
        pilot = await w.pilot()
        began = time.monotonic()
        reply = await pilot.sync(wait_s=0.2)
        assert reply.grants == []
        assert time.monotonic() - began >= 0.2


async def test_a_cancel_wakes_the_pilot_that_holds_the_job(shared_hub: RunningHub) -> None:
    async with world(shared_hub) as w:
        pilot = await w.pilot()
        (id,) = await w.create(1)
        (grant,) = (await pilot.sync()).grants
        await pilot.sync([pilot.start(grant)], slots=0)
        task = asyncio.create_task(pilot.sync(slots=0, wait_s=WAIT_S))
        await waiting(w, 1)
        await w.user.request("POST", "/v1/jobs/cancel", ActOnJobs(JobFilter(ids=[id])))
        reply = await task
        assert [(k.job, k.epoch, k.reason) for k in reply.kill] == [(id, 1, "cancelled")]


async def test_the_end_of_its_session_wakes_a_pilot(shared_hub: RunningHub) -> None:
    async with world(shared_hub) as w:
        pilot = await w.pilot()
        task = asyncio.create_task(pilot.sync(wait_s=WAIT_S))
        await waiting(w, 1)
        await w.site.request("POST", f"/v1/sessions/{pilot.session}/end", EndSession())
        with pytest.raises(Conflict) as told:
            await task
        assert told.value.code == "session_dead"


async def test_a_cancelled_allocation_makes_its_pilot_drain(shared_hub: RunningHub) -> None:
    async with world(shared_hub) as w:
        pilot = await w.pilot()
        listed = await w.user.fetch("GET", "/v1/batch-jobs", params={"site": w.site_id})
        (batch,) = msgspec.json.decode(listed.data)["batch_jobs"]
        task = asyncio.create_task(pilot.sync(wait_s=WAIT_S))
        await waiting(w, 1)
        await w.user.request("POST", f"/v1/batch-jobs/{batch['id']}/cancel")
        assert (await task).drain


async def test_a_pilot_may_wake_itself(shared_hub: RunningHub) -> None:
    async with world(shared_hub) as w:
        pilot, other = await w.pilot(), await w.pilot()
        task = asyncio.create_task(pilot.sync(wait_s=WAIT_S))
        others = asyncio.create_task(other.sync(wait_s=WAIT_S))
        await waiting(w, 2)
        await pilot.client.request("POST", "/v1/sync/wake")
        assert (await task).request_no == 1
        assert not others.done()
        others.cancel()


async def test_a_wake_that_arrives_first_is_kept(shared_hub: RunningHub) -> None:
    async with world(shared_hub) as w:
        pilot = await w.pilot()
        await pilot.client.request("POST", "/v1/sync/wake")
        began = time.monotonic()
        await pilot.sync(wait_s=WAIT_S)
        assert time.monotonic() - began < WAIT_S


async def test_a_second_sync_has_the_first_answered(shared_hub: RunningHub) -> None:
    async with world(shared_hub) as w:
        pilot = await w.pilot()
        first = asyncio.create_task(pilot.sync(wait_s=WAIT_S))
        await waiting(w, 1)
        second = asyncio.create_task(pilot.sync(wait_s=WAIT_S))
        assert (await first).request_no == 1
        (id,) = await w.create(1)
        assert [g.job for g in (await second).grants] == [id]


async def test_who_leaves_takes_no_work_with_it(shared_hub: RunningHub) -> None:
    async with world(shared_hub) as w:
        pilot = await w.pilot()
        request = pilot.request(wait_s=WAIT_S)
        host, _, port = shared_hub.url.removeprefix("https://").rpartition(":")
        context = ssl.create_default_context(cafile=shared_hub.ca_file)
        _, writer = await asyncio.open_connection(host, int(port), ssl=context)
        body = msgspec.json.encode(request)
        token = pilot.client._http.headers["authorization"]
        head = (
            f"POST /v1/sync HTTP/1.1\r\nhost: hub\r\nauthorization: {token}\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        await waiting(w, 1)
        writer.transport.abort()
        await waiting(w, 0)
        (id,) = await w.create(1)
        view = await w.user.request("GET", f"/v1/jobs/{id}", reply=JobView)
        assert (view.session, view.epoch) == (None, 0)
        # The pilot repeats its request, as it does after a lost reply.
        assert [g.job for g in (await pilot.send(request)).grants] == [id]


async def test_a_repeated_sync_is_answered_with_the_same_grants(shared_hub: RunningHub) -> None:
    async with world(shared_hub) as w:
        pilot = await w.pilot()
        await w.create(3)
        request = pilot.request(slots=3)
        first = await pilot.send(request)
        pilot.held.clear()
        again = await pilot.send(request)
        assert {(g.job, g.epoch) for g in again.grants} == {(g.job, g.epoch) for g in first.grants}


async def test_back_offs_end_by_themselves(shared_hub: RunningHub) -> None:
    async with world(shared_hub) as w:
        pilot = await w.pilot()
        at = time.time() + 0.5
        task = asyncio.create_task(pilot.sync(wait_s=WAIT_S))
        await waiting(w, 1)
        (id,) = await w.create(1, not_before=at)
        reply = await task
        assert [g.job for g in reply.grants] == [id]
        assert time.time() >= at


# -- agents --------------------------------------------------------------------------------------------


async def agent_sync(
    w: World, *reports: BatchJobReport, known: list[str] | None = None, wait_s: float = 0.0
) -> AgentSyncReply:
    body = AgentSync(w.agent, list(reports), known or [], wait_s)
    return await w.site.request(
        "POST", f"/v1/sites/{w.site_id}/sync", body, AgentSyncReply, timeout_s=60.0
    )


async def ask(w: World) -> str:
    """Ask for an allocation; its id."""
    id = new_id()
    await w.user.request("POST", "/v1/batch-jobs", NewBatchJob(id, w.site_id), BatchJobView)
    return id


async def test_an_order_wakes_the_agent(shared_hub: RunningHub) -> None:
    async with world(shared_hub) as w:
        task = asyncio.create_task(agent_sync(w, wait_s=WAIT_S))
        await waiting(w, 1)
        id = await ask(w)
        assert [(o.id, o.cancel) for o in (await task).orders] == [(id, False)]
        # Not taken up yet: it is told again, at once.
        assert [o.id for o in (await agent_sync(w, wait_s=WAIT_S)).orders] == [id]


async def test_a_cancel_is_told_once_and_then_waits_with_the_agent(shared_hub: RunningHub) -> None:
    async with world(shared_hub) as w:
        id = await ask(w)
        task = asyncio.create_task(agent_sync(w, known=[id], wait_s=WAIT_S))
        await waiting(w, 1)
        await w.user.request("POST", f"/v1/batch-jobs/{id}/cancel")
        assert [(o.id, o.cancel) for o in (await task).orders] == [(id, True)]
        task = asyncio.create_task(agent_sync(w, known=[id], wait_s=WAIT_S))
        await waiting(w, 1)
        # Its report goes by beside the poll, and does not end it.
        reply = await agent_sync(w, BatchJobReport(id, "cancelled"), known=[id])
        assert reply.accepted == [id]
        assert not task.done()
        other = await ask(w)
        assert [(o.id, o.cancel) for o in (await task).orders] == [(other, False)]


async def test_what_waits_for_a_pilot_wakes_an_agent_that_follows_it(
    shared_hub: RunningHub,
) -> None:
    async with world(shared_hub) as w:
        path = f"/v1/sites/{w.site_id}/demand"
        before = await w.site.request("GET", path, reply=Demand)
        body = AgentSync(w.agent, wait_s=WAIT_S, demand=before.mark)
        task = asyncio.create_task(
            w.site.request("POST", f"/v1/sites/{w.site_id}/sync", body, AgentSyncReply)
        )
        await waiting(w, 1)
        await w.create(3)
        demand = (await task).demand
        assert demand is not None
        assert [one.jobs for one in demand.waiting] == [3]


async def test_another_agent_is_refused_and_a_successor_is_not(shared_hub: RunningHub) -> None:
    async with world(shared_hub) as w:
        path = f"/v1/sites/{w.site_id}/agent"
        with pytest.raises(Conflict) as refused:
            await w.site.request("POST", path, AgentHello(new_id(), "there"))
        assert refused.value.code == "agent_present"
        await w.site.request("POST", path, AgentHello(new_id(), "there", previous=w.agent))
        with pytest.raises(Conflict) as superseded:
            await agent_sync(w, wait_s=WAIT_S)
        assert superseded.value.code == "agent_superseded"


# -- what is counted -----------------------------------------------------------------------------------


async def test_metrics_count_what_happened(hub: RunningHub) -> None:
    async with world(hub) as w:
        pilot = await w.pilot()
        await w.create(3)
        grants = (await pilot.sync(slots=2)).grants
        ends = [pilot.end(g) for g in grants]
        await pilot.sync([*ends, msgspec.structs.replace(ends[0], no=99, epoch=7)], slots=0)
        await w.user.fetch("GET", "/v1/jobs")
        with pytest.raises(NotFound):
            await w.user.fetch("GET", f"/v1/jobs/{new_id()}")
        text = (await w.user.fetch("GET", "/metrics")).data.decode()
    values = dict(re.findall(r"^(chappe_[^ ]+) (\S+)$", text, re.M))
    for name, value in {
        "chappe_grants_total": 2,
        'chappe_reports_total{verdict="applied"}': 2,
        'chappe_reports_total{verdict="stale_lease"}': 1,
        'chappe_jobs{state="JOB_FINISHED"}': 2,
        'chappe_jobs{state="PREPROCESSED"}': 1,
        'chappe_sessions{state="live"}': 1,
        'chappe_requests_total{method="POST",route="/v1/sync",status="200"}': 2,
        'chappe_requests_total{method="GET",route="/v1/jobs/{id}",status="404"}': 1,
        "chappe_streams": 0,
        "chappe_writer_queue": 0,
    }.items():
        assert float(values[name]) == value, name
    assert float(values["chappe_commits_total"]) > 5
    assert float(values["chappe_request_seconds_count" + '{route="/v1/sync"}']) == 2
