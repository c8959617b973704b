"""Allocations that follow what waits, on a real Slurm and with real pilots: from none to some and back."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from chappe.site.calls import read_record
from chappe.testing.cluster import Cluster, patiently, until
from chappe.testing.slurm import SlurmCluster


@pytest.mark.parametrize("policy", ["fit", "backfill"])
def test_from_none_to_some_and_back(slurm: SlurmCluster, tmp_path: Path, policy: str) -> None:
    with Cluster(tmp_path) as cluster:
        site = cluster.site("paris", slots=2)
        site.configure("scheduler", kind="slurm", status_interval_s=1.0)
        site.configure("policy", submissions_per_s=50.0)
        site.configure(
            "elastic", policy=policy, idle_s=1.0, within_s=0.0, wall_s=600.0, node_cores=2, nodes=1
        )
        site.environ = dict(slurm.environ)
        site.start()
        cluster.offers(site)
        gate = tmp_path / "gate"
        jobs = cluster.submit(4, site, gate=gate, wall_s=120.0)
        until(lambda: len(site.jobs()) >= 4, "all run at once")
        gate.touch()
        cluster.wait(jobs)

        def states() -> Counter[str]:
            return Counter(b.state for b in patiently(cluster.client.admin.batch_jobs))

        until(lambda: set(states()) == {"ended"}, "idle pilots end")
        assert states()["ended"] == 2
        record = read_record(site.paths.calls)
        assert record is not None
        assert ("windows" in record.counts) == (policy == "backfill")
        slurm.clear()


def test_what_is_wider_than_the_machine_becomes_smaller(
    slurm: SlurmCluster, tmp_path: Path
) -> None:
    """Slurm accepts it, and lets it wait for ever."""
    with Cluster(tmp_path) as cluster:
        site = cluster.site("paris", slots=2)
        site.configure("scheduler", kind="slurm", status_interval_s=1.0, status_fast_s=1.0)
        site.configure("policy", submissions_per_s=50.0)
        facts = {"wall_s": 600.0, "node_cores": 2, "nodes": 6, "maximum": 1, "within_s": 0.0}
        site.configure("elastic", policy="fit", idle_s=1.0, **facts)
        site.environ = dict(slurm.environ)
        site.start()
        cluster.offers(site)
        cluster.wait(cluster.submit(12, site, beats=1, wall_s=120.0))
        widths = [b.intent.nodes for b in patiently(cluster.client.admin.batch_jobs)]
        assert sorted(widths)[-2:] == [3, 6]
        slurm.clear()
