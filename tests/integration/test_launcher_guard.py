"""The launcher as guard: escapees, heads that die, heads that never come back, and its own death."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import struct
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from chappe.core.errors import Invalid, Unavailable
from chappe.pilot.launch_client import LauncherClient, LauncherGone, start_process
from chappe.pilot.launch_link import listen
from chappe.pilot.launch_loop import CRASH_POINTS
from chappe.pilot.launch_wire import Key
from chappe.pilot.procs import find_marked, kill_marked
from tests.integration.launcher_rig import DEADLINE_S, Rig, alive, boot_in, rig, until

DAEMON = (
    "import os, sys, time\n"
    "if os.fork(): os._exit(0)\n"
    "os.setsid()\n"
    "if os.fork(): os._exit(0)\n"
    "open(sys.argv[1] + '.new', 'w').write(str(os.getpid()))\n"
    "os.rename(sys.argv[1] + '.new', sys.argv[1])\n"
    "time.sleep(600)\n"
)
PYTHON = f"{shlex.quote(sys.executable)} -S -c {shlex.quote(DAEMON)}"


@pytest.fixture
async def launcher() -> AsyncIterator[Rig]:
    async with rig(str(uuid.uuid4())) as made:
        yield made


def daemon(pidfile: Path, prefix: str = "") -> str:
    """Shell text that leaves a double-forked process in a session of its own, and waits until it is."""
    path = shlex.quote(str(pidfile))
    return f"{prefix}{PYTHON} {path}; until [ -e {path} ]; do sleep 0.01; done; "


async def pid_in(pidfile: Path) -> int:
    await until(pidfile.exists)
    return int(await asyncio.to_thread(pidfile.read_text))


@pytest.fixture
def private() -> Iterator[Path]:
    """A directory for sockets: ours alone, with a short name."""
    with tempfile.TemporaryDirectory(prefix="launcher-") as directory:
        yield Path(directory)


@pytest.mark.parametrize("prefix", ["", "env -i "], ids=["marked", "mark removed"])
@pytest.mark.parametrize("ending", ["exit 3", "kill -9 $$"])
async def test_an_escapee_is_gone_before_the_end_is_told(
    launcher: Rig, prefix: str, ending: str
) -> None:
    pidfile = launcher.directory / "pid"
    end = await launcher.run(launcher.task("escapes", daemon(pidfile, prefix) + ending))
    assert not alive(int(pidfile.read_text()))
    assert (end.reason, end.exit) in {("exit", 3), ("signal", None)}


async def test_what_stays_in_the_group_is_gone_too(launcher: Rig) -> None:
    pidfile = launcher.directory / "pid"
    stay = f"trap '' TERM HUP; (trap '' TERM; exec sleep 600) & echo $! > {pidfile}; exit 0"
    await launcher.run(launcher.task("stays", stay))
    assert not alive(int(pidfile.read_text()))


@pytest.mark.parametrize("session", ["", "os.setsid(); "], ids=["same group", "own session"])
async def test_a_chain_of_forks_does_not_outrun_the_kill(launcher: Rig, session: str) -> None:
    """A process that replaces itself all the time can be hit only together with its group."""
    chain = (
        f"import os; {session}open('running', 'w').close()\n"
        "while True:\n"
        "    if os.fork(): os._exit(0)\n"
    )
    program = f"{shlex.quote(sys.executable)} -S -c {shlex.quote(chain)}"
    script = f"{program} & until [ -e running ]; do sleep 0.01; done; exit 0"
    await launcher.run(launcher.task("chain", script))
    assert find_marked(launcher.session) == [m for m in find_marked(launcher.session) if not m.job]
    assert "launcher.escapees" not in launcher.log.read_text()


async def test_an_escapee_with_descendants_is_followed(launcher: Rig) -> None:
    """Each in a session of its own, all deaf to SIGTERM: they come to the launcher one by one."""
    tree = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "depth = int(sys.argv[1])\n"
        "os.setsid()\n"
        "open(f'{sys.argv[2]}/{os.getpid()}.pid', 'w').close()\n"
        "if depth and not os.fork(): os.execv(sys.executable,"
        " [sys.executable, '-S', '-c', sys.argv[3], str(depth - 1), *sys.argv[2:]])\n"
        "time.sleep(600)\n"
    )
    place = launcher.directory / "pids"
    place.mkdir()
    program = " ".join(
        shlex.quote(part) for part in (sys.executable, "-S", "-c", tree, "3", str(place), tree)
    )
    count = f"until [ $(ls {place} | wc -l) = 4 ]; do sleep 0.01; done"
    end = await launcher.run(launcher.task("tree", f"{program} & {count}; exit 0"))
    assert end.exit == 0
    pids = [int(path.stem) for path in place.iterdir()]
    assert len(pids) == 4
    assert not any(map(alive, pids))


@pytest.mark.parametrize("prefix", ["", "env -i "], ids=["marked", "mark removed"])
async def test_a_running_job_keeps_its_daemons(launcher: Rig, prefix: str) -> None:
    pidfile = launcher.directory / "pid"
    task = launcher.task("lives", daemon(pidfile, prefix) + "touch ready; sleep 600")
    await launcher.start(task)
    await until((launcher.directory / "ready").exists)
    pid = int(pidfile.read_text())
    for i in range(3):
        assert (await launcher.run(launcher.task(f"other{i}", "exit 0"))).exit == 0
    assert alive(pid)
    await launcher.client.kill([task.key], "cancelled", 0)
    assert (await launcher.end_of("lives")).reason == "cancelled"
    assert not alive(pid)


async def test_an_escapee_is_asked_first_when_its_job_is_killed(launcher: Rig) -> None:
    said = launcher.directory / "said"
    escapee = f"trap 'echo asked > {said}; exit' TERM; touch ready; while :; do sleep 0.05; done"
    script = f"trap 'until [ -e {said} ]; do sleep 0.01; done; exit 4' TERM; "
    script += f"setsid sh -c {shlex.quote(escapee)} & while :; do sleep 0.05; done"
    task = launcher.task("asks", script)
    await launcher.start(task)
    await until((launcher.directory / "ready").exists)
    await launcher.client.kill([task.key], "cancelled", 600)
    assert (await launcher.end_of("asks")).exit == 4
    assert said.read_text() == "asked\n"


def importing(repository: Path) -> dict[str, str]:
    """An environment in which the tests' own modules can be imported."""
    path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(repository))))
    return {**os.environ, "PYTHONPATH": path}


