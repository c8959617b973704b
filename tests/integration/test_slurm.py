"""The agent on a real Slurm that loses its controller, its nodes and its memory; pilots are scripts."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from chappe.link.clock import new_id
from chappe.site import daemon
from chappe.site.calls import read_record
from chappe.testing.slurm import SlurmCluster
from chappe.wire.sites import BatchJobIntent
from tests.integration.site_rig import Site, StubHub, stub_hub, wait_until

# A pilot that says that it began, and ends when it is told to.
PATIENT = """\
session=$1
echo "$(basename "$session")" >>starts
trap 'echo term >>terms; exit 0' TERM
while [ ! -e "$session/go" ]; do sleep 0.1; done
exit 0
"""
SMALL = BatchJobIntent(cores=1, mem_bytes=100 << 20)


@pytest.fixture
def hub() -> Iterator[StubHub]:
    with stub_hub() as made:
        yield made


@pytest.fixture
def site(
    tmp_path: Path, hub: StubHub, slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Site]:
    for name, value in slurm.environ.items():
        monkeypatch.setenv(name, value)
    made = Site(tmp_path / "lyon", hub, PATIENT)
    made.setting('# kind = "local"', 'kind = "slurm"')
    made.setting("# status_interval_s = 60.0", "status_interval_s = 1.0")
    made.setting("# submissions_per_s = 0.1", "submissions_per_s = 50.0")
    made.setting("# keep = 1", "keep = 0")
    yield made
    slurm.clear()
    made.clean()


def order(site: Site, intent: BatchJobIntent = SMALL) -> str:
    ident = new_id()
    site.hub.order(ident, intent)
    return ident


def started(site: Site, ident: str) -> str:
    """The Session of a BatchJob whose pilot has begun."""
    wait_until(lambda: site.hub.sessions.get(ident) in site.lines("starts"), "the pilot's start")
    return site.hub.sessions[ident]


def let_end(site: Site, session: str) -> None:
    (site.paths.session(session) / "go").touch()


def ids_of(slurm: SlurmCluster, ident: str) -> list[str]:
    """What Slurm has under our name, now or ever."""
    since = "--starttime=now-1day"
    rows = slurm.run("sacct", "-X", "-n", "-P", since, f"--name=chappe-{ident}", "-o", "JobIDRaw")
    queued = [job for job, name, _ in slurm.jobs() if name == f"chappe-{ident}"]
    return sorted({*rows.split(), *queued})


def crash(site: Site, point: str) -> None:
    """Run an agent that dies at `point`."""
    agent = site.agent(CHAPPE_CRASH_AT=point)
    assert agent.wait(60) == -signal.SIGKILL


def test_an_allocation_from_the_order_to_the_end(site: Site, slurm: SlurmCluster) -> None:
    daemon.start(site.paths.root)
    ident = order(site, BatchJobIntent(nodes=2, cores=2, mem_bytes=200 << 20, wall_s=600.0))
    session = started(site, ident)
    wait_until(lambda: site.hub.states("running") == [ident], "running")
    shown = slurm.run("squeue", "-h", "-o", "%j|%k|%D|%l|%m|%T", "-n", f"chappe-{ident}")
    assert shown == f"chappe-{ident}|chappe-{ident}|2|10:00|200M|RUNNING"
    let_end(site, session)
    wait_until(lambda: site.hub.states("ended") == [ident], "ended")
    assert site.said("an end was seen"), "it is proof only when it was seen twice"
    assert ids_of(slurm, ident) == ids_of(slurm, ident)[:1]


def test_what_slurm_refuses_has_failed_with_its_words(site: Site) -> None:
    daemon.start(site.paths.root)
    ident = order(site, BatchJobIntent(cores=1, queue="nowhere"))
    wait_until(lambda: site.hub.states("failed") == [ident], "failed")
    assert "nowhere" in site.hub.messages[ident]


def test_an_allocation_that_is_cancelled_by_hand_was_cancelled(
    site: Site, slurm: SlurmCluster
) -> None:
    daemon.start(site.paths.root)
    ident = order(site)
    started(site, ident)
    slurm.run("scancel", *ids_of(slurm, ident))
    wait_until(lambda: site.hub.states("cancelled") == [ident], "cancelled")
    assert site.lines("terms"), "the pilot was told"


def test_the_hub_s_cancels_reach_slurm_in_one_command(site: Site, slurm: SlurmCluster) -> None:
    daemon.start(site.paths.root)
    idents = [order(site) for _ in range(3)]
    for ident in idents:
        started(site, ident)
    with site.hub.lock:
        site.hub.cancels.update(idents)
        site.hub.lock.notify_all()
    wait_until(lambda: sorted(site.hub.states("cancelled")) == sorted(idents), "cancelled")


@pytest.mark.parametrize("point", ["agent.after_intent", "agent.after_submit"])
def test_an_agent_that_dies_while_it_submits_has_submitted_once(
    site: Site, slurm: SlurmCluster, point: str
) -> None:
    ident = order(site)
    crash(site, point)
    if point == "agent.after_submit":
        started(site, ident)
    daemon.start(site.paths.root)
    session = started(site, ident)
    wait_until(lambda: site.hub.states("running") == [ident], "running")
    assert site.lines("starts") == [session]
    assert len(ids_of(slurm, ident)) == 1


def test_a_controller_that_is_down_delays_an_order_and_doubles_nothing(
    site: Site, slurm: SlurmCluster
) -> None:
    slurm.kill("slurmctld")
    daemon.start(site.paths.root)
    ident = order(site)
    wait_until(lambda: site.said("batch job: trying again"), "the first try")
    assert site.hub.batch_jobs[ident] == "requested"
    slurm.start_controller()
    started(site, ident)
    wait_until(lambda: site.hub.states("running") == [ident], "running")
    assert len(site.lines("starts")) == 1


def test_what_the_controller_forgot_is_neither_submitted_again_nor_taken_for_ended(
    site: Site, slurm: SlurmCluster
) -> None:
    ident = order(site)
    crash(site, "agent.after_submit")
    session = started(site, ident)
    slurm.kill("slurmctld")
    slurm.start_controller()
    daemon.start(site.paths.root)
    wait_until(lambda: site.hub.states("submitted", "running") == [ident], "found again")
    # Several looks later, and whatever squeue says of it: the pilot lives, so nobody may call it dead.
    calls = looks(site)
    wait_until(lambda: looks(site) >= calls + 4, "some more looks")
    assert site.hub.states("submitted", "running") == [ident]
    # Slurm may kill, one by one, the processes of what it forgot; the script then starts its pilot again.
    assert set(site.lines("starts")) == {session}
    assert len(ids_of(slurm, ident)) <= 1
    let_end(site, session)


def looks(site: Site) -> int:
    record = read_record(site.paths.calls)
    return record.counts["status"].calls if record and "status" in record.counts else 0


def test_a_node_that_failed_is_no_end_and_a_limit_that_passed_is(
    site: Site, slurm: SlurmCluster
) -> None:
    daemon.start(site.paths.root)
    lost = order(site, BatchJobIntent(cores=1, mem_bytes=100 << 20, wall_s=3000.0))
    session = started(site, lost)
    timed = order(site, BatchJobIntent(nodes=3, cores=2, mem_bytes=100 << 20, wall_s=60.0))
    started(site, timed)
    node = slurm.run("squeue", "-h", "-o", "%N", "-n", f"chappe-{lost}")
    slurm.kill(f"slurmd-{node}")

    def given_up() -> bool:
        return (lost_id, f"chappe-{lost}", "NODE_FAIL") in slurm.jobs()

    (lost_id,) = ids_of(slurm, lost)
    wait_until(given_up, "Slurm gives the job up")
    calls = looks(site)
    wait_until(lambda: looks(site) >= calls + 3, "some more looks")
    assert lost in site.hub.states("running"), "its pilot lives: nothing says that it is dead"
    let_end(site, session)
    # The limit is a minute, and Slurm looks at limits twice a minute.
    wait_until(lambda: site.hub.states("ended") == [timed], "the end at the limit", 200.0)
    assert "limit" in site.hub.messages[timed]


def test_a_job_cannot_be_requeued_into_a_second_pilot(site: Site, slurm: SlurmCluster) -> None:
    daemon.start(site.paths.root)
    ident = order(site)
    session = started(site, ident)
    (job,) = ids_of(slurm, ident)
    with pytest.raises(subprocess.CalledProcessError):
        slurm.run("scontrol", "requeue", job)
    assert site.lines("starts") == [session]
    let_end(site, session)
    wait_until(lambda: site.hub.states("ended") == [ident], "ended")
