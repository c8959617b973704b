"""An allocation of several nodes: head and hands, and each of them killed, cut off or frozen."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from chappe.core.jobs import Resources, Retries
from chappe.link.clock import new_id
from chappe.pilot.hand_wire import make_certificate, read_place
from chappe.pilot.hand_wire import tls as hand_tls
from chappe.pilot.keeper import place_file
from chappe.pilot.procs import node_of
from chappe.testing.hub import RunningHub
from chappe.testing.relay import Relay
from chappe.wire.jobs import Why
from tests.integration.pilot_rig import Pilot, RealSite, until

GO = "until [ -e ../../../go ]; do sleep 0.05; done"

#: Starts the ranks of a Job as mpiexec would: one process for each, with the name of its node.
MPIEXEC = """\
import os, subprocess, sys
hostfile, argv = sys.argv[1], sys.argv[2:]
lines = [line.rstrip("\\n").split(":") for line in open(hostfile)]
ranks = [(node, k) for node, count in lines for k in range(int(count))]
started = [
    subprocess.Popen(argv, env={**os.environ, "CHAPPE_NODE": node, "RANK": str(rank)})
    for rank, (node, _) in enumerate(ranks)
]
sys.exit(max([process.wait() for process in started]))
"""


@pytest.fixture
async def site(shared_hub: RunningHub, tmp_path: Path) -> AsyncIterator[RealSite]:
    """A Site at a Hub that other tests use too."""
    hub = shared_hub
    made = RealSite(tmp_path / "site", hub.url, hub.token, hub.project, hub.ca_file or None)
    await made.register(f"paris-{new_id()}")
    yield made
    await made.close()


async def several(site: RealSite, nodes: int = 3, **options: object) -> Pilot:
    """A pilot on so many emulated nodes of one slot each, and all its hands."""
    hosts = {"kind": "emulated", "nodes": nodes}
    pilot = await site.session({"slots": 1, **options}, hosts=hosts)
    await pilot.start()
    await until(lambda: len(pilot.logged("hand.joined")) == nodes - 1, "all hands join")
    return pilot


def processes(pilot: Pilot, module: str) -> dict[str, int]:
    """The processes of the Session that run this module, by their node."""
    found = {}
    for directory in Path("/proc").iterdir():
        try:
            command = (directory / "cmdline").read_bytes()
            environ = (directory / "environ").read_bytes()
        except OSError:
            continue
        if module.encode() in command and pilot.session.encode() in environ:
            found[node_of(int(directory.name))] = int(directory.name)
    return found


def kill_all(pilot: Pilot, node: str) -> None:
    """Everything on one node dies at once."""
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit() or node_of(int(directory.name)) != node:
            continue
        try:
            if pilot.session.encode() in (directory / "environ").read_bytes():
                os.kill(int(directory.name), signal.SIGKILL)
        except OSError:
            continue


def stdout(site: RealSite, job: str, attempt: int = 1) -> str:
    return (site.dir.path / f"data/jobs/{job}/attempt-{attempt}/stdout.log").read_text()


def go(site: RealSite) -> None:
    (site.dir.path / "data" / "go").touch()


async def running(site: RealSite, count: int = 3, **fields: object) -> dict[str, str]:
    """So many Jobs that run until `go`, by the node that each is on."""
    text = f"echo $CHAPPE_NODE; {GO}"
    ids = await site.submit([site.dir.spec("sh", text=text, **fields) for _ in range(count)])
    for ident in ids:
        await site.reaches(ident, "RUNNING")
    await until(lambda: all(stdout(site, ident) for ident in ids), "all say where they are")
    return {stdout(site, ident).strip(): ident for ident in ids}


async def test_jobs_run_on_all_nodes_and_all_ends_with_the_session(site: RealSite) -> None:
    pilot = await several(site)
    jobs = await running(site)
    assert sorted(jobs) == ["n0", "n1", "n2"]
    (wide, other) = await site.submit(
        [
            site.dir.spec("sh", text="echo", resources=Resources(nodes=4)),
            site.dir.spec("sh", text="exit 3", retries=Retries(max=0)),
        ]
    )
    go(site)
    for ident in jobs.values():
        await site.reaches(ident, "JOB_FINISHED")
    assert (await site.reaches_final(other)).state == "FAILED"
    assert (await site.job(wide)).state == "PREPROCESSED"  # there are only three
    pilot.signal(signal.SIGTERM)
    assert await pilot.ended() == 0
    await until(lambda: not processes(pilot, "chappe.pilot"), "nothing is left")


async def test_ranks_are_started_on_the_nodes_of_their_job(site: RealSite) -> None:
    script = site.dir.path / "mpiexec.py"
    script.write_text(MPIEXEC)
    ranks = [sys.executable, str(script), "{hostfile}"]
    await several(site, slots=2, ranks=ranks)
    need = Resources(nodes=3, ranks=5, threads_per_rank=1)
    text = "echo $CHAPPE_NODE $RANK $CHAPPE_RANKS $CHAPPE_NODES $OMP_NUM_THREADS"
    (job, alone) = await site.submit(
        [site.dir.spec("sh", text=text, resources=need), site.dir.spec("sh", text="echo $RANK")]
    )
    await site.reaches(job, "JOB_FINISHED")
    said = sorted(stdout(site, job).splitlines(), key=lambda line: int(line.split()[1]))
    assert [line.split()[1:] for line in said] == [[str(k), "5", "3", "1"] for k in range(5)]
    counts = Counter(line.split()[0] for line in said)  # in the order in which the hands joined
    assert counts.keys() == {"n0", "n1", "n2"}
    assert sorted(counts.values()) == [1, 2, 2]
    await site.reaches(alone, "JOB_FINISHED")
    assert stdout(site, alone) == "\n"


async def test_no_rank_outlives_the_node_that_its_job_was_started_on(site: RealSite) -> None:
    script = site.dir.path / "mpiexec.py"
    script.write_text(MPIEXEC)
    pilot = await several(site, ranks=[sys.executable, str(script), "{hostfile}"])
    (alone,) = await site.submit([site.dir.spec("sh", text=GO)])
    await site.reaches(alone, "RUNNING")
    need = Resources(nodes=2, ranks=2)
    text = f"echo $CHAPPE_NODE $$; {GO}"
    job = site.dir.spec("sh", text=text, resources=need, retries=Retries(max=0))
    (wide,) = await site.submit([job])
    await site.reaches(wide, "RUNNING")
    await until(lambda: len(stdout(site, wide).splitlines()) == 2, "both ranks say where they are")
    ranks = dict(line.split() for line in stdout(site, wide).splitlines())
    assert sorted(ranks) == ["n1", "n2"]
    kill_all(pilot, "n1")
    view = await site.reaches_final(wide)
    assert view.outcome is not None
    assert view.outcome.reason == "node_lost"
    await until(lambda: node_of(int(ranks["n2"])) == "", "the other rank is gone")
    go(site)
    await site.reaches(alone, "JOB_FINISHED")


async def test_a_job_of_several_nodes_needs_a_command_for_its_ranks(site: RealSite) -> None:
    await several(site, nodes=2)
    (job,) = await site.submit([site.dir.spec("sh", text="echo", resources=Resources(nodes=2))])
    view = await site.reaches_final(job)
    assert view.outcome is not None
    assert "[launch] ranks" in view.outcome.message


async def test_a_hand_that_is_killed_is_followed_by_another_and_jobs_go_on(site: RealSite) -> None:
    pilot = await several(site)
    jobs = await running(site)
    os.kill(processes(pilot, "chappe.pilot.hand")["n1"], signal.SIGKILL)
    await until(lambda: len(pilot.logged("hand.joined")) == 3, "another hand joins")
    go(site)
    for ident in jobs.values():
        assert (await site.reaches(ident, "JOB_FINISHED")).attempt == 1


async def test_what_ran_on_a_node_that_dies_is_lost_and_the_others_go_on(site: RealSite) -> None:
    pilot = await several(site)
    jobs = await running(site, retries=Retries(max=0))
    kill_all(pilot, "n2")
    view = await site.reaches_final(jobs["n2"])
    assert view.outcome is not None
    assert view.outcome.reason == "node_lost"
    go(site)
    for node in ("n0", "n1"):
        await site.reaches(jobs[node], "JOB_FINISHED")
    # The node itself has a hand again, and takes work.
    await until(lambda: len(pilot.logged("hand.joined")) == 3, "another hand joins")
    (again,) = await site.submit([site.dir.spec("sh", text="echo")])
    await site.reaches(again, "JOB_FINISHED")


async def test_a_launcher_that_dies_takes_its_node_s_jobs_only(site: RealSite) -> None:
    pilot = await several(site)
    jobs = await running(site)
    os.kill(processes(pilot, "chappe.pilot.launcher")["n1"], signal.SIGKILL)
    go(site)
    assert (await site.reaches(jobs["n1"], "JOB_FINISHED")).attempt == 2
    for node in ("n0", "n2"):
        assert (await site.reaches(jobs[node], "JOB_FINISHED")).attempt == 1


async def test_hands_keep_their_jobs_for_a_head_that_is_started_again(site: RealSite) -> None:
    pilot = await several(site)
    jobs = await running(site)
    await pilot.kill9()
    await pilot.start()
    await until(lambda: pilot.logged("adopted"), "the new head takes over")
    assert pilot.logged("adopted")[0]["running"] == 3
    go(site)
    for ident in jobs.values():
        assert (await site.reaches(ident, "JOB_FINISHED")).attempt == 1


async def test_a_frozen_hand_cannot_keep_its_jobs_for_longer_than_the_head_allowed(
    site: RealSite,
) -> None:
    pilot = await several(site, nodes=2, head_grace_s=5.0)
    text = f"echo $CHAPPE_NODE; echo in >> ../ran; trap 'echo out >> ../ran; exit 1' TERM; {GO}"
    ids = await site.submit([site.dir.spec("sh", text=text) for _ in range(2)])
    for ident in ids:
        await site.reaches(ident, "RUNNING")
    await until(lambda: all(stdout(site, ident) for ident in ids), "all say where they are")
    (there,) = [ident for ident in ids if stdout(site, ident) == "n1\n"]
    os.kill(processes(pilot, "chappe.pilot.hand")["n1"], signal.SIGSTOP)
    # Its launcher is out of the head's reach: it ends what it runs, and the frozen hand with it, by itself.
    # Only then can another hand begin there, and say that all is gone.
    await until(lambda: len(pilot.logged("hand.joined")) == 2, "another hand joins")
    assert (site.dir.path / f"data/jobs/{there}/ran").read_text().startswith("in\nout\n")
    go(site)
    for ident in ids:
        view = await site.reaches(ident, "JOB_FINISHED")
        assert (view.attempt > 1) == (ident == there)


async def test_hands_are_started_by_a_command_of_the_site(site: RealSite) -> None:
    ssh = 'echo "$1" >> "$0.log"; shift; exec env -u CHAPPE_SESSION "$@"'
    pilot = await commanded(site, ssh)
    await until(lambda: pilot.logged("hand.joined"), "the hand joins over a probed address")
    jobs = await running(site, 2)
    assert sorted(jobs) == sorted([os.uname().nodename, "other"])
    assert (site.dir.path / "ssh.log").read_text() == "other\n"
    go(site)
    for ident in jobs.values():
        await site.reaches(ident, "JOB_FINISHED")


async def commanded(site: RealSite, ssh: str, **options: object) -> Pilot:
    """A pilot on this machine and a node `other`, which the shell script `ssh` reaches."""
    path = site.dir.path / "ssh"
    path.write_text(f"#!/bin/sh\n{ssh}\n")
    path.chmod(0o700)
    names = ["printf", f"{os.uname().nodename}\\nother\\n"]
    hosts = {"kind": "command", "names": names, "start": [str(path), "{node}"]}
    pilot = await site.session({"slots": 1, **options}, hosts=hosts)
    await pilot.start()
    return pilot


ONCE = '[ -e "$0.once" ] && exit 1; touch "$0.once"; shift; exec "$@"'


async def test_a_node_that_cannot_be_reached_again_is_lost_in_time(site: RealSite) -> None:
    pilot = await commanded(site, ONCE, head_grace_s=4.0)
    await until(lambda: pilot.logged("hand.joined"), "the hand joins")
    jobs = await running(site, 2, retries=Retries(max=0))
    kill_all(pilot, "other")
    view = await site.reaches_final(jobs["other"])
    assert view.outcome is not None
    assert view.outcome.reason == "node_lost"
    assert pilot.logged("node.lost")
    # A head that is started again does not wait for it.
    assert not place_file(pilot.directory, "other").exists()
    go(site)
    await site.reaches(jobs[os.uname().nodename], "JOB_FINISHED")
    (wide,) = await site.submit([site.dir.spec("sh", text="echo", resources=Resources(nodes=2))])
    why = await site.user.request("GET", f"/v1/jobs/{wide}/why", reply=Why)
    assert (await site.job(wide)).state == "PREPROCESSED", why


async def test_a_head_that_is_started_again_goes_on_without_a_dead_node(site: RealSite) -> None:
    """The node died while there was no head. What ran there is held, until it is certain that it is over."""
    pilot = await commanded(site, ONCE, head_grace_s=3000.0)
    await until(lambda: pilot.logged("hand.joined"), "the hand joins")
    jobs = await running(site, 2)
    await pilot.kill9()
    kill_all(pilot, "other")
    await pilot.start()
    await until(lambda: pilot.logged("adopted"), "the head goes on")
    assert pilot.logged("adopted")[0]["sought"] == 1
    go(site)
    assert (await site.reaches(jobs[os.uname().nodename], "JOB_FINISHED")).attempt == 1
    (more,) = await site.submit([site.dir.spec("true")])
    await site.reaches(more, "JOB_FINISHED")
    assert (await site.job(jobs["other"])).state == "RUNNING"


async def test_what_was_sought_on_a_node_that_is_lost_runs_elsewhere(site: RealSite) -> None:
    pilot = await commanded(site, ONCE, head_grace_s=4.0)
    await until(lambda: pilot.logged("hand.joined"), "the hand joins")
    jobs = await running(site, 2)
    await pilot.kill9()
    kill_all(pilot, "other")
    await pilot.start()
    await until(lambda: pilot.logged("node.lost"), "the node is lost")
    # On a busy machine the time that this node's launcher allows may have passed, too.
    assert pilot.logged("adopted")[0]["sought"] in (1, 2)
    go(site)
    for ident in jobs.values():
        await site.reaches(ident, "JOB_FINISHED")
    assert (await site.job(jobs["other"])).attempt == 2


async def test_what_was_sought_on_a_node_that_comes_late_has_gone_on(site: RealSite) -> None:
    pilot = await several(site, nodes=2, head_grace_s=3000.0)
    jobs = await running(site, 2)
    hand = processes(pilot, "chappe.pilot.hand")["n1"]
    os.kill(hand, signal.SIGSTOP)
    try:
        await pilot.kill9()
        await pilot.start()
        await until(lambda: pilot.logged("adopted"), "the head goes on")
        assert pilot.logged("adopted")[0]["sought"] == 1
    finally:
        os.kill(hand, signal.SIGCONT)
    await until(lambda: len(pilot.logged("hand.joined")) == 2, "the hand is back")
    # Its room is taken: what comes now waits for one of the two.
    late = site.dir.spec("sh", text="[ -e ../../../go ]", retries=Retries(max=0))
    (more,) = await site.submit([late])
    go(site)
    for ident in (*jobs.values(), more):
        assert (await site.reaches(ident, "JOB_FINISHED")).attempt == 1


async def test_a_hand_that_does_not_come_up_is_tried_again_for_as_long_as_it_takes(
    site: RealSite,
) -> None:
    thrice = 'echo x >> "$0.tries"; [ $(wc -l < "$0.tries") -gt 3 ] || exit 1; shift; exec "$@"'
    pilot = await commanded(site, thrice)
    await until(lambda: pilot.logged("hand.joined"), "the hand joins")
    assert len(pilot.logged("hand.started")) == 4


async def test_a_network_that_is_cut_for_a_while_changes_nothing(site: RealSite) -> None:
    # The words after the node's name: python -P -m chappe.pilot.hand --dir DIRECTORY …
    through = (
        'until [ -e "$0.place" ]; do sleep 0.05; done; shift; '
        'cp "$0.place" "$6/head.json"; exec "$@"'
    )
    pilot = await commanded(site, through)
    place = pilot.directory / "head.json"
    told = await until(lambda: place.exists() and msgspec.json.decode(place.read_bytes()), "a port")
    relay = Relay(socket.create_server(("127.0.0.1", 0)), told["port"])
    try:
        (site.dir.path / "ssh.place").write_bytes(
            msgspec.json.encode({"addresses": ["127.0.0.1"], "port": relay.address[1]})
        )
        await until(lambda: pilot.logged("hand.joined"), "the hand joins through the relay")
        jobs = await running(site, 2)
        relay.cut(reset=True)
        await until(lambda: pilot.logged("hand.cut"), "the head notices")
        relay.restore()
        go(site)  # its end is told when the hand is back
        for ident in jobs.values():
            assert (await site.reaches(ident, "JOB_FINISHED")).attempt == 1
    finally:
        relay.close()


async def test_nobody_else_on_the_network_is_taken_for_a_hand(
    site: RealSite, tmp_path: Path
) -> None:
    pilot = await several(site, nodes=2)
    place = read_place(pilot.directory)
    assert place is not None
    address = place.addresses[0]
    anybody = ssl.create_default_context()
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
    with anybody.wrap_socket(socket.create_connection((address, place.port))) as without:
        # TLS 1.3: that a certificate is missing shows when we first read. Who is let in is waited for.
        without.settimeout(10)
        with suppress(ssl.SSLError):
            assert without.recv(1) == b""
    make_certificate(tmp_path, time.time())
    other = socket.create_connection((address, place.port))
    with other, pytest.raises(ssl.SSLError):
        hand_tls(tmp_path, server=False).wrap_socket(other)
    jobs = await running(site, 2)
    go(site)
    for ident in jobs.values():
        await site.reaches(ident, "JOB_FINISHED")