HEAD = """
import asyncio, sys
from pathlib import Path
from chappe.pilot.launch_wire import Task
from tests.integration.launcher_rig import Rig

async def main():
    rig = Rig(Path(sys.argv[1]), sys.argv[2])
    await rig.launch(300.0, {})
    await rig.connect()
    wait = "until [ -e go ]; do sleep 0.01; done; exit "
    await rig.start(
        rig.task("a", wait + "1"), rig.task("b", wait + "2"), rig.task("c", "sleep 600")
    )
    await rig.run(rig.task("told", "exit 9"))
    await rig.run(rig.task("acked", "exit 8"))
    await rig.client.ack([("acked", 1)])
    await rig.client.start([rig.task("last", "exit 7"), rig.task("queued", "exit 6", lane=1)])
    print(rig.client.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_a_killed_head_is_replaced_and_nothing_is_lost(
    private: Path, repository: Path
) -> None:
    session = str(uuid.uuid4())
    made = Rig(private, session)
    made.socket.parent.mkdir(mode=0o700)
    head = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", HEAD, str(private), session),
        stdout=asyncio.subprocess.PIPE,
        env={**importing(repository), "CHAPPE_SESSION": session},
    )
    try:
        assert head.stdout is not None
        launcher = int(await head.stdout.readline())
        head.kill()
        await head.wait()
        await asyncio.to_thread((private / "go").touch)  # two end while there is no head
        snapshot = await made.connect()
        assert made.client.pid == launcher
        made.ended += snapshot.ended
        for name in ("a", "b"):
            await made.end_of(name)
        await made.end_of("queued")
        ends = {end.job: end.exit for end in made.ended}
        assert ends == {"a": 1, "b": 2, "told": 9, "last": 7, "queued": 6}
        assert "c" in {started.job for started in snapshot.running}
        await made.client.stop(kill=True, grace_s=0)
        await made.client.gone
        assert [(e.reason, e.signal) for e in made.ended if e.job == "c"] == [("cancelled", 9)]
    finally:
        await made.leave_nothing()
        await head.communicate()


async def test_orders_written_before_the_head_died_are_in_the_snapshot(launcher: Rig) -> None:
    """The next head waits in the backlog until the last byte of the one before is obeyed."""
    tasks = [launcher.task(f"job{i}", "sleep 600") for i in range(50)]
    assert launcher.process.pid == launcher.client.pid
    os.kill(launcher.client.pid, signal.SIGSTOP)
    await launcher.client.start(tasks)
    launcher.client.close()
    second = asyncio.ensure_future(launcher.connect())
    await asyncio.sleep(0)
    os.kill(launcher.client.pid, signal.SIGCONT)
    snapshot = await second
    assert {*(s.key for s in snapshot.running), *snapshot.waiting} == {t.key for t in tasks}


async def test_a_second_head_is_served_after_the_first(launcher: Rig) -> None:
    with pytest.raises(LauncherGone, match="has it another head"):
        await LauncherClient.connect(launcher.socket, launcher.on_events, timeout_s=0.05)
    await launcher.start(launcher.task("runs", "sleep 600"))
    waiting = asyncio.ensure_future(
        LauncherClient.connect(launcher.socket, launcher.on_events, timeout_s=DEADLINE_S)
    )
    await asyncio.sleep(0)
    launcher.client.close()
    second, snapshot = await waiting
    assert [started.job for started in snapshot.running] == ["runs"]
    second.close()


async def test_a_dead_head_whose_child_holds_its_connection_is_seen(
    private: Path, repository: Path
) -> None:
    script = HEAD.replace("print(", "os.fork() or os.execvp('sleep', ['sleep', '600'])\n    print(")
    script = script.replace("await rig.connect()", "await rig.connect(); hold(rig)")
    hold = (
        "import os\n"
        "def hold(rig):\n"
        "    fd = rig.client._transport.get_extra_info('socket').fileno()\n"
        "    os.set_inheritable(fd, True)\n"
    )
    session = str(uuid.uuid4())
    made = Rig(private, session)
    made.socket.parent.mkdir(mode=0o700)
    head = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", hold + script, str(private), session),
        stdout=asyncio.subprocess.PIPE,
        env={**importing(repository), "CHAPPE_SESSION": session},
    )
    try:
        assert head.stdout is not None
        await head.stdout.readline()
        head.kill()
        assert "c" in {started.job for started in (await made.connect()).running}
    finally:
        await made.leave_nothing()
        await head.communicate()


async def test_a_large_snapshot_comes_in_parts(launcher: Rig) -> None:
    count = 700
    tasks = [launcher.task(f"job{i}", "/no/such", "", attempt=2) for i in range(count)]
    await launcher.client.start(tasks)
    await launcher.hear(lambda: len(launcher.ended) == count)
    launcher.client.close()
    snapshot = await launcher.connect()
    assert sorted(snapshot.ended, key=lambda e: e.job) == sorted(
        launcher.ended, key=lambda e: e.job
    )
    assert {end.reason for end in snapshot.ended} == {"start_failed"}


@pytest.mark.parametrize(
    "rubbish",
    [struct.pack(">I", 1 << 31), struct.pack(">I", 3) + b"\xff\xff\xff", b"GET / HTTP/1.1\r\n\r\n"],
    ids=["too long", "no msgpack", "another protocol"],
)
async def test_a_head_that_talks_rubbish_is_dropped_and_the_jobs_stay(
    launcher: Rig, rubbish: bytes
) -> None:
    await launcher.start(launcher.task("runs", "sleep 600"))
    launcher.client.close()
    reader, writer = await asyncio.open_unix_connection(str(launcher.socket))
    writer.write(rubbish)
    async with asyncio.timeout(DEADLINE_S):
        await reader.read()  # to the end that the launcher makes
    writer.close()
    snapshot = await launcher.connect()
    assert [started.job for started in snapshot.running] == ["runs"]
    assert "launcher.bad_frame" in launcher.log.read_text()


async def test_without_a_head_all_is_ended_after_the_grace() -> None:
    session = str(uuid.uuid4())
    async with rig(session, head_grace_s=0.3) as launcher:
        pidfile = launcher.directory / "pid"
        await launcher.start(
            launcher.task("plain", "sleep 600"),
            launcher.task("escapes", daemon(pidfile) + "sleep 600"),
            launcher.task("lane", "sleep 600", lane=1),
        )
        await launcher.client.start([launcher.task("waits", "sleep 600", lane=1)])
        pid = await pid_in(pidfile)
        launcher.client.close()
        async with asyncio.timeout(DEADLINE_S):
            assert await launcher.process.wait() == 0
        assert find_marked(session) == []
        assert not alive(pid)
        assert not launcher.socket.exists()
        assert len(launcher.started) == 3


async def test_a_head_that_never_comes_is_not_waited_for_for_ever() -> None:
    async with rig(str(uuid.uuid4()), head_grace_s=0.1, connect=False) as launcher:
        async with asyncio.timeout(DEADLINE_S):
            assert await launcher.process.wait() == 0


async def test_sigterm_without_a_head_ends_all_at_once(launcher: Rig) -> None:
    await launcher.start(launcher.task("runs", "sleep 600"))
    launcher.client.close()
    await until(lambda: "launcher.head_gone" in launcher.log.read_text())
    launcher.process.terminate()
    async with asyncio.timeout(DEADLINE_S):
        assert await launcher.process.wait() == 0
    assert find_marked(launcher.session) == []


async def test_after_the_launchers_death_its_jobs_are_found_by_their_mark(launcher: Rig) -> None:
    pidfile = launcher.directory / "pid"
    await launcher.start(
        launcher.task("a", daemon(pidfile) + "sleep 600"), launcher.task("b", "sleep 600", epoch=4)
    )
    pids = {started.job: started.pid for started in launcher.started}
    escapee = await pid_in(pidfile)
    launcher.process.kill()
    await launcher.client.gone
    with pytest.raises(LauncherGone):
        await launcher.client.ack([])
    await launcher.process.wait()
    with pytest.raises(LauncherGone):
        await LauncherClient.connect(launcher.socket, launcher.on_events)

    def of(key: Key) -> set[int]:
        return {m.pid for m in find_marked(launcher.session) if (m.job, m.epoch) == key}

    await until(lambda: len(of(("a", 1))) >= 3 and len(of(("b", 4))) >= 1)
    killed = await asyncio.to_thread(kill_marked, launcher.session, lambda m: m.job == "a")
    assert {pids["a"], escapee} <= set(killed)
    assert of(("a", 1)) == set()
    assert alive(pids["b"])
    assert pids["b"] in await asyncio.to_thread(kill_marked, launcher.session)
    assert find_marked(launcher.session) == []
    # A new one takes the place of the dead one's socket.
    await launcher.launch(300.0, {})
    assert (await launcher.connect()).running == []


@pytest.mark.parametrize("point", CRASH_POINTS)
async def test_it_can_be_killed_at_each_named_point(point: str) -> None:
    session = str(uuid.uuid4())
    async with rig(session, CHAPPE_CRASH_AT=f"{point}:2") as launcher:
        tasks = [launcher.task(f"job{i}", "sleep 0.01") for i in range(4)]
        await launcher.client.start(tasks)
        for i in range(2):
            ended = asyncio.ensure_future(launcher.end_of(f"job{i}"))
            await asyncio.wait((ended, launcher.client.gone), return_when="FIRST_COMPLETED")
            if launcher.client.gone.done():
                await asyncio.gather(ended, return_exceptions=True)
                break
            await launcher.client.ack([(f"job{i}", 1)])
        async with asyncio.timeout(DEADLINE_S):
            await launcher.client.gone
            assert await launcher.process.wait() == -signal.SIGKILL
        await asyncio.to_thread(kill_marked, session)
        assert find_marked(session) == []


def test_only_a_private_directory_is_listened_in(private: Path) -> None:
    private.chmod(0o755)
    with pytest.raises(Invalid, match="chmod 700"):
        listen(private / "s")
    private.chmod(0o700)
    with pytest.raises(Invalid, match="too long"):
        listen(private / ("s" * 108))


async def test_a_living_launcher_is_not_replaced(launcher: Rig) -> None:
    with launcher.log.open("ab") as log, pytest.raises(Unavailable, match="a launcher listens"):
        await start_process(launcher.socket, launcher.session, log)
    assert (await launcher.run(launcher.task("fine", "exit 0"))).exit == 0


async def test_the_command_line_listens_by_itself(private: Path) -> None:
    path, session = private / "s", str(uuid.uuid4())
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "chappe.pilot.launcher", "--socket", str(path)),
        *("--session", session),
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    assert b"launcher.started" in await process.stderr.readline()
    client, snapshot = await LauncherClient.connect(path, lambda _: None)
    assert (snapshot.session, snapshot.pid) == (session, process.pid)
    await client.stop()
    await client.gone
    await process.communicate()
    assert process.returncode == 0


async def test_an_order_that_was_held_up_is_not_obeyed_late(launcher: Rig) -> None:
    """Whoever was frozen, head or launcher: `start_by` is what keeps a late order from running."""
    stale = launcher.task("stale", "exit 0", start_by=boot_in(0.05))
    os.kill(launcher.client.pid, signal.SIGSTOP)
    await launcher.client.start([stale])
    await until(lambda: boot_in(0) > stale.start_by)
    os.kill(launcher.client.pid, signal.SIGCONT)
    await launcher.hear(lambda: launcher.refused)
    assert [(r.job, r.reason) for r in launcher.refused] == [("stale", "late")]
    assert not launcher.ended
    assert not launcher.started
