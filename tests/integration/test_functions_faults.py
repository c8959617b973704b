"""Functions while parts of their pilot die: every attempt runs once, and no value is lost or made up."""

from __future__ import annotations

import asyncio
import base64
import functools
import hashlib
import os
import pickle
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from chappe.link import values
from chappe.link.signing import make_submissions
from chappe.pilot.procs import find_marked
from chappe.sdk import pickling
from chappe.sdk.functions import PYTHON
from chappe.testing.hub import RunningHub
from chappe.wire.jobs import CreateJobs, CreateReply, NewJob
from chappe.wire.results import AskResults, Results
from tests.integration.pilot_rig import Pilot, RealSite, real_site, until

FUNCTIONS = {"allowed": True, "environments": {"default": {"own_directory": False, "log": "none"}}}


@pytest.fixture
async def site(shared_hub: RunningHub, tmp_path: Path) -> AsyncIterator[RealSite]:
    async with real_site(shared_hub, tmp_path) as made:
        yield made


def traced(number: int, pause_s: float) -> int:
    """Write down this run, take a while, and return something that nobody else would."""
    import os
    import time

    line = os.environ["CHAPPE_JOB_ID"] + "." + os.environ["CHAPPE_ATTEMPT"] + "\n"
    with open(os.environ["CHAPPE_DATA"] + "/trace", "a") as file:
        file.write(line)
    time.sleep(pause_s)
    return number * 1_000_003


async def submit(site: RealSite, count: int, pause_s: float = 0.0, **retries: Any) -> list[str]:
    """So many calls of `traced`, numbered, in one request."""
    code = pickling.dumps(traced)
    specs = [
        msgspec.json.encode(
            {k: v for k, v in msgspec.json.decode(site.dir.spec("sh")).items() if k != "app"}
            | {
                "retries": {"max": 3, "on": ["lost", "error"]} | retries,
                "function": {
                    "name": "traced",
                    "code": hashlib.sha256(code).hexdigest(),
                    "arguments": base64.b64encode(pickle.dumps(((n, pause_s), {}))).decode(),
                    "python": PYTHON,
                },
            }
        )
        for n in range(count)
    ]
    key, project = site.dir.key, site.dir.project
    submissions = make_submissions(key, project, specs, time.time() + 3600, code=[code])
    jobs = [NewJob(msgspec.Raw(spec), submission=0, idx=k) for k, spec in enumerate(specs)]
    body = CreateJobs(jobs, submissions)
    reply = await site.user.request("POST", "/v1/jobs", body, CreateReply)
    return [verdict.id for verdict in reply.verdicts]


def ran(site: RealSite) -> Counter[str]:
    path = site.dir.path / "data" / "trace"
    return Counter(path.read_text().split()) if path.exists() else Counter()


def _more_than(site: RealSite, count: int) -> bool:
    return len(ran(site)) > count


async def check(site: RealSite, ids: list[str], attempts: set[int]) -> None:
    """All finished, no attempt ran twice, and each value is its own and sealed."""
    views = [await site.reaches(ident, "JOB_FINISHED") for ident in ids]
    assert {view.attempt for view in views} <= attempts
    runs = ran(site)
    assert max(runs.values()) == 1
    assert {f"{view.id}.{view.attempt}" for view in views} <= runs.keys()
    found: dict[str, bytes] = {}
    for start in range(0, len(ids), 500):
        asked = AskResults(ids[start : start + 500])
        page = await site.user.request("POST", "/v1/jobs/results", asked, Results)
        found |= {r.job: r.body for r in page.results}
    for n, ident in enumerate(ids):
        opened = values.unseal(found[ident], ident, lambda _, named: named)
        assert msgspec.msgpack.decode(opened.body) == n * 1_000_003


async def keep_up(pilot: Pilot, first: dict[str, str]) -> None:
    """Be the batch script: start the head again when it dies."""
    await pilot.start(first)
    while await pilot.ended() != 0:
        await pilot.start(first)


@pytest.mark.parametrize(
    "point", ["pilot.after_launch_sent", "pilot.after_end_journal", "pilot.before_result_put"]
)
async def test_a_head_that_dies_loses_no_value(site: RealSite, point: str, tmp_path: Path) -> None:
    pilot = await site.session({"idle_s": 1.0}, functions=FUNCTIONS)
    ids = await submit(site, 30)
    fired = tmp_path / "fired"
    await keep_up(pilot, {"CHAPPE_CRASH_AT": point, "CHAPPE_CRASH_ONCE": str(fired)})
    assert fired.exists()
    await check(site, ids, {1})


async def test_heads_launchers_zygotes_and_workers_killed_while_calls_run(site: RealSite) -> None:
    pilot = await site.session(functions=FUNCTIONS)
    await pilot.start()
    ids = await submit(site, 150, 0.05, max=50)
    for kill in ("worker", "zygote", "launcher", "head", "worker"):
        done = len(ran(site))
        await until(functools.partial(_more_than, site, done + 10), "some more calls run")
        if kill == "head":
            await pilot.kill9()
            await pilot.start()
        elif kill == "launcher":
            os.kill(await until(pilot.launcher, "there is a launcher"), signal.SIGKILL)
        else:
            os.kill(await until(functools.partial(one, pilot, kill), f"a {kill}"), signal.SIGKILL)
        await asyncio.sleep(0)
    await check(site, ids, set(range(1, 51)))


def one(pilot: Pilot, kind: str) -> int:
    """A zygote's or a worker's pid; 0 when there is none. Both are the launcher's children."""
    launcher = pilot.launcher()
    for process in find_marked(pilot.session):
        try:
            stat = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            line = Path(f"/proc/{process.pid}/cmdline").read_bytes()
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        except OSError:
            continue
        if b"chappe.pilot.zygote" not in line or int(stat[1]) != launcher or children:
            continue
        # The zygote is the oldest of them: it was started, and they were forked.
        if (kind == "zygote") == (process.pid == _oldest(pilot, launcher)):
            return process.pid
    return 0


def _oldest(pilot: Pilot, launcher: int) -> int:
    found = []
    for process in find_marked(pilot.session):
        try:
            stat = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            line = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        except OSError:
            continue
        if b"chappe.pilot.zygote" in line and int(stat[1]) == launcher:
            found.append((int(stat[19]), process.pid))
    return min(found, default=(0, 0))[1]
