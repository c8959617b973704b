"""A whole allocation dies, and nobody is there to see it: neither the hub nor the site's agent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from chappe.testing.cluster import Cluster, until
from chappe.testing.history import read_traces

LONG_S = 60.0


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path / "cluster") as made:
        yield made


def test_what_a_dead_allocation_had_not_told_is_told_by_the_agent(
    cluster: Cluster, tmp_path: Path
) -> None:
    """Six Jobs end while the hub cannot be reached, four run and many wait; then all of it dies, the agent
    first. What ended stays ended, with its result; what waited has not begun; what ran begins again."""
    relay, url = cluster.relay()
    site = cluster.site("paris", url=url)
    site.start()
    cluster.offers(site)
    # After short Jobs the pilot fetches ahead; those that are expected to be long wait in it, not in lanes.
    short = cluster.submit(60, site)
    cluster.wait(short)
    cut, dead = tmp_path / "cut", tmp_path / "dead"
    ending = cluster.submit(3, site, gate=cut, priority=2, estimate_s=LONG_S)
    ending += cluster.submit(3, site, app="trace-result", gate=cut, priority=2, estimate_s=LONG_S)
    running = cluster.submit(4, site, gate=dead, priority=1, estimate_s=LONG_S)
    waiting = cluster.submit(20, site, estimate_s=LONG_S)
    jobs = ending + running + waiting
    until(
        lambda: sum(view.session is not None for view in cluster.views(jobs)) > len(jobs) // 2,
        "the pilot holds more than it runs",
    )
    site.kill_agent()
    relay.cut(reset=True)
    cut.touch()
    until(lambda: site.written_ends() == len(ending), "six ends are in the journal")
    until(lambda: len(site.jobs()) >= 4, "others run")
    assert cluster.ended(jobs) == 0, "the hub has heard of none"
    ran = set(read_traces(cluster.traces)) & {job.id for job in jobs}
    assert site.kill_allocations()
    dead.touch()
    relay.restore()
    site.start()
    cluster.wait(jobs)
    views = {view.id: view for view in cluster.judge(short + jobs)}
    assert {view.state for view in views.values()} == {"JOB_FINISHED"}
    attempts = {job.id: views[job.id].attempt for job in jobs}
    assert [attempts[job.id] for job in ending] == [1] * len(ending), "their end was lost"
    assert [attempts[job.id] for job in waiting if job.id not in ran] == [1] * len(waiting)
    assert {attempts[id] for id in ran - {job.id for job in ending}} == {2}
    for job in ending[3:]:
        assert job.result() == [1]


def test_an_agent_that_never_met_the_hub_is_no_obstacle_for_the_next(cluster: Cluster) -> None:
    """The hub believes in the agent that it heard last, and that one was not the last to die."""
    site = cluster.site("paris")
    site.start()
    cluster.offers(site)
    cluster.hub.kill9()
    for _ in range(2):
        site.kill_agent()
        site.start()
    site.kill_agent()
    cluster.hub.start()
    site.start()
    jobs = cluster.submit(5, site)
    cluster.wait(jobs)
    cluster.judge(jobs)
    assert site.agent_up
