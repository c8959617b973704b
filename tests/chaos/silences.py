"""Scenarios whose subject is time: somebody is not heard for longer than a minute, and is not dead.

`over` is set when nobody wants to know any more; a scenario then ends as soon as it looks.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Event

from chappe.core import limits
from chappe.link.clock import boottime
from chappe.sdk.sync import Job
from chappe.testing import manysites
from chappe.testing.cluster import Cluster, until
from chappe.testing.history import read_traces
from chappe.testing.site import RunningSite

AWAY_S = 90.0


class Abandoned(Exception):
    """The test run ends."""


def pause(seconds: float, over: Event) -> None:
    """Let time pass."""
    if over.wait(max(0.0, seconds)):
        raise Abandoned


def running(cluster: Cluster, jobs: list[Job]) -> None:
    """Wait until all of these have begun, and the hub knows it."""
    until(
        lambda: all(view.state == "RUNNING" for view in cluster.views(jobs)),
        f"{len(jobs)} jobs run",
    )


def held(cluster: Cluster, site: RunningSite, jobs: list[Job]) -> set[str]:
    """Those of the Jobs that the hub takes for this site's."""
    return {v.id for v in cluster.views(jobs) if v.session in site.sessions()}


def hub_away(directory: Path, over: Event) -> None:
    """The hub is away for 90 s, dead without a word: Jobs run on, those at hand begin, all ends arrive."""
    with Cluster(directory / "c") as cluster:
        site = cluster.site("paris")
        site.start()
        cluster.offers(site)
        short = cluster.submit(60, site)
        cluster.wait(short)
        # One ends while the hub is away, one about when it comes back, two after that.
        jobs = [
            cluster.submit(1, site, beats=n, beat_s=0.5, estimate_s=60.0)[0]
            for n in (80, 175, 195, 200)
        ]
        running(cluster, jobs)
        waiting = cluster.submit(8, site, estimate_s=60.0)
        until(
            lambda: len(held(cluster, site, waiting)) == len(waiting), "the pilot holds what waits"
        )
        before = (site.pilots(), site.launchers(), site.sessions())
        cluster.hub.kill9()
        began = boottime()
        until(lambda: _ended(cluster, jobs) >= 1, "a job ends unheard", AWAY_S)
        pause(AWAY_S - (boottime() - began), over)
        assert (site.pilots(), site.launchers(), site.sessions()) == before
        assert site.agent_up
        cluster.hub.start()
        cluster.wait([*jobs, *waiting])
        views = cluster.judge(short + jobs + waiting)
        assert {(v.state, v.attempt) for v in views} == {("JOB_FINISHED", 1)}, cluster.describe(
            jobs
        )
        assert (site.pilots(), site.launchers(), site.sessions()) == before


def pilot_frozen(directory: Path, over: Event) -> None:
    """A pilot is stopped for longer than a Session lives unheard, and than a grant may wait to be started.

    Meanwhile its Session is silent and keeps all it holds, though another Site would have room. Then it
    goes on: what it had granted and not begun has lapsed, and is begun by somebody once.
    """
    with Cluster(directory / "c") as cluster:
        frozen, other = cluster.site("frozen", slots=2), cluster.site("other", slots=2, keep=0)
        frozen.start()
        other.start()
        cluster.offers(frozen, other)
        short = cluster.submit(60, frozen)
        cluster.wait(short)
        jobs = cluster.submit(12, frozen, other, beats=4, beat_s=0.5, estimate_s=60.0)
        until(lambda: len(held(cluster, frozen, jobs)) == len(jobs), "the pilot holds all")
        until(lambda: len(frozen.jobs()) >= 2, "two run")
        frozen.signal(frozen.pilots(), signal.SIGSTOP)
        stopped = boottime()
        cluster.client.admin.new_batch_job("other")
        until(lambda: is_silent(cluster, frozen), "the session is silent", 2 * limits.SESSION_TTL_S)
        assert all(view.unreachable for view in cluster.views(jobs) if view.phase == "running")
        more = cluster.submit(10, frozen, other)
        cluster.wait(more)
        pause(stopped + limits.START_WITHIN_S + 5 - boottime(), over)
        assert held(cluster, frozen, jobs) == {job.id for job in jobs}, "silence is not death"
        begun = set(read_traces(cluster.traces)) & {job.id for job in jobs}
        assert 2 <= len(begun) < len(jobs)
        frozen.signal(frozen.pilots(), signal.SIGCONT)
        cluster.wait(jobs)
        views = cluster.judge(short + jobs + more)
        assert {(v.state, v.attempt) for v in views} == {("JOB_FINISHED", 1)}, cluster.describe(
            jobs
        )
        epochs = {view.id: view.epoch for view in views}
        assert {epochs[id] for id in begun} == {1}
        assert all(epochs[job.id] > 1 for job in jobs if job.id not in begun), (
            "lapsed, and granted anew"
        )


