"""Hands that a launcher starts on the nodes that the scheduler's variables name."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from chappe.link.clock import new_id
from chappe.pilot.procs import node_of
from chappe.testing.hub import RunningHub
from tests.integration.pilot_rig import Pilot, RealSite, until

#: They take no variable along, as the real ones do, and say how they were called.
SSH = 'echo "$*" >> "$0.log"; for last; do :; done; exec env -i PATH="$PATH" /bin/sh -c "$last"'
PBSDSH = 'echo "$*" >> "$0.log"; shift 3; exec env -i PATH="$PATH" "$@"'


@pytest.fixture
async def site(shared_hub: RunningHub, tmp_path: Path) -> AsyncIterator[RealSite]:
    hub = shared_hub
    made = RealSite(tmp_path / "site", hub.url, hub.token, hub.project, hub.ca_file or None)
    await made.register(f"paris-{new_id()}")
    yield made
    await made.close()


async def launched(site: RealSite, launcher: str, **programs: str) -> tuple[Pilot, Path]:
    """A pilot in an allocation of PBS's, and where its programs are."""
    programs_dir = site.dir.path / "bin"
    programs_dir.mkdir()
    for name, text in programs.items():
        (programs_dir / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs_dir / name).chmod(0o700)
    nodes = site.dir.path / "nodes"
    own = os.uname().nodename
    nodes.write_text(f"{own}\n{own}\nother\nother\n")
    pilot = await site.session({"slots": 1}, hosts={"kind": "launcher", "launcher": launcher})
    environ = {
        "PBS_JOBID": "7.server",
        "PBS_NODEFILE": str(nodes),
        "PATH": f"{programs_dir}:{os.environ['PATH']}",
    }
    await pilot.start(environ)
    return pilot, programs_dir


@pytest.mark.parametrize(
    ("launcher", "used", "called"),
    [
        ("auto", "pbsdsh", "-n 2 -- env CHAPPE_SESSION="),  # the position of its first line
        ("ssh", "ssh", "-T -x other exec env CHAPPE_SESSION="),
    ],
)
async def test_hands_join_and_jobs_run_on_both_nodes(
    site: RealSite, launcher: str, used: str, called: str
) -> None:
    pilot, programs = await launched(site, launcher, ssh=SSH, pbsdsh=PBSDSH)
    await until(lambda: pilot.logged("hand.joined"), "the hand joins")
    assert called in (programs / f"{used}.log").read_text()
    text = "echo $CHAPPE_NODE; until [ -e ../../../go ]; do sleep 0.05; done"
    jobs = await site.submit([site.dir.spec("sh", text=text) for _ in range(2)])
    for job in jobs:
        await site.reaches(job, "RUNNING")
    nodes = {node_of(pid) for pid in pilot.jobs()}
    assert nodes == {os.uname().nodename, "other"}
    (site.dir.path / "data" / "go").touch()
    for job in jobs:
        await site.reaches(job, "JOB_FINISHED")


async def test_a_launcher_that_starts_no_hands_is_said_to(site: RealSite) -> None:
    pilot, _ = await launched(site, "openmpi")
    assert await pilot.ended() != 0
    assert "starts no hands" in (pilot.directory / "pilot.out").read_text()
