"""The pilot when something is away or dies at a named point: the Hub, the head, the disk, time."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from chappe.pilot.head import CRASH_POINTS
from chappe.testing.hub import RunningHub
from chappe.wire.jobs import JobView
from tests.integration.pilot_rig import Pilot, RealSite, real_site, until


@pytest.fixture
async def site(shared_hub: RunningHub, tmp_path: Path) -> AsyncIterator[RealSite]:
    async with real_site(shared_hub, tmp_path) as made:
        yield made


def ran(site: RealSite) -> Counter[str]:
    """How often each attempt of each Job ran, as the Jobs themselves wrote it."""
    path = site.dir.path / "data" / "trace"
    return Counter(path.read_text().split()) if path.exists() else Counter()


def traced(site: RealSite, number: int, then: str = "") -> list[bytes]:
    """Jobs that write down each run of theirs."""
    text = f'echo "$CHAPPE_JOB_ID.$CHAPPE_ATTEMPT" >> "$CHAPPE_DATA/trace"; {then}'
    return [site.dir.spec("sh", text=text) for _ in range(number)]


async def finished(site: RealSite, ids: list[str]) -> list[JobView]:
    return [await site.reaches(ident, "JOB_FINISHED") for ident in ids]


async def more_run(site: RealSite) -> None:
    done = len(ran(site))
    await until(lambda: len(ran(site)) > done + 5, "some more jobs run")


async def keep_up(pilot: Pilot, first: dict[str, str]) -> None:
    """Be the batch script: start the head again when it dies."""
    await pilot.start(first)
    while await pilot.ended() != 0:
        await pilot.start(first)


@pytest.mark.parametrize("point", CRASH_POINTS)
async def test_killed_at_each_point_every_job_ends_exactly_once(
    site: RealSite, point: str, tmp_path: Path
) -> None:
    pilot = await site.session({"idle_s": 1.0})
    specs = traced(site, 20)
    if point == "pilot.before_result_put":
        text = 'echo "$CHAPPE_JOB_ID.$CHAPPE_ATTEMPT" >> "$CHAPPE_DATA/trace"; echo 1 > out.json'
        specs = [site.dir.spec("result", text=text) for _ in range(20)]
    ids = await site.submit(specs)
    fired = tmp_path / "fired"
    await keep_up(pilot, {"CHAPPE_CRASH_AT": point, "CHAPPE_CRASH_ONCE": str(fired)})
    assert fired.exists()
    views = await finished(site, ids)
    assert {view.attempt for view in views} == {1}
    assert ran(site) == Counter(f"{ident}.1" for ident in ids)


async def test_with_the_hub_away_what_runs_goes_on_and_is_reported_later(
    hub: RunningHub, tmp_path: Path
) -> None:
    async with real_site(hub, tmp_path) as site:
        await _without_its_hub(site, hub)


async def _without_its_hub(site: RealSite, hub: RunningHub) -> None:
    pilot = await site.session()
    await pilot.start()
    go = site.dir.path / "go"
    wait = f"while [ ! -e {go} ]; do sleep 0.05; done"
    ids = await site.submit(traced(site, 2, wait))
    for ident in ids:
        await site.reaches(ident, "RUNNING")
    hub.kill9()
    await until(lambda: len(pilot.logged("sync.failed")) > 1, "the pilot misses the hub")
    go.touch()
    await until(lambda: not pilot.jobs(), "the jobs end")
    hub.start()
    assert {view.attempt for view in await finished(site, ids)} == {1}
    assert ran(site) == Counter(f"{ident}.1" for ident in ids)


async def test_a_frozen_head_changes_nothing(site: RealSite) -> None:
    pilot = await site.session()
    await pilot.start()
    go = site.dir.path / "go"
    ids = await site.submit(traced(site, 2, f"while [ ! -e {go} ]; do sleep 0.05; done"))
    for ident in ids:
        await site.reaches(ident, "RUNNING")
    pilot.signal(signal.SIGSTOP)
    go.touch()
    await until(lambda: not pilot.jobs(), "the jobs end without their head")
    more = await site.submit(traced(site, 5))
    pilot.signal(signal.SIGCONT)
    await finished(site, [*ids, *more])
    assert ran(site) == Counter(f"{ident}.1" for ident in [*ids, *more])


async def test_a_job_that_turns_out_long_does_not_keep_others_behind_it(site: RealSite) -> None:
    pilot = await site.session({"slots": 2})
    await pilot.start()
    await finished(site, await site.submit([site.dir.spec("true") for _ in range(50)]))
    go = site.dir.path / "go"
    long = site.dir.spec("sh", text=f"while [ ! -e {go} ]; do sleep 0.05; done")
    ids = await site.submit([long, *(site.dir.spec("true") for _ in range(60))])
    await finished(site, ids[1:])
    assert (await site.job(ids[0])).state == "RUNNING"
    go.touch()
    await finished(site, ids[:1])


async def test_a_full_disk_ends_one_job_with_words_and_nothing_else_suffers(site: RealSite) -> None:
    """A file in the place of the directory stands for the disk: root may write where nobody else may."""
    pilot = await site.session()
    await pilot.start()
    (site.dir.path / "data" / "taken").write_text("")
    bad, good = await site.submit(
        [site.dir.spec("sh", text="true", workdir="taken/x"), *traced(site, 1)]
    )
    view = await site.reaches_final(bad)
    assert view.outcome is not None
    assert view.outcome.reason == "start_failed"
    assert "directory cannot be made" in view.outcome.message
    await finished(site, [good])


async def test_with_a_full_journal_nothing_new_starts_and_ends_are_still_told(
    site: RealSite,
) -> None:
    """A limit on the size of files, set and lifted on the living head, stands for the disk."""
    pilot = await site.session()
    await pilot.start()
    go = site.dir.path / "go"
    (runs,) = await site.submit(traced(site, 1, f"while [ ! -e {go} ]; do sleep 0.05; done"))
    await site.reaches(runs, "RUNNING")
    assert pilot.process is not None
    no_limit = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    resource.prlimit(pilot.process.pid, resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))
    (waits,) = await site.submit(traced(site, 1))
    go.touch()
    await finished(site, [runs])
    assert (await site.job(waits)).phase == "runnable"
    resource.prlimit(pilot.process.pid, resource.RLIMIT_FSIZE, no_limit)
    (view,) = await finished(site, [waits])
    assert view.attempt == 1
    await pilot.kill9()
    await pilot.start()
    await finished(site, await site.submit(traced(site, 1)))


async def test_a_damaged_journal_is_set_aside(site: RealSite) -> None:
    pilot = await site.session()
    await pilot.start()
    await finished(site, await site.submit(traced(site, 3)))
    await pilot.kill9()
    journal = pilot.directory / "journal"
    data = journal.read_bytes()
    journal.write_bytes(data[:40] + b"?" + data[41:])
    await pilot.start()
    await finished(site, await site.submit(traced(site, 3)))
    assert pilot.logged("journal.damaged")
    assert (pilot.directory / "journal.corrupt-1").exists()


async def test_killed_again_and_again_while_jobs_run(site: RealSite) -> None:
    pilot = await site.session()
    ids = await site.submit(traced(site, 120, "sleep 0.05"))
    for _ in range(4):
        await pilot.start()
        await more_run(site)
        await pilot.kill9()
    await pilot.start()
    views = await finished(site, ids)
    assert {view.attempt for view in views} == {1}
    assert ran(site) == Counter(f"{ident}.1" for ident in ids)


async def test_the_launcher_killed_again_and_again(site: RealSite) -> None:
    pilot = await site.session()
    await pilot.start()
    ids = await site.submit(traced(site, 60, "sleep 0.05"))
    for _ in range(2):
        await more_run(site)
        os.kill(await until(pilot.launcher, "there is a launcher"), signal.SIGKILL)
        await asyncio.sleep(0)
    views = await finished(site, ids)
    runs = ran(site)
    assert max(runs.values()) == 1
    for view in views:
        assert runs[f"{view.id}.{view.attempt}"] == 1
