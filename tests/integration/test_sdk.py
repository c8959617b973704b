"""The SDK against a real Hub, and a real Site where Jobs must really run."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

import chappe
from chappe import AsyncClient, Client
from chappe.core import limits
from chappe.sdk.errors import Conflict, Invalid, JobCancelled, JobFailed, NotFound
from chappe.testing.hub import RunningHub
from tests.integration import sdk_rig
from tests.integration.hub_rig import until, world
from tests.integration.sdk_rig import SITE, Place

WITHIN_S = 60.0


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Generator[Place, None, None]:
    with sdk_rig.place(tmp_path_factory.mktemp("sdk")) as made:
        yield made


@pytest.fixture
def client(place: Place) -> Generator[Client, None, None]:
    with place.client() as made:
        yield made


def test_an_ensemble_with_a_summary(client: Client) -> None:
    wave = client.app("wave", site=SITE)
    members = [wave.options(name=f"m{n}", tags={"exp": "a"})(n=n) for n in (1, 2, -1)]
    total = wave.options(name="sum", parents=members, on_parent_failure="succeeded")(n=10)
    jobs = client.submit([total, *members])
    done = {job.name: job for job in chappe.as_completed(jobs, timeout_s=WITHIN_S)}
    assert list(done)[-1] == "sum"
    assert {name: job.ok for name, job in done.items()} == {
        "m1": True, "m2": True, "m-1": False, "sum": True,
    }  # fmt: skip
    assert jobs[0].result() == {"n": 13, "parents": ["JOB_FINISHED", "JOB_FINISHED", "FAILED"]}
    with pytest.raises(JobFailed, match="no such wave") as error:
        done["m-1"].result()
    assert error.value.outcome is not None
    assert error.value.outcome.exit == 1
    assert {job.name for job in client.jobs(tags={"exp": "a"}, phase="finished")} == {"m1", "m2"}
    assert {job.name for job in client.jobs(parent=members[0].id)} == {"sum"}


def test_a_job_tells_its_story(client: Client) -> None:
    job = client.app("wave", site=SITE).submit(n=4).wait(WITHIN_S)
    assert [event.new for event in job.events()] == [
        "PREPROCESSED", "RUNNING", "RUN_DONE", "JOB_FINISHED",
    ]  # fmt: skip
    view = job.refresh()
    assert view.spec is not None
    assert view.spec.parameters == {"n": 4}
    assert view.signed
    assert view.outcome is not None
    assert view.outcome.usage is not None
    assert view.outcome.usage.max_rss_bytes > 1 << 20


def test_a_raw_command_runs_where_the_key_is_trusted(client: Client, tmp_path: Path) -> None:
    out = tmp_path / "out"
    job = client.run(SITE, ["sh", "-c", f"echo $CHAPPE_SITE '; $HOME' > {out}"], name="raw")
    assert job.result(WITHIN_S) is None
    assert out.read_text() == f"{SITE} ; $HOME\n"


def test_a_key_that_nobody_trusts_runs_nothing(place: Place, tmp_path: Path) -> None:
    with Client(config_file=place.hub.client_config, key=tmp_path / "other") as stranger:
        job = stranger.run(SITE, ["touch", str(tmp_path / "trace")])
        with pytest.raises(JobFailed, match="untrusted_key"):
            job.result(WITHIN_S)
    assert not (tmp_path / "trace").exists()


def test_cancelling_a_running_job_ends_it(client: Client) -> None:
    job = client.run(SITE, ["sleep", "600"])
    for event in client.changes([job]):
        if event.new == "RUNNING":
            assert job.cancel() == "cancelling"
    with pytest.raises(JobCancelled):
        job.result(WITHIN_S)


def test_the_hub_refuses_what_the_app_does_not_have(client: Client) -> None:
    wave = client.app("wave", site=SITE)
    with pytest.raises(Invalid) as error:
        wave.submit(m=1)
    assert error.value.field == "parameters.m"
    with pytest.raises(Invalid):
        wave.submit(n="three")
    with pytest.raises(NotFound, match=f"there are: {SITE}"):
        client.app("wave", site="pari").submit()


def test_a_retry_signs_anew_when_the_signature_is_used_up(client: Client, place: Place) -> None:
    """In another process than the one that submitted: what this one remembers cannot be the proof."""
    job = client.app("wave", site=SITE).options(retries=0).submit(n=-1).wait(WITHIN_S)
    assert job.refresh().max_attempts == 1
    with place.client() as later:
        again = later.job(job.id)
        again.retry()
        again.wait(WITHIN_S)
        view = again.refresh()
    assert (view.state, view.attempt, view.max_attempts) == ("FAILED", 2, 2)


def test_only_what_has_ended_can_be_deleted(client: Client) -> None:
    job = client.run(SITE, ["sleep", "600"], name="long", not_before=9e9)
    with pytest.raises(Conflict, match="not ended"):
        job.delete()
    assert client.cancel(name="long") == {"cancelled": 1}
    job.delete()
    with pytest.raises(NotFound):
        job.refresh()


def test_a_big_graph_is_created_once_however_often_it_is_sent(client: Client) -> None:
    """11 000 Jobs behind one that never ends: two requests in topological order, sent twice."""
    wave = client.app("wave", site=SITE).options(tags={"exp": "graph"})
    root = wave.options(not_before=9e9)()
    layer = [wave.options(parents=[root])(n=i) for i in range(10_998)]
    last = wave.options(parents=layer[:100])()
    graph = [last, *layer, root]
    jobs = client.submit(graph)
    assert [job.id for job in client.submit(graph)] == [job.id for job in jobs]
    assert sum(1 for _ in client.jobs(tags={"exp": "graph"})) == 11_000
    assert client.job(last.id).why().reasons
    assert jobs[-1].cancel() == "cancelled"
    assert {job.state for job in client.wait_all(jobs, WITHIN_S)} == {"CANCELLED", "FAILED"}
    assert client.delete(tags={"exp": "graph"}) == {"deleted": 11_000}


async def test_a_wait_survives_a_restart_of_the_hub(hub: RunningHub, tmp_path: Path) -> None:
    async with (
        world(hub) as w,
        AsyncClient(config_file=hub.client_config, key=tmp_path / "key") as client,
    ):
        pilot = await w.pilot()
        job = await client.app("nop", site=w.site_id).submit()
        reply = await pilot.sync()
        (grant,) = reply.grants
        wait = asyncio.create_task(job.wait(WITHIN_S))
        await until(lambda: client._engine.feed._stream is not None, "the stream is open")
        await asyncio.to_thread(hub.restart)
        # The pilot's syncs are not repeated here, so its broken connection is replaced first.
        await pilot.client.request("GET", "/v1/whoami")
        await pilot.sync([pilot.start(grant), pilot.end(grant)], slots=0)
        assert (await wait).ok


async def test_many_waits_share_one_stream(hub: RunningHub, tmp_path: Path) -> None:
    async with (
        world(hub) as w,
        AsyncClient(config_file=hub.client_config, key=tmp_path / "key") as client,
    ):
        pilot = await w.pilot()
        jobs = await client.app("nop", site=w.site_id).map([{}] * 200)
        waits = [asyncio.create_task(job.wait(WITHIN_S)) for job in jobs]
        everyone = asyncio.create_task(client.wait_all(jobs, WITHIN_S))
        reply = await pilot.sync(slots=200)
        assert len(reply.grants) == 200
        await pilot.sync([pilot.end(grant) for grant in reply.grants], slots=0)
        assert all(job.ok for job in await everyone)
        assert all(job.ok for job in await asyncio.gather(*waits))
    requests = [line for line in hub.log.splitlines() if "/v1/events/stream" in line]
    assert len(requests) <= 1


async def test_jobs_of_its_own_are_not_read_and_ends_before_the_wait_are_told(
    hub: RunningHub, tmp_path: Path
) -> None:
    async with (
        world(hub) as w,
        AsyncClient(config_file=hub.client_config, key=tmp_path / "key") as client,
    ):
        pilot = await w.pilot()
        app = client.app("nop", site=w.site_id).options(retries=0)
        failed, retried, early = await app.map([{}] * 3)
        grants = {g.job: g for g in (await pilot.sync(slots=3)).grants}
        exits = {failed.id: 1, retried.id: 1, early.id: 0}
        await pilot.sync([pilot.end(g, exits[job]) for job, g in grants.items()], slots=0)
        # Through another handle: this one does not hear of it.
        await (await client.job(retried.id)).retry()
        late = await app.submit()
        wait = asyncio.create_task(client.wait_all([failed, retried, early, late], WITHIN_S))
        reply = await pilot.sync(slots=2, wait_s=WITHIN_S)
        assert {g.job for g in reply.grants} == {retried.id, late.id}
        assert not wait.done()
        await pilot.sync([pilot.end(grant) for grant in reply.grants], slots=0)
        assert [job.ok for job in await wait] == [False, True, True, True]
        assert (failed.attempt, retried.attempt) == (1, 2)


async def test_filtered_events_are_read_to_the_end(hub: RunningHub, tmp_path: Path) -> None:
    """Whole pages hold nothing that matches, before the first match and between two."""
    async with (
        world(hub) as w,
        AsyncClient(config_file=hub.client_config, key=tmp_path / "key") as client,
    ):
        app = client.app("nop", site=w.site_id)
        start = await client.cursor()
        more_than_a_page: list[dict[str, Any]] = [{}] * (limits.PAGE_MAX + 1)

        async def one_that_ends() -> str:
            job = (await app.map(more_than_a_page))[-1]
            assert await job.cancel() == "cancelled"
            return job.id

        jobs = [await one_that_ends() for _ in range(2)]
        pilot = await w.pilot()
        await app.map(more_than_a_page)
        await client.admin.cancel_batch_job((await client.admin.batch_jobs())[0].id)

        async def subjects(**filters: Any) -> list[str]:
            return [event.subject async for event in client.events(cursor=start, **filters)]

        assert await subjects(final=True) == jobs
        assert pilot.session in await subjects(kinds=["session"])
        assert await subjects(jobs=[jobs[1]], kinds=["job"]) == [jobs[1]] * 2
        assert await subjects(kinds=["job.deleted"]) == []


def test_the_quickstart_does_what_it_says(place: Place, repository: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(repository / "examples" / "quickstart.py")],
        env=os.environ | place.environment,
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *greetings, last = done.stdout.splitlines()
    assert sorted(greetings) == [f"hello {who}: JOB_FINISHED" for who in ("Ada", "Claude", "Marie")]
    assert last == "hello all: JOB_FINISHED"
