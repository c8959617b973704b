"""`kill -9` of parts chosen by chance, at moments chosen by chance, while 2 000 Jobs run at two sites.

The seed is the test's parameter, printed with its name. CHAPPE_CHAOS_SEEDS=N runs the seeds 1 to N; one seed
does the same kills in the same order, at the same distances in time. Where the hub is on PostgreSQL, that
dies as well: its server, as in a crash, or one of the processes that serve the hub.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from chappe.testing.cluster import Cluster, until
from chappe.testing.postgres import PostgresServer
from chappe.testing.site import RunningSite
from tests.chaos.seeds import MANY, SEEDS

JOBS = 2_000
KILLS = 20
#: Where one seed is enough, on PostgreSQL.
FEWER_JOBS = 800
FEWER_KILLS = 12
#: Parts, and how often each is chosen.
PARTS = {"hub": 4, "agent": 3, "pilot": 5, "launcher": 5, "allocation": 3}
WITH_DATABASE = PARTS | {"server": 4, "backend": 4}
#: Every death of a launcher or an allocation costs what it ran an attempt.
RETRIES = 5 * KILLS


def kill(cluster: Cluster, part: str, site: RunningSite) -> bool:
    """Kill a part (of `site`, or the hub or its database), if it is there."""
    match part:
        case "hub":
            return cluster.kill_hub()
        case "server":
            return cluster.kill_database()
        case "backend":
            return cluster.kill_database(backend=True)
        case "agent":
            return site.kill_agent()
        case "pilot":
            return site.signal(site.pilots())
        case "launcher":
            return site.signal(site.launchers())
        case _:
            return site.kill_allocations()


def run(
    cluster: Cluster, seed: int, jobs_in_all: int, kills: int, parts: Mapping[str, int]
) -> None:
    """Jobs at two sites to their end, beside so many kills."""
    chance = random.Random(seed)
    sites = [cluster.site(name, slots=4) for name in ("paris", "toulouse")]
    for site in sites:
        site.start()
    cluster.offers(*sites)
    half = jobs_in_all // 2
    jobs = cluster.submit(half, *sites, retries=RETRIES)
    for site in sites:
        jobs += cluster.submit(half // 2 - 100, site, retries=RETRIES)
        jobs += cluster.submit(80, site, app="trace-result", retries=RETRIES)
        # Long enough that two runs at once would be seen.
        jobs += cluster.submit(
            20, site, beats=20, beat_s=0.05, estimate_s=1.0, priority=1, retries=RETRIES
        )
    until(lambda: cluster.ended(jobs) > 0, "the first end")
    killed = []
    with cluster.tended():
        for _ in range(kills):
            time.sleep(chance.uniform(0.1, 1.5))
            (part,) = chance.choices(list(parts), list(parts.values()))
            site = chance.choice(sites)
            if kill(cluster, part, site):
                killed.append(f"{part} {site.name}")
        print(f"seed {seed}: killed {', '.join(killed)}; {cluster.ended(jobs)} ended by then")
        cluster.wait(jobs, 240.0)
    views = cluster.judge(jobs)
    assert {view.state for view in views} == {"JOB_FINISHED"}, cluster.describe(jobs)
    print(f"attempts: {max(view.attempt for view in views)} at most")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", SEEDS)
def test_random_kills(seed: int, tmp_path: Path) -> None:
    with Cluster(tmp_path / "cluster") as cluster:
        run(cluster, seed, JOBS, KILLS, PARTS)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", SEEDS)
def test_random_kills_on_postgresql(
    seed: int, tmp_path: Path, mortal_postgres: PostgresServer
) -> None:
    url = mortal_postgres.database()
    with Cluster(tmp_path / "cluster", db=url, database=mortal_postgres) as cluster:
        jobs, kills = (JOBS, KILLS) if MANY else (FEWER_JOBS, FEWER_KILLS)
        run(cluster, seed, jobs, kills, WITH_DATABASE)
