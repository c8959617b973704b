"""What Jobs ask for, on a node with GPUs that this machine does not have: who gets what, and who waits."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from chappe.core.jobs import Resources, Retries
from chappe.link.clock import new_id
from chappe.testing.hub import RunningHub
from chappe.testing.nodes import big
from tests.integration.pilot_rig import RealSite, until


@pytest.fixture
async def site(shared_hub: RunningHub, tmp_path: Path) -> AsyncIterator[RealSite]:
    """A Site at a Hub that other tests use too."""
    hub = shared_hub
    made = RealSite(tmp_path / "site", hub.url, hub.token, hub.project, hub.ca_file or None)
    await made.register(f"paris-{new_id()}")
    yield made
    await made.close()


def topology(site: RealSite) -> str:
    """A file that describes a node of two domains with one CPU (this machine's first) and two GPUs each."""
    told = big(domains=1, cpus=1, gpus=2).topology
    path = site.dir.path / "node.json"
    path.write_bytes(msgspec.json.encode(told))
    return str(path)


async def test_jobs_see_the_gpus_that_they_were_given(site: RealSite) -> None:
    pilot = await site.session({"topology": topology(site), "slots": 8})
    await pilot.start()
    text = 'echo "$CUDA_VISIBLE_DEVICES,$OMP_NUM_THREADS"; until [ -e ../../../go ]; do sleep 0.05; done'
    wanted = [Resources(gpus=g) for g in (0.5, 0.25, 1)]
    specs = [site.dir.spec("sh", text=text, resources=r) for r in wanted]
    rest = site.dir.spec(
        "sh", text=text, resources=Resources(gpus=0.25, ranks=2, threads_per_rank=2)
    )
    none = site.dir.spec("sh", text=text)
    ids = await site.submit([*specs, rest, none])
    for ident in ids:
        await site.reaches(ident, "RUNNING")
    (more,) = await site.submit([site.dir.spec("sh", text=text, resources=Resources(gpus=0.01))])
    # A restarted head knows who has what.
    await pilot.kill9()
    await pilot.start()
    await until(lambda: pilot.logged("adopted"), "the new head takes over")
    assert (await site.job(more)).state == "PREPROCESSED"
    (site.dir.path / "data" / "go").touch()
    logs = []
    for ident in ids:
        await site.reaches(ident, "JOB_FINISHED")
        logs.append((site.dir.path / f"data/jobs/{ident}/attempt-1/stdout.log").read_text())
    assert logs == ["gpu0,1\n", "gpu0,1\n", "gpu1,1\n", "gpu0,2\n", ",1\n"]
    await site.reaches(more, "JOB_FINISHED")


async def test_a_job_is_warned_writes_its_checkpoint_and_is_started_again(site: RealSite) -> None:
    pilot = await site.session()
    await pilot.start()
    text = (
        '[ -e ../checkpoint ] && exit 0; trap "touch ../checkpoint; exit 9" USR1; '
        "while :; do sleep 0.05; done"
    )
    resources = Resources(wall_s=600.0, warn_s=599.0)
    (job,) = await site.submit([site.dir.spec("sh", text=text, resources=resources)])
    view = await site.reaches(job, "JOB_FINISHED")
    assert view.attempt == 2
    assert view.outcome is not None
    assert view.outcome.reason == "exit"


async def test_the_end_of_the_allocation_is_time_that_has_run_out(site: RealSite) -> None:
    pilot = await site.session({"drain_s": 2.0}, wall_s=12.0)
    await pilot.start()
    text = 'trap "exit 9" USR1; while :; do sleep 0.05; done'
    specs = [
        site.dir.spec("sh", text=text, resources=r, retries=Retries(max=0))
        for r in (Resources(warn_s=2.5), Resources(estimate_s=100.0), Resources(wall_s=100.0))
    ]
    (warned, *others) = await site.submit(specs)
    view = await site.reaches_final(warned)
    assert view.outcome is not None
    assert (view.outcome.reason, view.outcome.exit) == ("timeout", 9)
    assert await pilot.ended() == 0
    for ident in others:
        assert (await site.job(ident)).attempt == 0


async def test_licences_of_the_site_are_shared_by_its_pilots(site: RealSite) -> None:
    pilots = [await site.session({"slots": 2, "named": {"licence": 2}}) for _ in range(2)]
    for pilot in pilots:
        await pilot.start()
    text = "until [ -e ../../../go ]; do sleep 0.05; done"
    wanted = Resources(named={"licence": 1})
    specs = [site.dir.spec("sh", text=text, resources=wanted) for _ in range(3)]
    ids = await site.submit(specs)
    for ident in ids[:2]:
        await site.reaches(ident, "RUNNING")
    (plain,) = await site.submit([site.dir.spec("true")])
    await site.reaches(plain, "JOB_FINISHED")
    assert (await site.job(ids[2])).state == "PREPROCESSED"
    (site.dir.path / "data" / "go").touch()
    await site.reaches(ids[2], "JOB_FINISHED")
