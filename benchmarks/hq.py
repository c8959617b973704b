"""HyperQueue as a reference: its PyPI wheel, the worker in a process of its own.

    python -m benchmarks.hq run DIRECTORY JOBS SLOTS     (prints a line of JSON)

The wheel has no `hq` program: its extension starts server and worker inside a Python process. A worker
forks for every task, so one inside the client's process would pay for the client's memory. The one here
lives in a small process that loads nothing but the extension. There, `add_worker` wants a cluster of its
own: it is given one whose access file is then exchanged for that of the server to be measured.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.processes import children_cpu_s, cpu_s, rss_bytes

_POLL_S = 0.01
_RUN_S = 300.0


class HqRun(NamedTuple):
    """One run: tasks per second, and the CPU of server, worker and tasks per task."""

    per_s: float
    cpu_ms: float
    worker_rss_mb: float


def measure(directory: Path, jobs: int, slots: int) -> HqRun:
    """Run `jobs` times /bin/true (with a directory, an environment and one shared output file)."""
    command = [sys.executable, "-m", "benchmarks.hq", "run", str(directory), str(jobs), str(slots)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=_RUN_S)
    return HqRun(*json.loads(done.stdout.splitlines()[-1]))


def version() -> str:
    """The version of the wheel."""
    return str(_extension().get_hq_version())


def _run(directory: Path, jobs: int, slots: int) -> HqRun:
    # Here and not above: only this process may hold what the Python interface imports.
    job_type = importlib.import_module("hyperqueue").Job
    cluster_type = importlib.import_module("hyperqueue.cluster").LocalCluster
    work = directory / "work"
    work.mkdir(parents=True)
    log = str(work / "shared.log")
    # Its interface says Path and takes text.
    with cluster_type(str(directory / "server")) as cluster:
        worker = _start_worker(directory, slots)
        try:
            client = cluster.client()
            me = time.process_time()
            workers = cpu_s(worker.pid) + children_cpu_s(worker.pid)
            began = time.perf_counter()
            job = job_type(default_workdir=work)
            for i in range(jobs):
                env = {"CHAPPE_JOB_ID": str(i), "OMP_NUM_THREADS": "1"}
                job.program(["/bin/true"], env=env, stdout=log, stderr=log)
            _wait(client, client.submit(job).id)
            wall = time.perf_counter() - began
            cpu = time.process_time() - me
            cpu += cpu_s(worker.pid) + children_cpu_s(worker.pid) - workers
            return HqRun(jobs / wall, cpu / jobs * 1e3, rss_bytes(worker.pid) / 1e6)
        finally:
            _end(worker)


class _NotYetError(Exception):
    """Leaves `wait_for_jobs`, which would sleep a whole second between two looks."""


def _wait(client: Any, job: int) -> None:
    def look(status: dict[int, dict[str, Any]]) -> None:
        if not status[job]["completed"]:
            raise _NotYetError

    deadline = time.monotonic() + _RUN_S
    while time.monotonic() < deadline:
        try:
            failed = client.connection.wait_for_jobs([job], look)
        except _NotYetError:
            time.sleep(_POLL_S)
        else:
            assert not failed, f"tasks of HyperQueue failed: {failed}"
            return
    raise TimeoutError("HyperQueue did not finish in time")


def _start_worker(directory: Path, slots: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "benchmarks.hq", "worker", str(directory), "0", str(slots)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == b"ready":
            return process
    _end(process)
    raise RuntimeError("HyperQueue's worker did not start")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Its worker does not heed TERM, and has nothing to lose."""
    process.kill()
    process.communicate()


def _work(directory: Path, slots: int) -> None:
    own = directory / "worker"
    cluster = _extension().cluster_start(str(own))
    current = own / "hq-current"
    current.unlink()
    current.symlink_to((directory / "server" / "hq-current").resolve())
    cluster.add_worker(slots)
    print("ready", flush=True)
    time.sleep(_RUN_S)


def _extension() -> Any:
    """The wheel's extension without the Python around it."""
    package = importlib.util.find_spec("hyperqueue")
    assert package is not None
    assert package.origin is not None
    (path,) = Path(package.origin).parent.glob("hyperqueue*.so")
    loader = importlib.machinery.ExtensionFileLoader("hyperqueue", str(path))
    spec = importlib.util.spec_from_file_location("hyperqueue", path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


if __name__ == "__main__":
    mode, where, count, cores = sys.argv[1:]
    if mode == "run":
        print(json.dumps(_run(Path(where), int(count), int(cores))))
    else:
        _work(Path(where), int(cores))
