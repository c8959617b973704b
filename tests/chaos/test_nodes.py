"""An allocation of several nodes, asked for as a user would, whose hands, launchers and pilot are killed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from chappe.sdk.sync import Job
from chappe.testing.cluster import Cluster, until
from chappe.testing.site import RunningSite


def kill_one(site: RunningSite, what: str) -> None:
    """Kill a hand, a launcher or the pilot, as soon as there is one."""
    pids = {"hand": site.hands, "launcher": site.launchers, "pilot": site.pilots}[what]
    until(lambda: site.signal(pids()[-1:]), f"a {what} to kill")


def goes_on(cluster: Cluster, jobs: Sequence[Job], ended: int) -> None:
    """Wait until more have ended."""
    until(lambda: cluster.ended(jobs) > ended, f"more than {ended} end")


def test_whoever_is_killed_each_job_ends_once_and_never_runs_twice_at_once(tmp_path: Path) -> None:
    with Cluster(tmp_path / "cluster") as cluster:
        site = cluster.site("paris", keep=0, slots=2, head_grace_s=30.0)
        site.start()
        cluster.offers(site)
        cluster.client.admin.new_batch_job(site.id, nodes=3)
        until(lambda: len(site.logged("hand.joined")) == 2, "two hands join")
        jobs = cluster.submit(40, site, beats=20, beat_s=0.02, retries=20, estimate_s=0.5)
        for what in ("hand", "launcher", "pilot", "hand"):
            ended = cluster.ended(jobs)
            kill_one(site, what)
            goes_on(cluster, jobs, ended)
        cluster.wait(jobs)
        views = cluster.judge(jobs)
        assert {view.state for view in views} == {"JOB_FINISHED"}
        assert site.logged("adopted"), "a pilot took over"
        (allocation,) = [b for b in cluster.client.admin.batch_jobs() if b.site == site.id]
        cluster.client.admin.cancel_batch_job(allocation.id)
        until(lambda: not (site.pilots() or site.hands() or site.launchers()), "all is over")
