"""Python functions in warm workers, beside Parsl in the same rounds."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

import chappe
from benchmarks import parsl_ref
from benchmarks.bench import Bench
from benchmarks.contract import MS
from benchmarks.figures import percentile
from benchmarks.parsl_ref import square
from benchmarks.rig import HubProcess, hub
from benchmarks.site import NAME, SLOTS, Site, site

# As for many short calls: one directory and one log for all (docs/howto/run-python-functions.md).
_FUNCTIONS = """
[functions.environments.lean]
own_directory = false
log = "shared"
"""


def run(bench: Bench) -> None:
    """Rounds of: many calls, their values here, one call after the other; Parsl."""
    ours = ("functions", "functions.of_parsl", "functions.p50", "functions.values", "functions.cpu")
    with ExitStack() as stack:
        stack.enter_context(bench.attempt(*ours))
        directory = stack.enter_context(bench.private("functions"))
        running = stack.enter_context(hub(directory))
        client = stack.enter_context(running.client())
        the = stack.enter_context(site(running, directory / "site", client, _FUNCTIONS))
        lean = chappe.app(square, site=NAME, environment="lean")
        client.wait_all(client.map(lean, range(500)), timeout_s=60)
        for n in range(bench.rounds):
            _round(bench, running, client, the, lean, directory / f"round{n}")
        bench.note("functions", "durable: row and Events committed with full sync, value stored")
        bench.note("functions.parsl", f"Parsl {parsl_ref.version()}; nothing durable")


def _round(
    bench: Bench,
    running: HubProcess,
    client: chappe.Client,
    the: Site,
    lean: chappe.FunctionApp[[int], int],
    directory: Path,
) -> None:
    directory.mkdir()
    calls = bench.scaled(10_000, 3_000)
    hub_cpu, site_cpu, own_cpu = running.cpu_s, the.cpu_s(), time.process_time()
    began = time.perf_counter()
    jobs = client.map(lean, range(calls))
    client.wait_all(jobs, timeout_s=300)
    per_s = calls / (time.perf_counter() - began)
    own = (time.process_time() - own_cpu) / calls * MS
    at_site = (the.cpu_s() - site_cpu) / calls * MS
    at_hub = (running.cpu_s - hub_cpu) / calls * MS
    assert all(job.ok for job in jobs)
    assert jobs[-1].result() == (calls - 1) ** 2
    bench.add("functions", per_s)
    bench.add("functions.cpu", own + at_site + at_hub)
    bench.note("functions.cpu", f"hub {at_hub:.3f}, client {own:.3f}, pilot {at_site:.3f} ms")

    with chappe.Executor(NAME, client=client, environment="lean") as executor:
        began = time.perf_counter()
        found = list(executor.map(square, range(calls)))
        bench.add("functions.values", calls / (time.perf_counter() - began))
        assert found[-1] == (calls - 1) ** 2

    taken = []
    for n in range(bench.scaled(200, 60)):
        began = time.perf_counter()
        client.submit(lean, n).wait(timeout_s=60)
        taken.append((time.perf_counter() - began) * MS)
    bench.add("functions.p50", percentile(taken, 50))

    with bench.attempt("functions.parsl", "functions.of_parsl"):
        other = parsl_ref.measure(directory, calls, bench.scaled(200, 60), SLOTS)
        bench.add("functions.parsl", other.per_s)
        bench.add("functions.parsl_p50", other.p50_ms)
        bench.add("functions.of_parsl", per_s / other.per_s)
