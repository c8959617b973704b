"""Acts on selections through a real Hub: they go on by themselves, also when it is killed in their middle."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from pathlib import Path

import pytest

from chappe.core.errors import ChappeError
from chappe.link.clock import new_id
from chappe.link.http import NO_RETRY
from chappe.sdk.aio import AsyncClient
from chappe.testing.hub import RunningHub, start_hub
from chappe.wire.bulk import ActView, NewAct, NewSelection, SelectionView
from chappe.wire.events import EventPage
from chappe.wire.jobs import JobFilter, JobPage, QueryJobs
from tests.integration.hub_rig import WITHIN_S, World, world

JOBS = 6_000


async def states(w: World) -> Counter[str]:
    """How many Jobs are in which state, counted one by one."""
    found: Counter[str] = Counter()
    cursor: str | None = None
    while True:
        query = QueryJobs(JobFilter(), 1_000, cursor)
        page = await w.user.request("POST", "/v1/jobs/query", query, JobPage)
        found.update(job.state for job in page.jobs)
        cursor = page.next
        if cursor is None:
            return found


async def cancelled_events(w: World) -> int:
    """How many Events say that a Job was cancelled."""
    many, cursor = 0, None
    while True:
        params = {"limit": "5000"} | ({} if cursor is None else {"cursor": cursor})
        page = await w.user.request("GET", "/v1/events", reply=EventPage, params=params)
        many += sum(event.new == "CANCELLED" for event in page.events)
        if page.cursor == cursor:
            return many
        cursor = page.cursor


async def ended(w: World, act: str) -> ActView:
    """The act, once it has ended."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            path, params = f"/v1/acts/{act}", {"wait_s": "5"}
            view = await w.user.request("GET", path, reply=ActView, params=params)
            if view.ended_at is not None:
                return view


@pytest.mark.parametrize("point", ["hub.before_commit", "hub.after_commit"])
async def test_a_hub_killed_in_the_middle_of_an_act_goes_on_with_it(
    tmp_path: Path, point: str
) -> None:
    with start_hub(tmp_path / "hub") as hub:
        async with world(hub) as w:
            await w.create(JOBS)
            selection = NewSelection(new_id(), JobFilter(phase="runnable"))
            frozen = await w.user.request("POST", "/v1/selections", selection, SelectionView)
            assert frozen.count == JOBS
            await w.create(10)  # not among them
            hub.stop()
            # It dies at its fourth commit: the act is one, each chunk is another.
            await asyncio.to_thread(hub.start, {"CHAPPE_CRASH_AT": f"{point}:4"})
            act = NewAct(new_id(), selection.id, "cancel")
            with contextlib.suppress(ChappeError):  # it may die before the answer is sent
                await w.user.request("POST", "/v1/acts", act, ActView, retry=NO_RETRY)
            await asyncio.to_thread(hub.wait_dead)
            await asyncio.to_thread(hub.start)
            half = await w.user.request("GET", f"/v1/acts/{act.id}", reply=ActView)
            assert half.total == JOBS
            view = await ended(w, act.id)
            assert (view.state, view.done, view.counts) == ("done", JOBS, {"cancelled": JOBS})
            assert await states(w) == {"CANCELLED": JOBS, "PREPROCESSED": 10}
            assert await cancelled_events(w) == JOBS


@pytest.fixture
def client(hub: RunningHub, monkeypatch: pytest.MonkeyPatch) -> AsyncClient:
    monkeypatch.setenv("CHAPPE_CONFIG", str(hub.client_config))
    return AsyncClient(url=hub.url, token=hub.token, ca_file=hub.ca_file)


async def test_nothing_that_is_created_meanwhile_is_touched(
    hub: RunningHub, client: AsyncClient
) -> None:
    async with world(hub) as w, client:
        early = set(await w.create(3_000))
        selection = await client.select(site=w.site_id)
        assert selection.count == len(selection) == 3_000
        late: list[str] = []

        async def creates() -> None:
            for _ in range(10):
                late.extend(await w.create(100))

        told: list[int] = []
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(creates())
            change = tasks.create_task(
                selection.act("hold", told=lambda act: told.append(act.done))
            )
        assert change.result() == {"held": 3_000}
        assert told == sorted(told)
        assert told[-1] == 3_000
        held = {job.id async for job in client.jobs(site=w.site_id, held=True)}
        assert held == early
        assert not held & set(late)
        assert await client.release(site=w.site_id, held=True) == {"released": 3_000}