def taken_over(directory: Path, over: Event) -> None:
    """Of two Jobs that asked for it, one pilot's network is cut and the other pilot is frozen: their side
    kills them, then they run elsewhere. A Job that did not ask for it goes on where it is."""
    with Cluster(directory / "c") as cluster:
        relay, url = cluster.relay()
        cut = cluster.site("cut", url=url, slots=2, beats=400, beat_s=0.5)
        frozen = cluster.site("frozen", slots=1, beats=400, beat_s=0.5)
        other = cluster.site("other", slots=2, keep=0, beats=6, beat_s=0.5)
        for site in (cut, frozen, other):
            site.start()
        cluster.offers(cut, frozen, other)
        gate = directory / "gate"
        faithful = cluster.submit(1, cut, other, gate=gate)
        asking = [
            *cluster.submit(1, cut, other, takeover_s=limits.TAKEOVER_MIN_S),
            *cluster.submit(1, frozen, other, takeover_s=limits.TAKEOVER_MIN_S),
        ]
        running(cluster, faithful + asking)
        relay.cut()
        frozen.signal(frozen.pilots(), signal.SIGSTOP)
        cluster.client.admin.new_batch_job("other")
        pause(limits.TAKEOVER_MIN_S, over)
        cluster.wait(asking)
        (view,) = cluster.views(faithful)
        assert (view.state, view.attempt, view.unreachable) == ("RUNNING", 1, True)
        relay.restore()
        frozen.signal(frozen.pilots(), signal.SIGCONT)
        gate.touch()
        cluster.wait(faithful)
        views = {view.id: view for view in cluster.judge(faithful + asking)}
        assert {view.state for view in views.values()} == {"JOB_FINISHED"}
        assert [views[job.id].attempt for job in faithful + asking] == [1, 2, 2]
        for site in (cut, frozen):
            told = until(partial(site.logged, "reports.not_applied"), "a stale report")
            assert told[0]["stale_lease"] == 1


def crowd(directory: Path, over: Event) -> None:
    """50 Sites with 500 Sessions that are heard every 20 s and otherwise say nothing: for longer than a
    Session's time to live nothing of theirs ends, and no Job is granted twice."""
    with Cluster(directory / "c") as cluster:
        hub = cluster.hub
        settings = manysites.Settings(
            hub.url, hub.token, hub.project, hub.ca_file, "crowd", 50, 10, 20.0
        )
        with manysites.start(settings) as process:
            assert manysites.wait_ready(process), "they are all heard"
            pause(limits.SESSION_TTL_S + 25, over)
            sessions = [s for site in cluster.client.sites() for s in site.sessions]
            jobs = list(cluster.client.views(phase="running"))
            report = manysites.end(process)
        assert report.problems == []
        assert report.syncs >= 500 * (limits.SESSION_TTL_S // settings.sync_s)
        assert Counter(s.state for s in sessions) == {"live": 500}
        assert Counter(s.held for s in sessions) == {0: 250, 1: 250}
        assert Counter((j.state, j.epoch, j.attempt) for j in jobs) == {("RUNNING", 1, 1): 250}


def is_silent(cluster: Cluster, site: RunningSite) -> bool:
    """Whether the hub has not heard a Session of this Site for its time to live."""
    sessions = cluster.client.admin.sessions()
    return any(s.state == "silent" for s in sessions if s.site == site.id)


def _ended(cluster: Cluster, jobs: list[Job]) -> int:
    """How many of these have come to their end, by their own word."""
    traces = read_traces(cluster.traces)
    return Counter(lines[-1].what for id, lines in traces.items() if id in {j.id for j in jobs})[
        "end"
    ]


SCENARIOS: dict[str, Callable[[Path, Event], None]] = {
    "crowd": crowd,
    "hub_away": hub_away,
    "pilot_frozen": pilot_frozen,
    "taken_over": taken_over,
}
