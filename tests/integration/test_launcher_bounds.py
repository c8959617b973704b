"""What the kernel holds Jobs to: how large a file grows, and how many processes there are."""

from __future__ import annotations

import os
import resource
import shlex
import signal
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from chappe.core.jobs import Retries
from chappe.link.clock import new_id
from chappe.pilot.launch_wire import Bounds
from chappe.testing.hub import RunningHub
from tests.integration.launcher_rig import BASE_ENV, Rig, rig
from tests.integration.pilot_rig import RealSite

MB = 1_000_000
PYTHON = f"exec {shlex.quote(sys.executable)} -S"
#: As an account of which there is nothing else where it can be (root is bound by nothing).
BOMB = """
import os, signal, sys, time
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(54321)
    os.setuid(54321)
made = []
try:
    for _ in range(int(sys.argv[1])):
        pid = os.fork()
        if pid == 0:
            time.sleep(600)
        made.append(pid)
except BlockingIOError:
    print("no more", len(made))
else:
    print("all of them")
for pid in made:
    os.kill(pid, signal.SIGKILL)
"""


@pytest.fixture
async def launcher() -> AsyncIterator[Rig]:
    async with rig(str(uuid.uuid4())) as made:
        yield made


async def bound(launcher: Rig, bounds: Bounds) -> None:
    """Have the launcher hold what it starts to this."""
    await launcher.client.base_env(BASE_ENV, launcher.shared_log, None, bounds)


def limits_of(launcher: Rig) -> str:
    """The launcher's own."""
    return Path(f"/proc/{launcher.client.pid}/limits").read_text()


def out(launcher: Rig, name: str) -> tuple[Path, dict[str, str]]:
    """A log, and the fields of a task that writes it."""
    path = launcher.directory / name
    return path, {"log": "file", "stdout": str(path)}


@pytest.mark.parametrize("command", ["exec yes", "yes; exit $?", "yes | cat; yes"])
async def test_an_endless_output_ends_at_the_bound_and_says_so(launcher: Rig, command: str) -> None:
    await bound(launcher, Bounds(file_bytes=MB))
    path, fields = out(launcher, "log")
    found = await launcher.run(launcher.task("j", command, **fields))
    assert path.stat().st_size == MB
    assert signal.SIGXFSZ in (found.signal, (found.exit or 0) - 128), found
    assert f"beyond {MB} bytes" in found.note
    fine = await launcher.run(launcher.task("next", "echo fine", **out(launcher, "other")[1]))
    assert (fine.exit, fine.note) == (0, "")


async def test_the_bounds_are_those_of_jobs_and_not_the_launchers(launcher: Rig) -> None:
    path, fields = out(launcher, "limits")
    before = limits_of(launcher)
    # Of an account that has more already, nothing could be started.
    many = len(os.listdir("/proc")) + 100_000
    await bound(launcher, Bounds(MB, many))
    found = await launcher.run(launcher.task("j", "cat /proc/self/limits", **fields))
    assert found.exit == 0, found
    said = {line[:26].strip(): line[26:].split()[0] for line in path.read_text().splitlines()[1:]}
    assert said["Max file size"] == str(MB)
    _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    assert said["Max processes"] == str(many if hard < 0 else min(many, hard))
    assert limits_of(launcher) == before
    await bound(launcher, Bounds())
    assert (
        await launcher.run(launcher.task("free", f"head -c {2 * MB} /dev/zero > big"))
    ).exit == 0
    assert (launcher.directory / "big").stat().st_size == 2 * MB


async def test_a_fork_bomb_stops_at_the_bound(launcher: Rig) -> None:
    bomb = launcher.directory / "bomb.py"
    bomb.write_text(BOMB)
    root = os.geteuid() == 0
    most = 40 if root else len(os.listdir("/proc")) + 300
    await bound(launcher, Bounds(processes=most))
    path, fields = out(launcher, "log")
    found = await launcher.run(launcher.task("j", f"{PYTHON} {bomb} {most + 400}", **fields))
    assert found.exit == 0, found
    assert path.read_text().startswith("no more"), path.read_text()
    assert int(path.read_text().split()[-1]) < most


async def test_the_sites_bound_reaches_its_jobs_and_is_named_at_their_end(
    shared_hub: RunningHub, tmp_path: Path
) -> None:
    hub = shared_hub
    site = RealSite(tmp_path / "site", hub.url, hub.token, hub.project, hub.ca_file or None)
    await site.register(f"paris-{new_id()}")
    try:
        pilot = await site.session({"file_bytes": MB})
        await pilot.start()
        spec = site.dir.spec("sh", text="exec yes", retries=Retries(max=0))
        (job,) = await site.submit([spec])
        view = await site.reaches_final(job)
        assert view.outcome is not None
        assert (view.outcome.reason, view.outcome.signal) == ("signal", signal.SIGXFSZ)
        assert f"beyond {MB} bytes" in view.outcome.message
    finally:
        await site.close()
