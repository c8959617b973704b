"""Allocations that follow what waits, with real pilots, and an agent that is killed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chappe.site.elastic_inputs import dry_run
from chappe.testing.cluster import Cluster, patiently, until
from chappe.testing.site import RunningSite, crash_at
from chappe.wire.events import Event


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path) as made:
        yield made


def elastic_site(cluster: Cluster, **elastic: Any) -> RunningSite:
    site = cluster.site("paris", slots=2, keep=1)
    site.configure("elastic", **{"policy": "fit", "idle_s": 1.0, "within_s": 0.0, **elastic})
    return site


def states(cluster: Cluster) -> Counter[str]:
    return Counter(b.state for b in patiently(cluster.client.admin.batch_jobs))


def decisions(cluster: Cluster) -> list[Event]:
    return [e for e in patiently(lambda: list(cluster.client.events())) if e.kind == "elastic"]


def test_from_none_to_some_and_back(cluster: Cluster, tmp_path: Path) -> None:
    site = elastic_site(cluster, node_cores=2)
    site.start()
    cluster.offers(site)
    assert not states(cluster), "nothing waits, nothing is asked for"
    gate = tmp_path / "gate"
    jobs = cluster.submit(6, site, gate=gate)
    until(lambda: states(cluster)["running"] == 3, "three allocations of two slots")
    until(lambda: len(site.jobs()) >= 6, "all run at once")
    gate.touch()
    cluster.wait(jobs)
    until(lambda: states(cluster) == {"ended": 3}, "idle pilots end")
    cluster.judge(jobs)
    first = decisions(cluster)[0].data
    assert [ask["jobs"] for ask in first["asks"]] == [2, 2, 2]
    assert first["inputs"]["waiting"][0]["jobs"] == 6
    again = cluster.submit(1, site, beats=1)
    cluster.wait(again)
    until(lambda: states(cluster) == {"ended": 4}, "and again")


def test_a_job_that_no_node_can_take_has_its_reason_in_the_log(cluster: Cluster) -> None:
    site = elastic_site(cluster, node_cores=2)
    site.start()
    cluster.offers(site)
    cluster.submit(1, site, cores=3)
    (event,) = until(lambda: decisions(cluster), "a decision")
    assert (event.data["asks"], event.data["unmet"][0]["code"]) == ([], "node_size")
    assert not states(cluster)
    site.stop()
    cluster.submit(3, site)
    plan = dry_run(site.root, cluster.client.admin.demand("paris"))
    assert [w["jobs"] for w in plan["inputs"]["waiting"]] == [3, 1]
    assert [ask["jobs"] for ask in plan["asks"]] == [2, 1]
    assert [u["code"] for u in plan["unmet"]] == ["node_size"]


def test_a_killed_agent_asks_for_nothing_twice(cluster: Cluster, tmp_path: Path) -> None:
    site = elastic_site(cluster, node_cores=2)
    site.environ = crash_at("agent.after_decision", 1, tmp_path / "once")
    site.start()
    cluster.offers(site)
    jobs = cluster.submit(4, site, gate=tmp_path / "gate")
    until(lambda: not site.agent_up, "the agent's death")
    site.start()
    until(lambda: len(site.jobs()) >= 4, "all run at once")
    until(lambda: states(cluster) == {"running": 2}, "the scheduler's word of both")
    (tmp_path / "gate").touch()
    cluster.wait(jobs)
    until(lambda: states(cluster) == {"ended": 2}, "idle pilots end")
    assert sum(len(e.data["asks"]) for e in decisions(cluster)) == 2
