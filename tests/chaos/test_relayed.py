"""Pilots on a node that reaches the site's agent and nothing else, while agent, hub and pilots die."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from chappe.site.check import check_site
from chappe.site.finding import Level
from chappe.testing.cluster import Cluster, patiently, until
from chappe.testing.far_node import FarNode
from chappe.testing.relay import Relay
from chappe.testing.site import RunningSite


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path / "cluster") as made:
        yield made


@pytest.fixture
def road(cluster: Cluster) -> tuple[Relay, str]:
    """The agent's way to the hub, which can be cut."""
    return cluster.relay()


@pytest.fixture
def site(cluster: Cluster, node: FarNode, road: tuple[Relay, str]) -> RunningSite:
    site = cluster.site("paris", url=road[1], keep=0, slots=4)
    python = node.program(site.root / "python", sys.executable)
    site.configure("pilot", python=str(python))
    site.configure("relay", enabled=True, address=node.here)
    site.start()
    cluster.offers(site)
    return site


def allocations(cluster: Cluster, site: RunningSite, count: int) -> list[str]:
    """So many, whose pilots ask for work."""
    made = [cluster.client.admin.new_batch_job(site.id).id for _ in range(count)]

    def all_ask() -> bool:
        sessions = [s for s in cluster.client.admin.sessions() if s.site == site.id and s.capacity]
        return len(sessions) == count

    until(all_ask, "all pilots ask for work")
    return made


def test_the_node_reaches_one_address_and_not_where_the_hub_listens(node: FarNode) -> None:
    look = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 60)"
    reached = {}
    for address in ("127.0.0.1", node.here):
        with socket.create_server((address, 0)) as server:
            port = str(server.getsockname()[1])
            argv = [*node.command, sys.executable, "-c", look, address, port]
            reached[address] = (
                subprocess.run(argv, capture_output=True, check=False).returncode == 0
            )
    assert reached == {"127.0.0.1": False, node.here: True}


def test_several_sessions_go_on_while_agent_and_hub_are_killed(
    cluster: Cluster, site: RunningSite
) -> None:
    """What a pilot needs goes through the relay: work, results, results of parents, logs, its farewell."""
    allocations(cluster, site, 3)
    assert not wrong(site)
    gate = cluster.directory / "gate"
    waiting = cluster.submit(12, site, gate=gate)
    until(lambda: all(v.phase == "running" for v in cluster.views(waiting)), "all run")
    assert len({v.session for v in cluster.views(waiting)}) == 3
    site.kill_agent()
    gate.touch()
    short = cluster.submit(8, site, app="trace-result")
    until(lambda: len(site.logged("sync.failed")) >= 3, "the pilots miss the relay")
    assert not cluster.ended(waiting + short)
    with cluster.tended():
        site.start()
        cluster.wait(waiting)
        cluster.kill_hub()
        cluster.wait(short)
        children = cluster.submit(4, site, app="trace-result", parents=short[:2])
        cluster.wait(children)
    views = cluster.judge(waiting + short + children)
    assert {(v.state, v.attempt) for v in views} == {("JOB_FINISHED", 1)}
    assert all(patiently(job.result) == [1] for job in short + children)


def wrong(site: RunningSite) -> list[str]:
    """What `chappe site check` complains about."""
    return [f.what for f in check_site(site.root) if f.level is not Level.OK]


def test_without_a_relay_the_check_says_that_the_nodes_need_one(
    cluster: Cluster, node: FarNode
) -> None:
    site = cluster.site("paris")
    python = node.program(site.root / "python", sys.executable)
    site.configure("pilot", python=str(python))
    site.start()
    until(lambda: site.logged("sync.failed"), "the pilot finds no way")
    (found,) = [f for f in check_site(site.root) if f.level is Level.ERROR]
    assert "does not reach the hub" in found.what
    assert "[relay]" in found.remedy


def test_an_allocation_that_ends_while_the_hub_is_away_loses_nothing(
    cluster: Cluster, site: RunningSite, road: tuple[Relay, str]
) -> None:
    """The relay stores nothing, and nothing is lost: the undertaker reads what the pilot had journalled."""
    allocations(cluster, site, 1)
    gate = cluster.directory / "gate"
    jobs = cluster.submit(4, site, gate=gate)
    until(lambda: all(v.phase == "running" for v in cluster.views(jobs)), "all run")
    road[0].cut(reset=True)
    gate.touch()
    until(lambda: site.written_ends() == len(jobs), "all ends are in the journal")
    until(lambda: site.logged("sync.failed"), "the pilot cannot tell")
    assert cluster.ended(jobs) == 0
    site.kill_allocations()
    road[0].restore()
    cluster.wait(jobs)
    views = cluster.judge(jobs)
    assert {(v.state, v.attempt, v.epoch) for v in views} == {("JOB_FINISHED", 1, 1)}
