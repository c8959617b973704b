"""The road between a site and the hub breaks: replies are lost, and lost again and again."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from chappe.sdk.sync import Job
from chappe.testing.cluster import Cluster, until
from chappe.testing.relay import Relay
from chappe.testing.site import RunningSite

FLAPS = 20


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path / "cluster") as made:
        yield made


@pytest.fixture
def relay(cluster: Cluster) -> Relay:
    relay, url = cluster.relay()
    site = cluster.site("paris", url=url)
    site.start()
    cluster.offers(site)
    until(lambda: cluster.heard_at(site), "the pilot asks for work")
    return relay


@pytest.fixture
def site(cluster: Cluster, relay: Relay) -> RunningSite:
    return cluster.sites[0]


def lose_the_answers(relay: Relay) -> None:
    """What was said since the answers were cut off is lost; then the road is there again."""
    relay.cut(reset=True)
    relay.restore()


def test_the_reply_that_carried_a_grant_is_lost(
    cluster: Cluster, relay: Relay, site: RunningSite
) -> None:
    """The hub repeats the grant; it is no second one."""
    relay.cut(answers_only=True)
    jobs = cluster.submit(3, site)
    until(lambda: all(v.session for v in cluster.views(jobs)), "the hub has granted them")
    lose_the_answers(relay)
    cluster.wait(jobs)
    views = cluster.judge(jobs)
    assert {(v.state, v.epoch, v.attempt) for v in views} == {("JOB_FINISHED", 1, 1)}
    assert site.logged("sync.failed")


def test_a_road_that_flaps(cluster: Cluster, relay: Relay, site: RunningSite) -> None:
    """Cut again and again, at every other time so that only answers are lost. No Job is lost, none starts
    twice, and no attempt is used up."""
    chance = random.Random(1)
    jobs: list[Job] = []
    for flap in range(FLAPS):
        new = cluster.submit(9, site) + cluster.submit(1, site, app="trace-result")
        jobs += new
        time.sleep(chance.uniform(0.0, 0.1))
        relay.cut(answers_only=bool(flap % 2))
        time.sleep(chance.uniform(0.0, 0.2))
        lose_the_answers(relay)
        # Between two cuts they talk, or this would be an outage.
        until(partial(cluster.ended, new), "an end is told")
    cluster.wait(jobs)
    views = cluster.judge(jobs)
    assert {(v.state, v.attempt) for v in views} == {("JOB_FINISHED", 1)}
    assert len(site.logged("sync.failed")) >= FLAPS // 4
