"""500 Sites with 5 000 Sessions that sync every 20 s, and their agents: what they cost the Hub, at rest.

They are simulated, in two other processes (chappe.testing.manysites); the Hub, TLS and the requests are real.
"""

from __future__ import annotations

import sqlite3
import subprocess
import time
from contextlib import ExitStack, closing

from benchmarks.bench import Bench
from benchmarks.contract import MB
from benchmarks.rig import HubProcess, hub
from chappe.testing import manysites

SITES = 500
SESSIONS = 10
SYNC_S = 20.0
CLIENTS = 2


def run(bench: Bench) -> None:
    """One round, long enough for each Session to be forgotten if it were: its time to live is a minute."""
    with bench.attempt("sites.cpu", "sites.wrong", "sites.rss"), ExitStack() as stack:
        directory = stack.enter_context(bench.private("sites"))
        running = stack.enter_context(hub(directory))
        sites = bench.scaled(SITES, 20) // CLIENTS
        clients = [_client(stack, running, f"client{k}", sites) for k in range(CLIENTS)]
        for client in clients:
            assert manysites.wait_ready(client)
        bench.say(f"{CLIENTS * sites * SESSIONS} sessions are heard")
        time.sleep(bench.scaled(int(SYNC_S), 2))  # until their syncs are spread evenly
        cpu_s, began = running.cpu_s, time.monotonic()
        time.sleep(bench.scaled(80, 5))
        taken_s = time.monotonic() - began
        bench.add("sites.cpu", 100 * (running.cpu_s - cpu_s) / taken_s)
        bench.add("sites.rss", running.rss_bytes / MB)
        sessions = _states(running)
        reports = [manysites.end(client) for client in clients]
        wrong = [problem for report in reports for problem in report.problems]
        wrong += [state for state in sessions if state != "live"]
        for problem in wrong[:5]:
            bench.say(problem)
        expected = CLIENTS * sites * SESSIONS
        assert len(sessions) == expected, f"{len(sessions)} of {expected} sessions"
        assert sum(report.grants for report in reports) == expected // 2
        bench.add("sites.wrong", len(wrong))
        slowest_s = max(report.slowest_s for report in reports)
        syncs = sum(report.syncs for report in reports)
        bench.note(
            "sites.wrong", f"{syncs} syncs, the slowest answer {slowest_s * 1000:.0f} ms late"
        )


def _client(
    stack: ExitStack, running: HubProcess, name: str, sites: int
) -> subprocess.Popen[bytes]:
    at = running.running
    settings = manysites.Settings(
        at.url, at.token, at.project, at.ca_file, name, sites, SESSIONS, SYNC_S
    )
    return stack.enter_context(manysites.start(settings))


def _states(running: HubProcess) -> list[str]:
    """Of all Sessions; a list of the Hub's is a page."""
    with closing(sqlite3.connect(f"file:{running.database}?mode=ro", uri=True)) as database:
        return [state for (state,) in database.execute("SELECT state FROM session")]
