"""A real Slurm of four emulated nodes on this machine: how often it is called, how fast work goes through.

The Jobs sleep: 64 of them at once on emulated cores cost what starting and ending them costs. Beside them, in
the same run, Slurm itself: one `sbatch` per job, and one `srun` per step.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.bench import Bench
from benchmarks.contract import MS
from benchmarks.figures import percentile
from chappe.link.ledger import Ledger
from chappe.sdk.sync import Job
from chappe.site.calls import CallCounts, read_record
from chappe.testing.cluster import Cluster, patiently, until
from chappe.testing.history import check, read_traces
from chappe.testing.site import RunningSite
from chappe.testing.slurm import SlurmCluster

NODES = 4
CORES = 16
IDLE_S = 5.0
STEP = 500
OVER = {"ended", "failed", "cancelled"}
STATUS_S = 15.0
KILL_EVERY_S = 20.0
WITHIN_S = 1_200.0
SLEEP = """\
name = "sleep"
version = "1"
command = ["sleep", "{{ seconds }}"]
[parameters.seconds]
type = "float"
default = 1.0
[files]
own_directory = false
log = "none"
"""


def run(bench: Bench) -> None:
    """One Slurm for all rows, and a Hub with a Site for each."""
    rows = (
        (_many, ("slurm.submissions", "slurm.status")),
        (_makespan, ("slurm.makespan", "slurm.sbatch")),
        (_start, ("slurm.start", "slurm.srun")),
        (_step, ("slurm.first", "slurm.idle")),
        (_killed, ("slurm.lost", "slurm.wrong")),
    )
    with bench.attempt("slurm.submissions"), SlurmCluster.start(NODES, CORES) as slurm:
        for measure, keys in rows:
            with bench.attempt(*keys), bench.private(measure.__name__) as directory:
                measure(bench, slurm, directory)
            slurm.clear()


@contextmanager
def _bed(
    slurm: SlurmCluster, directory: Path, **elastic: Any
) -> Iterator[tuple[Cluster, RunningSite]]:
    """A Hub and a Site of this Slurm, whose allocations are whole nodes."""
    with Cluster(directory) as cluster:
        site = cluster.site(
            "paris", keep=0, slots=CORES, cores=CORES, wall_s=3_000.0, idle_s=IDLE_S
        )
        (site.paths.apps / "sleep.toml").write_text(SLEEP)
        site.configure("scheduler", kind="slurm", queue="debug")
        site.configure("scheduler", status_interval_s=60.0, status_fast_s=STATUS_S)
        with site.paths.config.open("a") as toml:
            toml.write("\n[policy.queues.debug]\nnodes_max = 1\n")
        site.configure("policy", submissions_per_s=1.0, submissions_burst=NODES)
        if elastic:
            facts = {"policy": "fit", "maximum": NODES, "node_cores": CORES, "wall_s": 3_000.0}
            site.configure("elastic", **facts, nodes_max=NODES, idle_s=IDLE_S, **elastic)
        site.environ.update(slurm.environ)
        site.start()
        cluster.offers(site)
        yield cluster, site


def _sleepers(cluster: Cluster, site: RunningSite, jobs: int, **options: Any) -> list[Job]:
    draft = cluster.client.app("sleep", site=site.name).options(estimate_s=1.0, **options)
    return cluster.client.submit([draft() for _ in range(jobs)])


def _warm(cluster: Cluster, site: RunningSite, nodes: int) -> None:
    """So many allocations, whose pilots ask for work."""
    for _ in range(nodes):
        cluster.client.admin.new_batch_job(site.id, cores=CORES)
    until(
        lambda: sum(s.capacity is not None for s in cluster.client.admin.sessions()) == nodes,
        "pilots ask for work",
    )


def _calls(site: RunningSite, kind: str) -> CallCounts:
    record = read_record(site.paths.calls)
    return CallCounts() if record is None else record.counts.get(kind, CallCounts())


def _many(bench: Bench, slurm: SlurmCluster, directory: Path) -> None:
    """From no allocation and back to none; once, since it takes its minutes."""
    jobs = bench.scaled(10_000, 500)
    with _bed(slurm, directory, within_s=60.0) as (cluster, site):
        began = time.monotonic()
        cluster.wait(_sleepers(cluster, site, jobs), WITHIN_S)
        _await_none(cluster)
        taken_s = time.monotonic() - began
        bench.add("slurm.submissions", _calls(site, "submit").calls)
        status = _calls(site, "status").calls
        bench.add("slurm.status", status / (1 + taken_s // STATUS_S))
        bench.note(
            "slurm.submissions", f"{jobs} jobs in {taken_s:.0f} s; one per job without pilots"
        )
        bench.note(
            "slurm.status", f"{status} in {taken_s:.0f} s; interval 15 s while one waits, else 60 s"
        )


def _await_none(cluster: Cluster) -> None:
    until(
        lambda: {b.state for b in patiently(cluster.client.admin.batch_jobs)} <= OVER,
        "idle pilots end",
    )


def _makespan(bench: Bench, slurm: SlurmCluster, directory: Path) -> None:
    """From submit() to the last end, in units of what the sleeping alone takes."""
    jobs = bench.scaled(1_000, 256)
    ideal_s = -(-jobs // (NODES * CORES))
    with _bed(slurm, directory) as (cluster, site):
        _warm(cluster, site, NODES)
        cluster.wait(_sleepers(cluster, site, NODES * CORES, name="warm"))
        for _ in range(bench.rounds):
            began = time.monotonic()
            cluster.client.wait_all(_sleepers(cluster, site, jobs), WITHIN_S)
            bench.add("slurm.makespan", (time.monotonic() - began) / ideal_s)
    slurm.clear()
    began = time.monotonic()
    for _ in range(jobs):
        slurm.run("sbatch", "-Q", "-n1", "--mem=1M", "-o/dev/null", "--wrap=sleep 1")
    submitted_s = time.monotonic() - began
    while slurm.run("squeue", "-h", "-o%A"):
        time.sleep(0.2)
    bench.add("slurm.sbatch", (time.monotonic() - began) / ideal_s)
    bench.note("slurm.makespan", f"ideal {ideal_s} s; four allocations that wait for work")
    bench.note("slurm.sbatch", f"the last was submitted after {submitted_s:.1f} s")


def _start(bench: Bench, slurm: SlurmCluster, directory: Path) -> None:
    """Until a Job has started, by its launcher's word; and until a step of srun has, by its own."""
    count = bench.scaled(100, 30)
    with _bed(slurm, directory) as (cluster, site):
        _warm(cluster, site, 1)
        app = cluster.client.app("sleep", site=site.name)
        told = []
        for _ in range(count):
            time.sleep(random.uniform(0.02, 0.08))
            began = time.time()
            job = app.submit(seconds=0.0)
            job.wait(timeout_s=60)
            told += [(e.occurred_at - began) * MS for e in job.events() if e.new == "RUNNING"]
        bench.add("slurm.start", percentile(told, 50))
        bench.note("slurm.start", f"p95 {percentile(told, 95):.1f} ms, of {count}")
    slurm.clear()
    held = slurm.run("sbatch", "--parsable", "-N1", "-n2", "--mem=10M", "--wrap=sleep 600")
    until(lambda: (held, "wrap", "RUNNING") in slurm.jobs(), "an allocation to step into")
    step = ("srun", f"--jobid={held}", "--overlap", "-n1", "--mem=1M", "date", "+%s.%N")
    steps = []
    for _ in range(min(count, 30)):
        began = time.time()
        steps.append((float(slurm.run(*step)) - began) * MS)
    bench.add("slurm.srun", percentile(steps, 50))


