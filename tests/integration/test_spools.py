"""The agent's watcher of spool folders, against a stand-in for the Hub that keeps what it is sent."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest

from chappe.core.errors import Unavailable
from chappe.emit import chappe_emit as emit
from chappe.link import emitted
from chappe.link.http import HubClient
from chappe.site import spools
from chappe.site.inotify import Inotify
from chappe.site.paths import SitePaths
from chappe.site.spool_config import SpoolConfig
from chappe.site.spool_marks import Mark, Marks
from chappe.site.wakeup import Wakeups
from tests.integration.site_rig import Site, StubHub, stub_hub, wait_until

PATIENCE_S = 60.0


class Hub:
    """Takes messages, or does not."""

    def __init__(self) -> None:
        self.away = False
        self.bodies: list[bytes] = []

    async def request(self, method: str, path: str, body: bytes, **_: Any) -> None:
        assert (method, path) == ("POST", "/v1/messages")
        await asyncio.sleep(0)
        if self.away:
            raise Unavailable("away")
        self.bodies.append(body)

    @property
    def values(self) -> list[Any]:
        """The field `n` of all messages, in the order of their arrival."""
        return [json.loads(line)["n"] for body in self.bodies for line in body.splitlines()]


class Rig:
    """A Site's directory, and the watcher as a task."""

    def __init__(self, root: Path, **config: Any) -> None:
        self.paths = SitePaths.of(root)
        self.paths.outbox.mkdir(parents=True)
        self.hub = Hub()
        self.config = SpoolConfig(**{"scan_s": 0.1, **config})

    def emitter(self, folder: Path | None = None, **settings: str) -> emit.Emitter:
        """A producer like one in a Job."""
        given = {"spool": str(folder or self.paths.spool), "transports": "spool", **settings}
        return emit.Emitter(emit.Settings(**given))

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """The watcher, until the end of the block, which is like a kill."""
        wakeups = Wakeups()
        wakeups.online.set()
        hub = cast(HubClient, self.hub)
        task = asyncio.create_task(spools.Spools(self.paths, self.config, hub, wakeups).run())
        try:
            yield
            assert not task.done()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():  # noqa: ASYNC110 - files tell nobody
                await asyncio.sleep(0.01)

    def files(self, pattern: str = "*") -> list[Path]:
        return sorted(self.paths.spool.glob(pattern))


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    for name in [name for name in os.environ if name.startswith("CHAPPE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CHAPPE_EMIT_CONFIG", str(tmp_path / "none"))
    return Rig(tmp_path / "site")


async def test_messages_go_in_order_and_once(rig: Rig) -> None:
    emitter = rig.emitter()
    async with rig.running():
        for n in range(1200):
            emitter.message("log", n=n)
        await rig.until(lambda: len(rig.hub.values) >= 1200)
    assert rig.hub.values == list(range(1200))
    assert max(len(body.splitlines()) for body in rig.hub.bodies) <= spools.BATCH_MESSAGES


async def test_a_file_that_grows_while_it_is_read_is_read_once(rig: Rig) -> None:
    emitter = rig.emitter()

    def write() -> None:
        for n in range(5000):
            emitter.message("log", n=n)

    async with rig.running():
        await asyncio.to_thread(write)
        await rig.until(lambda: len(rig.hub.values) >= 5000)
    assert rig.hub.values == list(range(5000))


async def test_the_scan_alone_does(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Inotify, "watch", lambda self, directory: None)
    emitter = rig.emitter()
    async with rig.running():
        for n in range(3):
            emitter.message("log", n=n)
            await rig.until(lambda: len(rig.hub.values) > n)  # noqa: B023 - awaited here


async def test_the_kernel_wakes_it_at_once(tmp_path: Path, rig: Rig) -> None:
    rig = Rig(tmp_path / "slow", scan_s=60.0)
    async with rig.running():
        await rig.until(rig.paths.spool.exists)
        await asyncio.sleep(0.2)  # so that it waits; were it still looking, the test would pass too
        began = time.monotonic()
        rig.emitter().message("log", n=1)
        await rig.until(lambda: rig.hub.values == [1])
        assert time.monotonic() - began < 50


async def test_a_restart_goes_on_where_it_was(rig: Rig) -> None:
    emitter = rig.emitter()
    emitter.message("log", n=1)
    async with rig.running():
        await rig.until(lambda: rig.hub.values == [1])
        await rig.until(lambda: Marks(rig.paths.spool_marks).paths())
    emitter.message("log", n=2)
    async with rig.running():
        await rig.until(lambda: len(rig.hub.values) > 1)
    assert rig.hub.values == [1, 2]


async def test_while_the_hub_is_away_messages_wait(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spools, "FIRST_DELAY_S", 0.02)
    emitter = rig.emitter()
    rig.hub.away = True
    async with rig.running():
        for n in range(1000):
            emitter.message("log", n=n)
        await asyncio.sleep(0.2)
        assert rig.hub.values == []
        rig.hub.away = False
        await rig.until(lambda: len(rig.hub.values) >= 1000)
    assert rig.hub.values == list(range(1000))


@pytest.mark.parametrize("how", ["truncated", "replaced"])
async def test_a_file_that_is_another_one_is_read_from_its_beginning(rig: Rig, how: str) -> None:
    first, second = rig.emitter(), rig.emitter(rig.paths.root / "elsewhere")
    for n in (1, 2, 3):
        first.message("log", n=n)
    count = 1 if how == "truncated" else 9
    for n in range(10, 10 + count):
        second.message("log", n=n)
    (file,) = rig.files("*.spool")
    (other,) = (rig.paths.root / "elsewhere").glob("*.spool")
    async with rig.running():
        await rig.until(lambda: rig.hub.values == [1, 2, 3])
        await rig.until(lambda: Marks(rig.paths.spool_marks).paths())
        if how == "truncated":
            shutil.copy(other, file)  # the same file, with other contents
        else:
            other.rename(file)
        await rig.until(lambda: len(rig.hub.values) >= 3 + count)
    assert rig.hub.values == [1, 2, 3, *range(10, 10 + count)]


async def test_a_torn_end_waits_and_damage_is_passed_over(rig: Rig) -> None:
    emitter = rig.emitter()
    for n in (1, 2, 3):
        emitter.message("log", n=n)
    (file,) = rig.files("*.spool")
    lines = file.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b'"n":2', b'"n":7')
    file.write_bytes(b"".join(lines)[:-10])
    async with rig.running():
        await rig.until(lambda: rig.hub.values == [1])
        with file.open("ab") as whole:
            whole.write(lines[3][-10:])
        await rig.until(lambda: len(rig.hub.values) > 1)
    assert rig.hub.values == [1, 3]


