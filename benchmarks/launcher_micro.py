"""What the launcher costs per process, against a bare subprocess loop in the same run.

    python benchmarks/launcher_micro.py [--jobs 4000] [--rounds 3] [--slots 2] [--json FILE]

Every row runs `/bin/true` with a directory, an environment, a session of its own and one shared output
file. `own` is the CPU of the process that starts and reaps, `head` that of the asyncio process which
orders (none in the bare loop), `jobs` that of the jobs themselves. Rounds are interleaved; medians are
shown.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from chappe.pilot.launch_client import LauncherClient, start_process
from chappe.pilot.launch_wire import Events, Task

BASE_ENV = {"PATH": "/usr/bin:/bin", "HOME": "/root", "USER": "bench", "LANG": "C.UTF-8"}
JOB_ENV = {
    "CHAPPE_SITE": "bench",
    "CHAPPE_WORKDIR": "/nowhere/bench/workdir",
    "CHAPPE_CORES": "1",
    "CHAPPE_MEM_BYTES": "1073741824",
    "CHAPPE_DATA": "/nowhere/bench",
    "OMP_NUM_THREADS": "1",
}
LANE_DEPTH = 32


class Row(NamedTuple):
    per_s: float
    own_ms: float
    head_ms: float
    jobs_ms: float
    rss_mb: float


def own_cpu_s(pid: int) -> float:
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def children_cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")


def rss_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"no VmRSS of {pid}")


def bare(jobs: int, slots: int, work: Path) -> Row:
    """The reference: `python this-file --bare`, in a process of its own."""
    command = [sys.executable, __file__, "--bare", str(work), "--jobs", str(jobs), "--slots"]
    done = subprocess.run([*command, str(slots)], check=True, stdout=subprocess.PIPE)
    return Row(*json.loads(done.stdout))


def bare_loop(jobs: int, slots: int, work: Path) -> Row:
    live: dict[int, subprocess.Popen[bytes]] = {}
    begin, begin_cpu = time.perf_counter(), own_cpu_s(os.getpid())
    started = ended = 0
    with (work / "bare.log").open("ab") as log:
        while ended < jobs:
            while started < jobs and len(live) < slots:
                env = {**BASE_ENV, **JOB_ENV, "CHAPPE_JOB_ID": str(started)}
                process = subprocess.Popen(
                    ["/bin/true"],
                    cwd=work,
                    env=env,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
                live[process.pid] = process
                started += 1
            pid, status, _ = os.wait4(-1, 0)
            live.pop(pid).returncode = status
            ended += 1
    wall = time.perf_counter() - begin
    own = own_cpu_s(os.getpid()) - begin_cpu
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    in_jobs = usage.ru_utime + usage.ru_stime
    return Row(jobs / wall, own / jobs * 1e3, 0.0, in_jobs / jobs * 1e3, rss_mb(os.getpid()))


def task(index: int, work: Path, lane: int, cores: list[int]) -> Task:
    return Task(
        job=f"01900000-0000-7000-8000-{index:012d}",
        epoch=1,
        attempt=1,
        argv=["/bin/true"],
        env=JOB_ENV,
        cwd=str(work),
        start_by=time.clock_gettime(time.CLOCK_BOOTTIME) + 600,
        log="shared",
        cores=cores,
        wall_limit_s=3600.0,
        lane=lane,
    )


async def through_launcher(jobs: int, slots: int, work: Path, lanes: bool, pinned: bool) -> Row:
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    sent = ended = 0
    depth = slots * LANE_DEPTH if lanes else slots
    cpus = sorted(os.sched_getaffinity(0))
    inbox: list[Events] = []
    heard = asyncio.Event()

    def on_events(events: Events) -> None:
        inbox.append(events)
        heard.set()

    private = Path(tempfile.mkdtemp(dir=work))
    with (work / "launcher.log").open("ab") as log:
        process = await start_process(private / "s", "bench", log, env=BASE_ENV)
    client, _ = await LauncherClient.connect(private / "s", on_events)
    await client.base_env(BASE_ENV, work / "shared.log")
    begin, begin_cpu, begin_head = time.perf_counter(), own_cpu_s(client.pid), time.process_time()

    async def order(count: int, at: list[int]) -> None:
        nonlocal sent
        tasks = []
        for _ in range(min(count, jobs - sent)):
            slot = at[sent % len(at)] if at else sent % slots
            cores = [cpus[slot % len(cpus)]] if pinned else []
            tasks.append(task(sent, work, slot + 1 if lanes else 0, cores))
            sent += 1
        if tasks:
            await client.start(tasks)

    await order(depth, [])
    while ended < jobs:
        await heard.wait()
        heard.clear()
        ends = [end for events in inbox for end in events.ended]
        inbox.clear()
        if ends:
            ended += len(ends)
            await order(len(ends), [])
            await client.ack([end.key for end in ends])
    wall = time.perf_counter() - begin
    head = time.process_time() - begin_head
    own, in_jobs = own_cpu_s(client.pid) - begin_cpu, children_cpu_s(client.pid)
    rss = rss_mb(client.pid)
    done.set_result(None)
    await client.stop()
    await client.gone
    await process.wait()
    return Row(jobs / wall, own / jobs * 1e3, head / jobs * 1e3, in_jobs / jobs * 1e3, rss)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--bare", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare is not None:
        print(json.dumps(bare_loop(options.jobs, options.slots, options.bare)))
        return

    def launcher(work: Path, lanes: bool, pinned: bool) -> Row:
        return asyncio.run(through_launcher(options.jobs, options.slots, work, lanes, pinned))

    rows: dict[str, Callable[[Path], Row]] = {
        "bare subprocess loop": lambda work: bare(options.jobs, options.slots, work),
        "launcher, head starts each": lambda work: launcher(work, False, False),
        "launcher, lanes": lambda work: launcher(work, True, False),
        "launcher, lanes, pinned": lambda work: launcher(work, True, True),
    }
    results: dict[str, list[Row]] = {name: [] for name in rows}
    with tempfile.TemporaryDirectory() as directory:
        for _ in range(options.rounds):
            for name, run in rows.items():
                results[name].append(run(Path(directory)))
    medians = {
        name: Row(*(statistics.median(column) for column in zip(*rounds, strict=True)))
        for name, rounds in results.items()
    }
    print(f"{'':28} jobs/s  own ms  head ms  jobs ms  RSS MB")
    for name, row in medians.items():
        print(
            f"{name:28} {row.per_s:6.0f} {row.own_ms:7.3f} {row.head_ms:8.3f}"
            f" {row.jobs_ms:8.3f} {row.rss_mb:7.1f}"
        )
    if options.json is not None:
        table = {name: row._asdict() for name, row in medians.items()}
        options.json.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
