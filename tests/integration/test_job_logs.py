"""Logs of Jobs through the Hub: while they run, from a real pilot; nobody is held up by a reader."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from chappe.core import limits
from chappe.core.errors import Conflict, Invalid, NotFound
from chappe.link.http import NO_RETRY
from chappe.testing.hub import RunningHub
from chappe.wire.logs import LogPage
from tests.integration.pilot_rig import DEADLINE_S, RealSite, until


@pytest.fixture
async def site(shared_hub: RunningHub, tmp_path: Path) -> AsyncIterator[RealSite]:
    """A Site of this test's own, with a pilot."""
    hub = shared_hub
    made = RealSite(tmp_path / "site", hub.url, hub.token, hub.project, hub.ca_file or None)
    await made.register(f"logs-{made.dir.site}")
    await (await made.session()).start()
    yield made
    await made.close()


async def page(site: RealSite, job: str, **params: Any) -> LogPage:
    """One page of a Job's log."""
    return await site.user.request(
        "GET",
        f"/v1/jobs/{job}/logs",
        reply=LogPage,
        params=params,
        timeout_s=DEADLINE_S,
        retry=NO_RETRY,
    )


async def run(site: RealSite, text: str, app: str = "sh") -> str:
    """A Job that has begun."""
    (job,) = await site.submit([site.dir.spec(app, text=text)])
    await site.reaches(job, "RUNNING", "JOB_FINISHED")
    return job


async def read_all(site: RealSite, job: str, start: int = 0) -> bytes:
    """Everything from `start` until the Job has ended, as a reader who follows gets it."""
    data = b""
    while True:
        got = await page(site, job, start=start, wait_s=20)
        assert got.start == start
        data, start = data + got.data, got.next
        if got.over:
            return data


async def test_a_running_job_is_followed_to_its_end(site: RealSite, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    job = await run(
        site,
        f"echo one; echo oh >&2; while [ ! -e {gate} ]; do sleep 0.05; done; "
        f"for k in 1 2 3; do echo line $k; sleep 0.3; done",
    )
    first = await page(site, job, start=0, wait_s=20)
    assert (first.data, first.over) == (b"one\n", False)
    apart = await page(site, job, stream="stderr", tail=5, wait_s=20)
    assert apart.data == b"oh\n"
    gate.touch()
    assert await read_all(site, job, first.next) == b"line 1\nline 2\nline 3\n"
    # It has ended: now nobody holds it, and a pilot of the Site reads the file (no agent is there).
    await site.reaches(job, "JOB_FINISHED")
    again = await page(site, job, tail=2)
    assert (again.data, again.over) == (b"line 2\nline 3\n", True)
    with pytest.raises(Conflict, match="attempt 2"):
        await page(site, job, start=0, attempt=2)


async def test_a_reader_who_waits_for_nothing_gets_nothing_and_holds_nothing_up(
    site: RealSite,
) -> None:
    job = await run(site, "echo before; sleep 1000")
    await page(site, job, start=0, wait_s=20)
    waiting = [asyncio.create_task(page(site, job, tail=0, wait_s=30)) for _ in range(3)]
    other = await run(site, "echo quick")
    await site.reaches(other, "JOB_FINISHED")
    for task in waiting:
        assert not task.done()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    # Readers that left are forgotten, and others get what they ask for.
    assert (await page(site, job, tail=1)).data == b"before\n"
    await site.cancel(job)
    assert (await site.reaches_final(job)).state == "CANCELLED"


async def test_a_flood_of_output_is_read_in_a_window(site: RealSite) -> None:
    # 200 MB are written in a moment, and 10 GB more are there for whoever would read them all.
    job = await run(
        site,
        'head -c 200000000 /dev/zero | tr "\\0" x; truncate -s +10G "$CHAPPE_WORKDIR/stdout.log"; '
        "echo; echo the end; sleep 1000",
    )
    loop = asyncio.get_running_loop()

    async def end() -> bytes:
        return (await page(site, job, tail=1)).data

    began = loop.time()
    while (found := await end()) != b"the end\n":
        assert loop.time() - began < DEADLINE_S, found[:100]
        await asyncio.sleep(0.05)
    got = await page(site, job, start=150_000_000)
    assert got.size > 10 * 2**30
    assert got.data == b"x" * limits.LOG_BYTES
    assert len((await page(site, job, tail=1_000)).data) <= limits.LOG_BYTES
    await site.cancel(job)
    view = await site.reaches_final(job)
    assert view.outcome is not None
    assert len(view.outcome.tail) <= limits.TAIL_BYTES


async def test_many_readers_of_one_job_are_bounded(site: RealSite) -> None:
    job = await run(site, "echo x; sleep 1000")
    most = limits.LOG_READERS_EACH + 5
    answers = await asyncio.gather(
        *(page(site, job, tail=0, wait_s=1) for _ in range(most)), return_exceptions=True
    )
    codes = [a.code for a in answers if isinstance(a, Exception) and hasattr(a, "code")]
    assert set(codes) <= {"busy"}
    assert sum(isinstance(a, LogPage) for a in answers) >= limits.LOG_READERS_EACH // 2
    assert (await page(site, job, tail=1)).data == b"x\n"


async def test_what_cannot_be_read_is_said_in_words(site: RealSite) -> None:
    for params in ({}, {"start": 0, "tail": 1}, {"start": 0, "stream": "stdin"}):
        with pytest.raises(Invalid):
            await page(site, "01a1f8ae-4bcb-73bb-8f1b-9beb788236d9", **params)
    with pytest.raises(NotFound):
        await page(site, "01a1f8ae-4bcb-73bb-8f1b-9beb788236d9", start=0)
    (job,) = await site.submit([site.dir.spec("true")])
    await site.reaches_final(job)
    with pytest.raises(NotFound, match="keeps no log"):
        await page(site, job, start=0)
    merged = await run(site, "sleep 1000", app="result")
    with pytest.raises(NotFound, match="same log"):
        await page(site, merged, stream="stderr", start=0)


async def test_the_next_pilot_answers_and_after_the_last_one_the_kept_tail_does(
    site: RealSite,
) -> None:
    (pilot,) = site.pilots
    (failed,) = await site.submit([site.dir.spec("sh", text="echo because >&2; exit 3")])
    await site.reaches(failed, "FAILED")
    job = await run(site, "sleep 1000")
    pilot.signal(signal.SIGSTOP)  # neither dead nor heard: nobody knows yet
    waiting = asyncio.create_task(page(site, job, tail=1))
    await asyncio.sleep(0)
    await pilot.kill9()
    await pilot.start()
    # The next pilot takes over what runs, and the wish with it.
    got = await waiting
    assert (got.data, got.over) == (b"", False)
    pilot.signal(signal.SIGTERM)
    await pilot.ended()
    await until(lambda: not pilot.jobs(), "the job ends with its pilot")
    # Nobody answers any more, though the agent that the rig played was heard a moment ago.
    kept = await page(site, failed, stream="stderr", tail=10)
    assert (kept.data, kept.over) == (b"because\n", True)
    assert "kept with the failure" in kept.note
