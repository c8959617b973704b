"""Hands and ranks by srun, in a real allocation of a real Slurm."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from chappe.core.jobs import Resources, Retries
from chappe.link.clock import new_id
from chappe.testing.hub import RunningHub
from chappe.testing.slurm import SlurmCluster
from tests.integration.pilot_rig import Pilot, RealSite, until


@pytest.fixture
async def site(
    slurm: SlurmCluster, shared_hub: RunningHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[RealSite]:
    for name, value in slurm.environ.items():
        monkeypatch.setenv(name, value)
    hub = shared_hub
    made = RealSite(tmp_path / "site", hub.url, hub.token, hub.project, hub.ca_file or None)
    await made.register(f"paris-{new_id()}")
    yield made
    slurm.clear()
    await made.close()


async def allocated(site: RealSite, slurm: SlurmCluster) -> Pilot:
    """A pilot in an allocation of two whole nodes, with its hand."""
    pilot = await site.session(
        {"slots": 2, "launch": {"ranks": "auto"}}, hosts={"kind": "launcher", "launcher": "auto"}
    )
    command = [sys.executable, "-P", "-m", "chappe.pilot", "--dir", str(pilot.directory)]
    script = pilot.directory / "batch.sh"
    script.write_text(
        f"#!/bin/sh\nexport CHAPPE_SESSION={pilot.session}\nexec {shlex.join(command)}\n"
    )
    output = pilot.directory / "pilot.out"
    slurm.run("sbatch", "-N2", "--exclusive", "-p", "debug", "-o", output, script)
    await until(lambda: pilot.logged("hand.joined"), "the hand joins")
    return pilot


def stdout(site: RealSite, job: str) -> list[list[str]]:
    path = site.dir.path / f"data/jobs/{job}/attempt-1/stdout.log"
    text = path.read_text() if path.exists() else ""
    return sorted(line.split() for line in text.splitlines())


async def test_srun_starts_hands_and_ranks_and_names_the_rank_that_dies(
    site: RealSite, slurm: SlurmCluster
) -> None:
    await allocated(site, slurm)
    wide = Resources(nodes=2, ranks=4, threads_per_rank=1)
    text = "echo $SLURM_PROCID $SLURMD_NODENAME $CHAPPE_JOB_ID $$"
    (job,) = await site.submit([site.dir.spec("sh", text=text, resources=wide)])
    await site.reaches(job, "JOB_FINISHED")
    said = stdout(site, job)
    assert [line[0] for line in said] == ["0", "1", "2", "3"]
    assert {line[2] for line in said} == {job}
    nodes = [line[1] for line in said]
    assert sorted(map(nodes.count, set(nodes))) == [2, 2]
    waiting = site.dir.spec(
        "sh", text=f"{text}; exec sleep 600", resources=wide, retries=Retries(max=0)
    )
    (doomed,) = await site.submit([waiting])
    await until(lambda: len(stdout(site, doomed)) == 4, "all ranks speak")
    rank, node, _, pid = stdout(site, doomed)[2]
    os.kill(int(pid), 9)
    view = await site.reaches_final(doomed)
    assert view.outcome is not None
    assert view.outcome.reason == "rank_killed", view.outcome
    assert view.outcome.message == f"rank {rank} on node {node} was killed by signal 9"
