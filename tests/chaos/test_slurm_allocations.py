"""Pilots in allocations of a real Slurm that are cancelled and killed while their Jobs run."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from chappe.sdk.sync import Job
from chappe.site.calls import read_record
from chappe.testing.cluster import Cluster, until
from chappe.testing.slurm import SlurmCluster

JOBS = 60


def goes_on(cluster: Cluster, jobs: Sequence[Job]) -> None:
    """Wait until more have ended."""
    before = cluster.ended(jobs)
    until(lambda: cluster.ended(jobs) > before + 4, "some more end")


def running(slurm: SlurmCluster, batch_job: str) -> str:
    """Slurm's id of a BatchJob that runs; empty while it does not."""
    name = f"chappe-{batch_job}"
    return next((job for job, n, state in slurm.jobs() if (n, state) == (name, "RUNNING")), "")


def test_allocations_are_cancelled_and_killed_and_nothing_is_lost(
    tmp_path: Path, slurm: SlurmCluster
) -> None:
    slurm.clear()
    with Cluster(tmp_path / "cluster") as cluster:
        site = cluster.site("paris", keep=0, slots=2, cores=2, wall_s=1800.0)
        site.environ.update(slurm.environ)
        site.configure("scheduler", kind="slurm", status_interval_s=3.0, status_fast_s=1.0)
        site.configure("policy", submissions_per_s=10.0)
        site.start()
        cluster.offers(site)
        wanted = [cluster.client.admin.new_batch_job(site.id, cores=2).id for _ in range(4)]
        jobs = cluster.submit(JOBS, site, beats=10, beat_s=0.1)
        for n, how in enumerate(([], ["--signal=KILL", "--full"])):
            goes_on(cluster, jobs)
            doomed = until(partial(running, slurm, wanted[n]), "it runs")
            # By hand, once as scancel does it, with a signal to all processes, and once without a warning.
            slurm.run("scancel", *how, doomed)
        cluster.wait(jobs)
        views = cluster.judge(jobs)
        assert {view.state for view in views} == {"JOB_FINISHED"}
        record = read_record(site.paths.calls)
        assert record is not None
        assert record.counts["submit"].calls == len(wanted), "one submission for many Jobs"
    slurm.clear()
