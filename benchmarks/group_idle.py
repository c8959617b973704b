"""What Chappe costs while nothing happens, how soon a Hub is ready, and what waiting grants weigh."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack

import chappe
from benchmarks.bench import Bench
from benchmarks.contract import MB
from benchmarks.processes import pss_bytes
from benchmarks.rig import hub
from benchmarks.site import SLOTS, Site, site

_SETTLE_S = 2.0
_WITHIN_S = 30.0


def run(bench: Bench) -> None:
    """Each round: a first start, a second start, a Site that idles, then one that holds grants."""
    keys = ("ready.first", "ready.second", "pss.hub", "pss.agent", "pss.pilot", "rss.grant")
    with bench.attempt(*keys):
        for _ in range(bench.rounds):
            _round(bench)


def _round(bench: Bench) -> None:
    with ExitStack() as stack:
        directory = stack.enter_context(bench.private("idle"))
        with hub(directory) as first:
            bench.add("ready.first", first.ready_s)
        running = stack.enter_context(hub(directory))
        bench.add("ready.second", running.ready_s)
        client = stack.enter_context(running.client())
        the = stack.enter_context(site(running, directory / "site", client))
        time.sleep(_SETTLE_S)
        bench.add("pss.hub", pss_bytes(running.pid) / MB)
        bench.add("pss.agent", pss_bytes(the.agent) / MB)
        bench.add("pss.pilot", the.pilot_pss_bytes() / MB)
        with bench.attempt("rss.grant"):
            _grants(bench, client, the)


def _grants(bench: Bench, client: chappe.Client, the: Site) -> None:
    """Memory that grows while the pilot holds Jobs that cannot start: all slots are taken."""
    client.wait_all(
        the.app("lean").map([{}] * 100), timeout_s=60
    )  # how long Jobs take is known now
    held = the.app("hold").options(priority=1).map([{}] * SLOTS)
    _until(lambda: all(job.refresh().phase == "running" for job in held))
    before = the.pilot_pss_bytes()
    waiting = the.app("lean").map([{}] * 4_000)
    _until(lambda: the.held() > 500)
    many = _steady(the) - SLOTS
    grown = the.pilot_pss_bytes() - before
    bench.add("rss.grant", grown / many)
    bench.note("rss.grant", f"{many} grants, their specs and signatures included")
    client.cancel(ids=[job.id for job in (*held, *waiting)])
    client.wait_all([*held, *waiting], timeout_s=60)


def _steady(the: Site) -> int:
    """How many Jobs the pilot holds, once that has ceased to grow."""
    last = 0
    for _ in range(20):
        time.sleep(0.1)
        now = the.held()
        if now == last:
            break
        last = now
    return last


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _WITHIN_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("it never came about")
        time.sleep(0.02)