async def test_a_file_that_is_no_spool_is_left_alone(rig: Rig) -> None:
    rig.paths.spool.mkdir(parents=True)
    (rig.paths.spool / "a.spool").write_text("something else\n" * 100)
    (rig.paths.spool / "b.spool").symlink_to("/etc/passwd")
    (rig.paths.spool / "c.spool").write_bytes(b"x" * 3_000_000)
    (rig.paths.spool / "d.spool").mkdir()
    emitter = rig.emitter()
    async with rig.running():
        emitter.message("log", n=1)
        await rig.until(lambda: rig.hub.values == [1])
    assert len(rig.files("[abcd].spool")) == 4


async def test_l17_what_a_killed_try_left_arrives_without_another(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A buffer of libIGCM, a killed try, was sent by the next one only."""
    monkeypatch.setattr(spools, "LATE_S", 0.2)
    code = "import chappe_emit as e, os\ne.message('log', n=1)\nos.kill(os.getpid(), 9)"
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", code],
        env={**os.environ, "CHAPPE_EMIT_SPOOL": str(rig.paths.spool)},
        cwd=Path(emit.__file__).parent,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    async with rig.running():
        await rig.until(lambda: rig.hub.values == [1])
        await rig.until(lambda: not rig.files())  # the orphan is removed, when it is drained


@pytest.mark.parametrize("archive", ["", "archive"])
async def test_what_is_done_with_is_removed_or_kept(
    tmp_path: Path, rig: Rig, monkeypatch: pytest.MonkeyPatch, archive: str
) -> None:
    monkeypatch.setattr(spools, "LATE_S", 0.2)
    rig = Rig(tmp_path / "other", archive=archive)
    emitter, open_one = rig.emitter(), rig.emitter()
    async with rig.running():
        emitter.message("log", n=1)
        open_one.message("log", n=2)
        emitter.close()
        await rig.until(lambda: len(rig.hub.values) == 2)
        await rig.until(lambda: len(rig.files()) == 1)
    (left,) = rig.files()
    header = emitted.read_header(str(left))
    assert header is not None
    assert header.stream == open_one._spool.stream
    assert len(list((rig.paths.root / "archive").glob("*"))) == bool(archive)


async def test_a_writer_that_is_late_loses_nothing(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spools, "LATE_S", 0.5)
    emitter = rig.emitter()
    emitter.message("log", n=1)
    with rig.files("*.spool")[0].open("ab") as late:
        spool = emitter._spool
        emitter.close()
        async with rig.running():
            await rig.until(lambda: rig.files(f"*{spools.DRAINED}"))
            message = json.dumps({"n": 2}).encode()
            late.write(hashlib.sha256(message).hexdigest().encode() + b" " + message + b"\n")
            late.flush()
            await rig.until(lambda: 2 in rig.hub.values)
    assert rig.hub.values == [1, 1, 2]  # the hub knows the first by its id
    assert spool.seq == 1


async def test_a_writer_that_sends_by_itself_is_left_to_do_so(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    emitter = rig.emitter(transports="https", url="https://127.0.0.1:9", limit_s="0.1")
    other = rig.emitter()
    emitter.message("log", n=1)
    emitter.message("log", n=2)
    (file,) = rig.files("*.spool")
    first = file.read_bytes().split(b"\n")
    emit.confirm(str(file), len(first[0]) + len(first[1]) + 2)
    async with rig.running():
        other.message("log", n=3)
        await rig.until(lambda: rig.hub.values == [3])
        monkeypatch.setattr(spools, "DIRECT_S", 0.0)
        await rig.until(lambda: len(rig.hub.values) > 1)
    assert rig.hub.values == [3, 2]
    emitter.close()


async def test_more_folders_may_be_named(
    tmp_path: Path, rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path / "many", folders=["data/*/mine", str(tmp_path / "far")])
    monkeypatch.setenv("CHAPPE_SPOOL", str(tmp_path / "env"))
    emitters = [
        rig.emitter(folder)
        for folder in (rig.paths.data / "run/mine", tmp_path / "far", tmp_path / "env")
    ]
    for n, emitter in enumerate(emitters):
        emitter.message("log", n=n)
    async with rig.running():
        await rig.until(lambda: sorted(rig.hub.values) == [0, 1, 2])


def test_marks_survive_damage_and_stay_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chappe.site.spool_marks._REWRITE_BYTES", 2000)
    path = tmp_path / "marks"
    marks = Marks(path)
    for n in range(1000):
        marks.put([Mark("a", n, "x"), Mark("gone", n, "x"), Mark("gone", -1, "")])
    marks.close()
    assert path.stat().st_size < 10_000
    data = bytearray(path.read_bytes())
    again = Marks(path)
    assert (again.get("a").offset, again.paths()) == (999, {"a"})
    again.close()
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    damaged = Marks(path)
    assert damaged.get("b") == Mark("b", 0, "")
    damaged.close()


class _Taking(StubHub):
    """A stand-in that takes messages."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[int] = []

    def answer(self, method: str, path: str, body: bytes) -> object:
        if path == "/v1/messages":
            self.taken += [json.loads(line)["n"] for line in body.splitlines()]
            return None
        return super().answer(method, path, body)


@pytest.fixture
def taking(monkeypatch: pytest.MonkeyPatch) -> Generator[_Taking]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.integration.site_rig.StubHub", _Taking)
        with stub_hub() as hub:
            assert isinstance(hub, _Taking)
            yield hub


def _more_than(hub: _Taking, count: int) -> bool:
    return len(set(hub.taken)) > count


def test_the_agent_loses_nothing_when_it_is_killed(tmp_path: Path, taking: _Taking) -> None:
    site = Site(tmp_path / "site", taking, "exit 0\n")
    settings = emit.Settings(spool=str(site.paths.spool), transports="spool")
    emitter = emit.Emitter(settings)
    for round in range(3):
        agent = site.agent()
        try:
            for n in range(round * 100, round * 100 + 100):
                emitter.message("log", n=n)
            wait_until(partial(_more_than, taking, round * 100), "a message arrives")
        finally:
            agent.kill()
            agent.wait()
    agent = site.agent()
    try:
        wait_until(lambda: len(set(taking.taken)) == 300, "all messages arrive")
    finally:
        agent.terminate()
        agent.wait()
        site.clean()
    first_seen = list(dict.fromkeys(taking.taken))
    assert first_seen == list(range(300))
