"""Real MPI programs on emulated nodes, started by the real Open MPI."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from chappe.core.jobs import Resources, Retries
from chappe.link.clock import new_id
from chappe.pilot.procs import node_of
from chappe.testing.hub import RunningHub
from tests.conftest import Require
from tests.integration.mpi_rig import HOW_TO_GET, compile_ring, mpi_pilot, said, there
from tests.integration.pilot_rig import Pilot, RealSite, until

WIDE = Resources(nodes=2, ranks=4, threads_per_rank=1)


@pytest.fixture(scope="module")
def ring(require: Require, tmp_path_factory: pytest.TempPathFactory) -> Path:
    require(there(), "Open MPI", HOW_TO_GET)
    return compile_ring(tmp_path_factory.mktemp("mpi"))


@pytest.fixture
async def site(ring: Path, shared_hub: RunningHub, tmp_path: Path) -> AsyncIterator[RealSite]:
    hub = shared_hub
    made = RealSite(tmp_path / "site", hub.url, hub.token, hub.project, hub.ca_file or None)
    await made.register(f"paris-{new_id()}")
    yield made
    await made.close()


def kill_all(pilot: Pilot, node: str) -> None:
    """Everything on one node dies at once."""
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit() or node_of(int(directory.name)) != node:
            continue
        try:
            if pilot.session.encode() in (directory / "environ").read_bytes():
                os.kill(int(directory.name), signal.SIGKILL)
        except OSError:
            continue


async def all_speak(site: RealSite, job: str, attempt: int = 1) -> dict[int, tuple[str, int]]:
    """(node, pid) of each rank, once all have spoken."""
    await until(lambda: len(said(site, job, attempt)) == 4, "all ranks speak")
    return {int(line[0]): (line[3], int(line[4])) for line in said(site, job, attempt)}


async def test_ranks_on_two_nodes_speak_to_each_other(site: RealSite, ring: Path) -> None:
    await mpi_pilot(site)
    (job,) = await site.submit([site.dir.spec("sh", text=str(ring), resources=WIDE)])
    await site.reaches(job, "JOB_FINISHED")
    lines = said(site, job)
    assert [line[:3] for line in lines] == [[str(k), "4", "6"] for k in range(4)]
    assert sorted(line[3] for line in lines) == ["n0", "n0", "n1", "n1"]
    assert {(line[5], line[6]) for line in lines} == {(job, "1")}


async def test_a_killed_rank_ends_its_job_by_name_and_nothing_is_left(
    site: RealSite, ring: Path
) -> None:
    await mpi_pilot(site)
    spec = site.dir.spec("sh", text=f"exec {ring} wait", resources=WIDE, retries=Retries(max=0))
    (job,) = await site.submit([spec])
    ranks = await all_speak(site, job)
    node, pid = ranks[2]
    os.kill(pid, signal.SIGKILL)
    view = await site.reaches_final(job)
    assert view.outcome is not None
    assert view.outcome.reason == "rank_killed"
    assert view.outcome.message == f"rank 2 on node {node} was killed by signal 9"
    await until(lambda: not any(node_of(p) for _, p in ranks.values()), "no rank is left")
    (after,) = await site.submit([site.dir.spec("sh", text=str(ring), resources=WIDE)])
    await site.reaches(after, "JOB_FINISHED")


async def test_a_rank_that_fails_is_named(site: RealSite, ring: Path) -> None:
    await mpi_pilot(site)
    text = '[ "$OMPI_COMM_WORLD_RANK" = 3 ] && exit 5; sleep 60'
    spec = site.dir.spec("sh", text=text, resources=WIDE, retries=Retries(max=0))
    (job,) = await site.submit([spec])
    view = await site.reaches_final(job)
    assert view.outcome is not None
    assert (view.outcome.reason, view.outcome.exit) == ("exit", 5)
    assert view.outcome.message == "rank 3 exited with 5", view.outcome.tail


async def test_a_cancelled_job_leaves_no_rank(site: RealSite, ring: Path) -> None:
    await mpi_pilot(site)
    (job,) = await site.submit([site.dir.spec("sh", text=f"exec {ring} wait", resources=WIDE)])
    ranks = await all_speak(site, job)
    await site.cancel(job)
    view = await site.reaches_final(job)
    assert view.state == "CANCELLED"
    await until(lambda: not any(node_of(p) for _, p in ranks.values()), "no rank is left")


@pytest.mark.parametrize("retries", [0, 1])
async def test_a_node_that_dies_takes_its_mpi_job_and_the_others_go_on(
    site: RealSite, ring: Path, retries: int
) -> None:
    pilot = await mpi_pilot(site, nodes=3)
    text = "until [ -e ../../../go ]; do sleep 0.05; done"
    (alone,) = await site.submit([site.dir.spec("sh", text=text)])
    await site.reaches(alone, "RUNNING")
    # Whole nodes: those that the other Job is not on.
    wide = Resources(nodes=2, ranks=4)
    spec = site.dir.spec(
        "sh", text=f"exec {ring} wait", resources=wide, retries=Retries(max=retries)
    )
    (job,) = await site.submit([spec])
    ranks = await all_speak(site, job)
    *_, doomed = sorted({node for node, _ in ranks.values()})
    kill_all(pilot, doomed)
    if retries:
        # It is begun again when the node has a hand again.
        await all_speak(site, job, attempt=2)
        await site.cancel(job)
    view = await site.reaches_final(job)
    assert view.outcome is not None
    assert view.outcome.reason == ("cancelled" if retries else "node_lost")
    await until(lambda: not any(node_of(p) for _, p in ranks.values()), "no rank is left")
    assert (await site.job(alone)).state == "RUNNING"
    (site.dir.path / "data" / "go").touch()
    await site.reaches(alone, "JOB_FINISHED")
