"""An older copy of the hub's database is put back while a pilot works.

What is promised: the hub notices, and begins a new incarnation. What the pilot holds stays its own, and is
not started again. What ended after the copy was made, the copy does not know: such a Job may run a second
time, under a higher attempt, and never beside its first run while its pilot is the first to be heard. What
was submitted after the copy is forgotten: it runs to its end, and nobody is told; to submit it again is up to
the user.
"""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from chappe.core.errors import NotFound
from chappe.sdk.sync import Job
from chappe.testing.cluster import Cluster, until
from chappe.testing.history import read_traces


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path / "cluster") as made:
        yield made


def copy_database(source: Path, target: Path) -> None:
    """A consistent copy of a database that is in use."""
    with closing(sqlite3.connect(source)) as used, closing(sqlite3.connect(target)) as copy:
        used.backup(copy)


def put_back(copy: Path, database: Path) -> None:
    for old in database.parent.glob(f"{database.name}-*"):
        old.unlink()
    shutil.copyfile(copy, database)


def begun(cluster: Cluster, *jobs: Job) -> bool:
    return set(read_traces(cluster.traces)) >= {job.id for job in jobs}


def over(cluster: Cluster, *jobs: Job) -> bool:
    """Whether these came to their end, by their own word."""
    traces = read_traces(cluster.traces)
    return all(job.id in traces and traces[job.id][-1].what == "end" for job in jobs)


def dead_sessions(cluster: Cluster) -> set[str | None]:
    over = ("ended", "failed", "cancelled")
    return {b.session for b in cluster.client.admin.batch_jobs() if b.state in over}


def test_an_older_database_is_put_back(cluster: Cluster, tmp_path: Path) -> None:
    site = cluster.site("paris", slots=4)
    site.start()
    cluster.offers(site)
    database = cluster.hub.data / "hub.sqlite"
    # When the copy is made four run and two wait; when it is put back one of each kind runs and the others
    # have ended. So it is with two more, that were submitted in between.
    copied, restored = tmp_path / "copied", tmp_path / "restored"
    (runs,) = cluster.submit(1, site, gate=restored)
    ended = cluster.submit(3, site, gate=copied)
    (began,) = cluster.submit(1, site, gate=restored, priority=-1)
    (came_and_went,) = cluster.submit(1, site, priority=-1)
    until(lambda: all(v.state == "RUNNING" for v in cluster.views([runs, *ended])), "four run")
    copy_database(database, tmp_path / "copy")
    assert {v.epoch for v in cluster.views([began, came_and_went])} == {0}, (
        "they were not granted yet"
    )
    (forgotten,) = cluster.submit(1, site, priority=-2)
    (unknown,) = cluster.submit(1, site, gate=restored, priority=-2)
    copied.touch()
    cluster.wait([*ended, came_and_went, forgotten])
    until(lambda: begun(cluster, began, unknown), "the others run")
    cluster.hub.kill9()
    put_back(tmp_path / "copy", database)
    cluster.hub.start()
    cluster.wait([*ended, came_and_went])
    restored.touch()
    known = [runs, *ended, began, came_and_went]
    cluster.wait(known)
    for job in (forgotten, unknown):
        with pytest.raises(NotFound):
            cluster.client.job(job.id)
    until(lambda: over(cluster, unknown), "the job that the hub does not know")
    views = {v.id: v for v in cluster.judge(known, forgotten=[forgotten, unknown])}
    assert {view.state for view in views.values()} == {"JOB_FINISHED"}, cluster.describe(known)
    attempts = {id: view.attempt for id, view in views.items()}
    assert [attempts[job.id] for job in (runs, began)] == [1, 1], "the pilot held them"
    assert [attempts[job.id] for job in (*ended, came_and_went)] == [2] * 4
    assert cluster.client.cursor().startswith("2:"), "a new incarnation of the hub"


