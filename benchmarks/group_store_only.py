"""The store alone, without HTTP: what the Hub's rates start from."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.bench import Bench
from benchmarks.contract import MS
from benchmarks.figures import percentile
from benchmarks.jobs import Maker, shapes
from benchmarks.pilotlike import PilotLike
from chappe.link.clock import new_id
from chappe.store import create, prepare, principal, sites, sync, tokens
from chappe.store.db import Store, open_store
from chappe.wire.jobs import CreateJobs
from chappe.wire.sites import AgentHello, AppView, NewBatchJob, NewSession, NewSite, PublishApps

BATCH = 1_000
_decode = msgspec.json.Decoder(CreateJobs).decode


class Bed:
    """An open store with a project, a Site that has the App `true`, and one Session."""

    def __init__(self, directory: Path) -> None:
        self.store: Store = open_store(f"sqlite:///{directory}/hub.db", clock=time.time)
        made = self.write(tokens.bootstrap)
        assert made is not None
        project, token = made
        self.user = self._principal(token)
        site = self.write(sites.create_site, self.user, NewSite(new_id(), "bench"))
        agent = self._principal(site.token)
        self.write(sites.publish_apps, agent, site.id, PublishApps([AppView("true", "1", "x")]))
        self.write(sites.hello, agent, site.id, AgentHello(new_id(), "here"))
        batch = self.write(sites.create_batch_job, agent, NewBatchJob(new_id(), site.id))
        session = self.write(sites.create_session, agent, NewSession(new_id(), batch.id))
        pilot = self._principal(session.token)
        self.pilot = PilotLike(session.id, lambda req: self.write(sync.sync, pilot, req))
        self.maker = Maker(directory / "key", project, site.id)

    def write(self, fn: Callable[..., Any], *args: Any, bulk: bool = False) -> Any:
        """Run a command on the writer's thread and wait for its commit."""
        return self.store.writer.submit(fn, *args, bulk=bulk).result()

    def create(self, body: bytes) -> None:
        """What a `POST /v1/jobs` costs without HTTP."""
        catalog = self.store.writer.catalog
        prepared = prepare.prepare(catalog, self.user, _decode(body), time.time())
        self.write(create.create_jobs, self.user, prepared, bulk=True)

    def _principal(self, token: str) -> principal.Principal:
        found = self.store.read(principal.find, token)
        assert found is not None
        return found


def run(bench: Bench) -> None:
    """Create, acquire, start, end; then acquire from a full store."""
    with bench.attempt("store.create", "store.acquire", "store.start", "store.end"):
        for _ in range(bench.rounds):
            _life(bench, bench.scaled(20_000, 5_000))
    with bench.attempt("store.acquire_1m"):
        _full(bench, bench.scaled(1_000_000, 50_000))


def _life(bench: Bench, jobs: int) -> None:
    with bench.private("store") as directory:
        bed = Bed(directory)
        try:
            bodies = [bed.maker.body(BATCH) for _ in range(jobs // BATCH)]
            began = time.perf_counter()
            for body in bodies:
                bed.create(body)
            bench.add("store.create", jobs / (time.perf_counter() - began))
            taken = {"acquire": 0.0, "start": 0.0, "end": 0.0}
            for _ in bodies:
                grants, taken_s = bed.pilot.acquire(BATCH)
                assert len(grants) == BATCH
                taken["acquire"] += taken_s
                taken["start"] += bed.pilot.start(grants)
                taken["end"] += bed.pilot.end(grants)
            for name, seconds in taken.items():
                bench.add(f"store.{name}", jobs / seconds)
        finally:
            bed.store.close()


def _full(bench: Bench, jobs: int) -> None:
    with bench.private("store") as directory:
        bed = Bed(directory)
        try:
            needs = shapes(200, 2)
            for i in range(jobs // BATCH):
                bed.create(bed.maker.body(BATCH, needs[i % len(needs)]))
            for _ in range(bench.rounds):
                taken = []
                for _ in range(200):
                    grants, taken_s = bed.pilot.acquire(32)
                    assert len(grants) == 32
                    taken.append(taken_s * MS)
                    bed.pilot.give_back(grants)
                bench.add("store.acquire_1m", percentile(taken, 95))
            bench.note("store.acquire_1m", f"{jobs} jobs, p50 {percentile(taken, 50):.2f} ms")
        finally:
            bed.store.close()