def _step(bench: Bench, slurm: SlurmCluster, directory: Path) -> None:
    """What waits goes from none to 500 and back to none."""
    with _bed(slurm, directory, within_s=10.0) as (cluster, site):
        began = time.time()
        jobs = _sleepers(cluster, site, STEP)

        def submitted() -> list[float]:
            told = [e for e in cluster.client.events() if e.kind == "batch_job"]
            return [e.received_at for e in told if e.data["state"] == "submitted"]

        bench.add("slurm.first", until(submitted, "an allocation is asked for")[0] - began)
        cluster.wait(jobs)
        _await_none(cluster)
        bench.add("slurm.idle", max(_idle(cluster, site)) - IDLE_S)


def _idle(cluster: Cluster, site: RunningSite) -> list[float]:
    """How long each pilot was there after the last of its Jobs had ended, in seconds."""
    ledger = Ledger(site.paths.ledger)
    last: dict[str, float] = {}
    over: dict[str, float] = {}
    for event in cluster.client.events():
        if event.kind == "job" and event.new == "JOB_FINISHED":
            claimant = ledger.claimed(event.subject, event.attempt)
            assert claimant is not None, "what ended had begun"
            last[claimant.session] = event.occurred_at
        elif event.kind == "session" and event.data["state"] == "live":
            # One that never gets a Job is idle from its beginning.
            last.setdefault(event.data["id"], event.received_at)
        elif event.kind == "session" and event.data["state"] == "dead":
            over.setdefault(event.data["id"], event.received_at)
    return [at - last[session] for session, at in over.items()]


def _killed(bench: Bench, slurm: SlurmCluster, directory: Path) -> None:
    """While the Jobs run, an allocation is killed now and then with all that is in it."""
    kills: list[str] = []
    over = threading.Event()

    def kill() -> None:
        while not over.wait(KILL_EVERY_S):
            running = [job for job, _, state in slurm.jobs() if state == "RUNNING"]
            if running:
                kills.append(random.choice(running))
                slurm.run("scancel", "--full", "--signal=KILL", kills[-1])

    with _bed(slurm, directory, within_s=60.0) as (cluster, site):
        killer = threading.Thread(target=kill)
        killer.start()
        try:
            count = bench.scaled(3_500, 700)
            jobs = cluster.submit(count, site, beats=4, beat_s=0.5, estimate_s=2.0, retries=20)
            cluster.wait(jobs, WITHIN_S)
        finally:
            over.set()
            killer.join()
        views = cluster.views(jobs)
        wrong = check(
            {view.id: view.state for view in views},
            read_traces(cluster.traces),
            list(cluster.client.events()),
        )
        bench.add("slurm.lost", sum(view.state != "JOB_FINISHED" for view in views))
        bench.add("slurm.wrong", len(wrong))
        again = sum(view.attempt > 1 for view in views)
        bench.note(
            "slurm.lost", f"{count} jobs, {len(kills)} allocations killed, {again} jobs run again"
        )
        bench.note("slurm.wrong", "; ".join(wrong[:2]))
        _await_none(cluster)
