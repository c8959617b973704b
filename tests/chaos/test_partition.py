"""The wire between the head of an allocation and its other node is pulled: nothing runs twice.

Both ends live on and nobody is told. The launcher beyond the cut may run what it has until the time that the
head last allowed; only after that may the head call the node lost and let its Jobs start elsewhere.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from chappe.sdk.sync import Job
from chappe.testing.cluster import Cluster, until
from chappe.testing.far_node import FarNode
from chappe.testing.site import RunningSite

GRACE_S = 4.0


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path / "cluster") as made:
        yield made


def two_nodes(cluster: Cluster, node: FarNode, grace_s: float) -> RunningSite:
    """One allocation of two nodes, two slots each, of which one is at the end of the wire."""
    site = cluster.site("paris", keep=1, slots=2, head_grace_s=grace_s)
    start = ["env", "FAR={node}", *node.command]
    site.configure("pilot", node_names=["echo", "near far"], hands=start)
    site.start()
    cluster.offers(site)
    until(lambda: site.logged("hand.joined"), "the hand joins over the wire")
    return site


@pytest.fixture
def site(cluster: Cluster, node: FarNode) -> RunningSite:
    return two_nodes(cluster, node, GRACE_S)


def all_running(cluster: Cluster, jobs: list[Job]) -> None:
    until(lambda: all(v.phase == "running" for v in cluster.views(jobs)), "all run")


def test_a_node_beyond_a_cut_is_lost_only_when_its_jobs_are_over(
    cluster: Cluster, site: RunningSite, node: FarNode
) -> None:
    gate = cluster.directory / "gate"
    jobs = cluster.submit(4, site, gate=gate, retries=3)
    all_running(cluster, jobs)
    node.pull()
    until(lambda: site.logged("node.lost"), "the node is lost")
    gate.touch()
    cluster.wait(jobs)
    views = cluster.judge(jobs)
    assert sorted(v.attempt for v in views) == [1, 1, 2, 2]
    ends = [e for e in cluster.client.events() if e.subject in {j.id for j in jobs}]
    assert sum("node far was lost" in str(e) for e in ends) == 2
    joined = len(site.logged("hand.joined"))
    node.plug()
    until(lambda: len(site.logged("hand.joined")) > joined, "the node is used again", 60.0)
    more = cluster.submit(8, site, beats=10)
    cluster.wait(more)
    assert {v.attempt for v in cluster.judge(jobs + more)} == {1, 2}


def test_a_cut_that_is_mended_in_time_costs_no_attempt(cluster: Cluster, node: FarNode) -> None:
    site = two_nodes(cluster, node, 60.0)
    gate = cluster.directory / "gate"
    jobs = cluster.submit(4, site, gate=gate, retries=0)
    all_running(cluster, jobs)
    node.pull()
    time.sleep(2.0)
    node.plug()
    gate.touch()
    cluster.wait(jobs)
    assert {v.state for v in cluster.judge(jobs)} == {"JOB_FINISHED"}


def test_a_wire_that_is_pulled_again_and_again(
    cluster: Cluster, site: RunningSite, node: FarNode
) -> None:
    """At any moment: while orders are under way, while ends are told, for longer than the head allows."""
    chance = random.Random(7)
    jobs: list[Job] = []
    for _ in range(6):
        new = cluster.submit(6, site, beats=10, beat_s=0.05, retries=20)
        jobs += new
        time.sleep(chance.uniform(0.0, 0.5))
        node.pull()
        time.sleep(chance.uniform(0.0, 1.5 * GRACE_S))
        node.plug()
        until(partial(cluster.ended, new), "an end is told")
    cluster.wait(jobs)
    assert {v.state for v in cluster.judge(jobs)} == {"JOB_FINISHED"}
