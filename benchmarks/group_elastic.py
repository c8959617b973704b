"""Allocations that follow the work: how soon one is asked for, how long idle ones stay, how busy all are.

The first two on a real hub, agent and pilots of this machine; the last in virtual time, where the real store
grants and the real pilot places.
"""

from __future__ import annotations

import random
import time
from pathlib import Path

from benchmarks.bench import Bench
from chappe.testing.cluster import Cluster, until
from chappe.testing.store import StoreRig
from chappe.testing.virtual import VirtualPilot, World, mixed

NODES = 64
CORES = 16
IDLE_S = 2.0
STEP = 500


def run(bench: Bench) -> None:
    """Rounds of both."""
    with bench.attempt("elastic.busy"):
        for seed in range(bench.rounds):
            with bench.private("busy") as directory:
                bench.add("elastic.busy", 100 * _busy(directory, bench.scaled(4_000, 800), seed))
    with bench.attempt("elastic.first", "elastic.idle"):
        for _ in range(bench.rounds):
            with bench.private("step") as directory:
                _step(bench, directory)


def _busy(directory: Path, jobs: int, seed: int) -> float:
    """The share of the nodes' cores that ran something, until no Job waited any more."""
    with StoreRig(directory / "hub.db") as rig:
        world, site = World(rig), rig.add_site("s")
        world.submit(site, jobs, mixed(CORES), random.Random(seed))
        VirtualPilot(world, site.add_pilot(), NODES, CORES)
        world.run(1e9, lambda: world.waiting() == 0)
        return world.busy() / (NODES * CORES * (world.now - world.began_at))


def _step(bench: Bench, directory: Path) -> None:
    with Cluster(directory) as cluster:
        site = cluster.site("paris", slots=8)
        site.configure("elastic", policy="fit", idle_s=IDLE_S, maximum=4)
        site.start()
        cluster.offers(site)
        began = time.time()
        jobs = cluster.submit(STEP, site, beats=1, estimate_s=1.0)
        asked = until(
            lambda: [e for e in cluster.client.events() if e.kind == "elastic"], "a decision"
        )
        bench.add("elastic.first", asked[0].occurred_at - began)
        cluster.wait(jobs)
        until(
            lambda: {b.state for b in cluster.client.admin.batch_jobs("paris")} == {"ended"},
            "idle pilots end",
        )
        events = list(cluster.client.events())
        last = max(e.occurred_at for e in events if e.kind == "job")
        over = max(e.received_at for e in events if e.kind == "batch_job")
        bench.add("elastic.idle", over - last - IDLE_S)