def chappe(*words: str | Path) -> str:
    """What a command of the operator prints. Raises CalledProcessError."""
    command = [sys.executable, "-m", "chappe.cli.main", *map(str, words)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_the_operators_commands_with_live_pilots(cluster: Cluster, tmp_path: Path) -> None:
    site = cluster.site("paris", slots=3)
    site.start()
    cluster.offers(site)
    gate, data, file = tmp_path / "gate", cluster.hub.data, tmp_path / "backup"
    runs = cluster.submit(2, site, gate=gate)
    until(lambda: begun(cluster, *runs), "they run")
    waits = cluster.submit(3, site, gate=gate, priority=-1)
    chappe("hub", "backup", file, "--data", data)
    with pytest.raises(subprocess.CalledProcessError) as refused:
        chappe("hub", "restore", file, "--data", data)
    assert "another hub has" in refused.value.stderr
    until(lambda: begun(cluster, waits[0]), "one that the copy did not see begin runs")
    cluster.hub.stop()
    assert "hub.sqlite.replaced-" in chappe("hub", "restore", file, "--data", data)
    cluster.hub.start()
    gate.touch()
    cluster.wait([*runs, *waits])
    views = cluster.judge([*runs, *waits])
    assert [(v.state, v.attempt) for v in views] == [("JOB_FINISHED", 1)] * 5
    assert len(site.sessions()) == 1
    assert cluster.client.cursor().startswith("2:")


def test_one_pilot_is_older_than_the_copy_and_one_is_not(cluster: Cluster, tmp_path: Path) -> None:
    """The older one has room and asks at once; what the other runs must not be given to it."""
    site = cluster.site("paris", slots=1, keep=1)
    site.start()
    cluster.offers(site)
    gate, second = tmp_path / "gate", tmp_path / "second"
    (first,) = cluster.submit(1, site, gate=second)
    until(lambda: begun(cluster, first), "the first runs")
    (runs,) = cluster.submit(1, site, gate=gate, priority=-1)
    copy_database(cluster.hub.data / "hub.sqlite", tmp_path / "copy")
    site.stop()
    site.configure("pilot", keep=2)
    site.start()
    until(lambda: begun(cluster, runs), "the second runs, in another allocation")
    cluster.hub.kill9()
    put_back(tmp_path / "copy", cluster.hub.data / "hub.sqlite")
    second.touch()
    cluster.hub.start()
    cluster.wait([first])
    until(lambda: cluster.views([runs])[0].state == "RUNNING", "the second is known to run")
    gate.touch()
    cluster.wait([runs])
    views = cluster.judge([first, runs])
    assert [(v.state, v.attempt) for v in views] == [("JOB_FINISHED", 1)] * 2
    assert len(site.sessions()) == 2


def test_an_allocation_that_ended_after_the_copy_was_made(cluster: Cluster, tmp_path: Path) -> None:
    """In the copy its pilot lives and holds Jobs; in truth nobody will ever speak for it."""
    site = cluster.site("paris", slots=2)
    site.start()
    cluster.offers(site)
    copied = tmp_path / "copied"
    (runs,) = cluster.submit(1, site, gate=copied)
    until(lambda: cluster.views([runs])[0].state == "RUNNING", "it runs")
    copy_database(cluster.hub.data / "hub.sqlite", tmp_path / "copy")
    copied.touch()
    cluster.wait([runs])
    (session,) = site.sessions()
    site.kill_allocations()
    until(lambda: session in dead_sessions(cluster), "the end of the allocation is known")
    cluster.hub.kill9()
    put_back(tmp_path / "copy", cluster.hub.data / "hub.sqlite")
    cluster.hub.start()
    cluster.wait([runs])
    (view,) = cluster.judge([runs])
    assert (view.state, view.attempt) == ("JOB_FINISHED", 2)
    assert session in dead_sessions(cluster)
    assert site.sessions()[-1] in {s.id for s in cluster.client.admin.sessions()}


def test_the_copy_is_older_than_the_agent_and_the_pilot(cluster: Cluster, tmp_path: Path) -> None:
    """As a backup of last night usually is. Both stay, and the hub gets to know them anew."""
    site = cluster.site("paris", keep=0)
    site.start()
    cluster.offers(site)
    restored = tmp_path / "restored"
    (runs,) = cluster.submit(1, site, gate=restored, priority=1)
    ended = cluster.submit(3, site)
    copy_database(cluster.hub.data / "hub.sqlite", tmp_path / "copy")
    site.stop()
    site.configure("pilot", keep=1)
    site.start()
    cluster.wait(ended)
    until(lambda: begun(cluster, runs), "one runs")
    cluster.hub.kill9()
    put_back(tmp_path / "copy", cluster.hub.data / "hub.sqlite")
    cluster.hub.start()
    cluster.wait(ended)
    (allocation,) = cluster.client.admin.batch_jobs()
    assert allocation.session in site.sessions()
    until(lambda: cluster.client.admin.batch_jobs(state="running"), "the hub knows the allocation")
    restored.touch()
    cluster.wait([runs])
    views = {view.id: view for view in cluster.judge([runs, *ended])}
    assert {view.state for view in views.values()} == {"JOB_FINISHED"}
    assert views[runs.id].attempt == 1, "its pilot held it"
    assert {views[job.id].attempt for job in ended} <= {1, 2}, "told again, or run again"
    assert site.agent_up
    assert len(site.sessions()) == 1
