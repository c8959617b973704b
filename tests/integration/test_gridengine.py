"""An agent, its pilots and their Jobs on a real Grid Engine: to the end, cancelled, and at their limit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from chappe.link.clock import new_id
from chappe.site import daemon
from chappe.testing.cluster import Cluster, patiently, until
from chappe.testing.gridengine import GridEngineCell
from chappe.wire.sites import BatchJobIntent
from tests.integration.site_rig import Site, StubHub, stub_hub, wait_until

ENDS = {"ended", "cancelled", "failed"}
"""What Grid Engine says of an end: that it was cancelled is known to nobody but its accounting."""

#: A pilot that says when it began and when it was told to end.
TOLD = """\
session=$1
echo "$(basename "$session")" >>starts
trap 'echo term >>terms; exit 0' TERM
while :; do sleep 0.1; done
"""


@pytest.fixture
def cluster(gridengine: GridEngineCell, tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path) as made:
        site = made.site("lyon", keep=0, slots=2, cores=2, wall_s=600.0)
        site.configure("scheduler", kind="gridengine", status_interval_s=1.0, status_fast_s=1.0)
        site.configure("policy", submissions_per_s=50.0)
        site.environ = dict(gridengine.environ)
        site.start()
        made.offers(site)
        yield made


def states(cluster: Cluster) -> dict[str, str]:
    return {b.id: b.state for b in patiently(cluster.client.admin.batch_jobs)}


def test_jobs_end_once_though_one_of_their_allocations_is_cancelled(
    cluster: Cluster, tmp_path: Path
) -> None:
    (site,) = cluster.sites
    admin = cluster.client.admin
    first = admin.new_batch_job(site.id, cores=2)
    gate = tmp_path / "gate"
    jobs = cluster.submit(4, site, gate=gate)
    until(lambda: len(site.jobs()) >= 2, "two run")
    admin.cancel_batch_job(first.id)
    until(lambda: states(cluster)[first.id] in ENDS, "it has ended")
    second = admin.new_batch_job(site.id, cores=2)
    gate.touch()
    cluster.wait(jobs)
    assert {view.state for view in cluster.judge(jobs)} == {"JOB_FINISHED"}
    admin.cancel_batch_job(second.id)
    until(lambda: states(cluster)[second.id] in ENDS, "this one too")


@pytest.fixture
def hub() -> Iterator[StubHub]:
    with stub_hub() as made:
        yield made


def test_the_pilot_is_told_of_the_limit_and_the_end_is_seen(
    gridengine: GridEngineCell, hub: StubHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in gridengine.environ.items():
        monkeypatch.setenv(name, value)
    site = Site(tmp_path / "lyon", hub, TOLD)
    site.setting('# kind = "local"', 'kind = "gridengine"')
    site.setting("# status_interval_s = 60.0", "status_interval_s = 1.0")
    site.setting("# keep = 1", "keep = 0")
    site.setting("# kill_s = 30.0", "kill_s = 48.0")  # so long before its minute is over
    daemon.start(site.paths.root)
    ident = new_id()
    site.hub.order(ident, BatchJobIntent(cores=1, wall_s=60.0))
    wait_until(lambda: site.hub.states("ended") == [ident], "the end at the limit", 120.0)
    assert site.lines("starts") == [site.hub.sessions[ident]]
    assert site.lines("terms") == ["term"]
    site.clean()
