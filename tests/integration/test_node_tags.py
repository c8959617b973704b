"""Nodes set apart by a tag, in a real allocation of emulated nodes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from chappe.core.jobs import Resources
from chappe.link.clock import new_id
from chappe.testing.hub import RunningHub
from chappe.wire.jobs import Why
from tests.integration.pilot_rig import RealSite, until


@pytest.fixture
async def site(shared_hub: RunningHub, tmp_path: Path) -> AsyncIterator[RealSite]:
    hub = shared_hub
    made = RealSite(tmp_path / "site", hub.url, hub.token, hub.project, hub.ca_file or None)
    await made.register(f"paris-{new_id()}")
    yield made
    await made.close()


async def test_jobs_find_the_nodes_of_their_tag(site: RealSite) -> None:
    hosts = {"kind": "emulated", "nodes": 3}
    pilot = await site.session({"slots": 1, "node_tags": {"mpi": 1}}, hosts=hosts)
    await pilot.start()
    await until(lambda: len(pilot.logged("hand.joined")) == 2, "all hands join")
    tagged, none = Resources(node_tag="mpi"), Resources(node_tag="io")
    text = "echo $CHAPPE_NODE; until [ -e ../../../go ]; do sleep 0.05; done"
    specs = [site.dir.spec("sh", text=text, resources=r) for r in (tagged, tagged, none)]
    (first, second, never) = await site.submit(specs)
    plain = await site.submit([site.dir.spec("sh", text=text) for _ in range(2)])
    await site.reaches(first, "RUNNING")
    for job in plain:
        await site.reaches(job, "RUNNING")
    assert (await site.job(second)).state == "PREPROCESSED"
    why = await site.user.request("GET", f"/v1/jobs/{never}/why", reply=Why)
    assert "1 nodes tagged io and the pilot has 0" in str(why)
    (site.dir.path / "data" / "go").touch()
    nodes = {}
    for job in (first, second, *plain):
        await site.reaches(job, "JOB_FINISHED")
        log = site.dir.path / f"data/jobs/{job}/attempt-1/stdout.log"
        nodes[job] = log.read_text().strip()
    assert nodes[first] == nodes[second] == "n2"
    assert {nodes[job] for job in plain} == {"n0", "n1"}
