"""`kill -9` of the hub, an agent, a pilot or a launcher at each named moment, once, while 100 Jobs run.

What dies is started again by whoever does that in life: the hub and the agent by their supervisor, a pilot by
its batch script, a launcher by its pilot. Then everything must be as if nothing had happened, but for what
really was lost: Jobs that ran in a launcher or an allocation that died get another attempt.

The hub keeps its rows in SQLite, and in PostgreSQL: there only at the moments that are about rows, unless
more than one seed is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from chappe.testing.cluster import Cluster, patiently, until
from chappe.testing.hub import HubFailed, start_hub
from chappe.testing.place import Databases
from chappe.testing.site import RunningSite, crash_at
from tests.chaos.points import Point, listed, reached
from tests.chaos.seeds import MANY

LONG = 2
WITH_RESULT = 10
SHORT = 90
MOST_JOBS = 200
FIRST_START = "chappe.hub.bootstrap"

#: At which time a point kills, where the first (of the agent) or the second would be too early to hurt.
NTH = {
    "hub.before_commit": 15,
    "hub.after_commit": 15,
    "hub.after_answer": 15,
    "hub.before_answer": 15,
    "pilot.after_claim": 20,
    "pilot.before_report_sync": 5,
    "pilot.after_report_ack": 3,
    "launcher.before_spawn": 20,
    "launcher.after_spawn": 20,
    "launcher.after_reap": 20,
    "launcher.before_send": 6,
}
#: Starts that one death may cost a Job: none, unless what died is what the Job ran in.
ATTEMPTS = {"hub": 1, "agent": 2, "pilot": 1, "launcher": 2}

#: Moments in the life of a message: tests/acceptance/test_no_message_is_lost_by_*.py attack them.
OF_MESSAGES = ("hub.message_", "hub.amqp_")

POINTS = [point for point in reached() if not point.name.startswith(OF_MESSAGES)]
#: Where one seed is enough, these are the points of hubs on PostgreSQL.
ABOUT_ROWS = ("hub.before_commit", "hub.after_commit", "pilot.after_report_ack")


@pytest.fixture(scope="module")
def cluster(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """One hub on each store for all; each test has a Site of its own."""
    directory = tmp_path_factory.mktemp(request.param)
    if request.param == "sqlite":
        with Cluster(directory) as made:
            yield made
        return
    databases: Databases = request.getfixturevalue("databases")
    url = databases.borrow()
    with Cluster(directory, db=url) as made:
        yield made
    databases.give_back(url)


@pytest.fixture
def site(cluster: Cluster, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RunningSite]:
    cluster.tend()
    made = cluster.site(request.node.callspec.id, traces=tmp_path / "traces")
    yield made
    made.close()


def test_every_point_that_is_reached_is_listed() -> None:
    assert {point.name for point in reached()} == listed()
    assert len(POINTS) >= 20


def armed(point: Point, directory: Path) -> dict[str, str]:
    nth = NTH.get(point.name, 1 if point.part == "agent" else 2)
    return crash_at(point.name, nth, directory / point.name)


def points_of(*parts: str) -> pytest.MarkDecorator:
    chosen = [p for p in POINTS if p.part in parts and p.module != FIRST_START]
    pairs = [("sqlite", point) for point in chosen]
    pairs += [("postgresql", point) for point in chosen if MANY or point.name in ABOUT_ROWS]
    ids = [f"{store}-{point.name}" for store, point in pairs]
    return pytest.mark.parametrize(("cluster", "point"), pairs, ids=ids, indirect=["cluster"])


def run_jobs(
    cluster: Cluster,
    site: RunningSite,
    crashed: Path | None = None,
    *,
    kill_the_allocation: bool = False,
) -> int:
    """Run Jobs to their end, and more until `crashed` exists; then judge. The highest attempt."""
    since = patiently(cluster.client.cursor)
    # The long ones are there when a part dies; if two runs of one lived at once, it would be seen.
    jobs = cluster.submit(LONG, site, beats=30, beat_s=0.05, priority=1, estimate_s=1.5)
    results = cluster.submit(WITH_RESULT, site, app="trace-result")
    jobs += results + cluster.submit(SHORT, site)
    if kill_the_allocation:
        until(lambda: cluster.ended(jobs) >= SHORT // 5, "the first ends")
        site.kill_allocations()
    cluster.wait(jobs)
    while crashed is not None and not crashed.exists():
        assert len(jobs) < MOST_JOBS, f"{crashed.name} was never reached"
        more = cluster.submit(1, site)
        cluster.wait(more)
        jobs += more
    views = cluster.judge(jobs, since, site.traces)
    assert {view.state for view in views} == {"JOB_FINISHED"}, cluster.describe(jobs)
    for job in results:
        assert job.result() == [job.attempt]
    return max(view.attempt for view in views)


@points_of("hub")
def test_the_hub_dies_at(point: Point, cluster: Cluster, site: RunningSite, tmp_path: Path) -> None:
    with suppress(HubFailed):
        cluster.hub.restart(armed(point, tmp_path))
    with cluster.tended():
        site.start()
        cluster.offers(site)
        assert run_jobs(cluster, site, tmp_path / point.name) <= ATTEMPTS["hub"]


@points_of("agent", "pilot", "launcher")
def test_a_part_of_a_site_dies_at(
    point: Point, cluster: Cluster, site: RunningSite, tmp_path: Path
) -> None:
    site.environ = armed(point, tmp_path)
    site.start()
    with cluster.tended():
        cluster.offers(site)
        # What the agent does for the dead it does only when there are some.
        agent = point.part == "agent"
        attempts = run_jobs(cluster, site, tmp_path / point.name, kill_the_allocation=agent)
    assert attempts <= ATTEMPTS[point.part]


@pytest.mark.parametrize("point", [p.name for p in POINTS if p.module == FIRST_START])
def test_the_hub_dies_in_its_first_start_at(point: str, tmp_path: Path) -> None:
    """Whenever that happens, the second start leaves its owner with a key that opens."""
    data = tmp_path / "cluster" / "hub"
    with pytest.raises(HubFailed):
        start_hub(data, environ=crash_at(point, 1, tmp_path / "crashed"))
    assert (tmp_path / "crashed").exists()
    with Cluster(tmp_path / "cluster") as cluster:
        site = cluster.site("paris")
        site.start()
        cluster.offers(site)
        assert run_jobs(cluster, site) == 1
