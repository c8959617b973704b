"""What a simulation told is at the Hub, or shows as missing: a Hub and producers as real processes.

L14 and L17 are holes of the system before this one.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from chappe.emit import chappe_emit as emit
from chappe.link import emitted
from chappe.sdk.messages import Messages
from chappe.site.paths import SitePaths
from chappe.site.spool_config import SpoolConfig
from chappe.site.spools import Spools
from chappe.site.wakeup import Wakeups
from chappe.testing.hub import RunningHub, start_hub
from tests.integration.hub_rig import World, world

WITHIN_S = 90.0


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No producer's settings but those of the test."""
    for name in [name for name in os.environ if name.startswith("CHAPPE_EMIT")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CHAPPE_EMIT_CONFIG", str(tmp_path / "none"))


@pytest.fixture
def hub(tmp_path: Path, alone: None) -> Generator[RunningHub]:
    with start_hub(tmp_path / "hub") as running:
        yield running


@asynccontextmanager
async def watching(site: World, paths: SitePaths) -> AsyncGenerator[None]:
    """The agent's watcher of spools, until the end of the block."""
    wakeups = Wakeups()
    wakeups.online.set()
    watcher = Spools(paths, SpoolConfig(scan_s=0.1), site.site, wakeups)
    task = asyncio.create_task(watcher.run())
    try:
        yield
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def count(messages: Messages, wanted: int) -> None:
    """Wait until the journal has so many messages, and see that it has no more."""
    async with asyncio.timeout(WITHIN_S):
        while (await messages.stats()).messages < wanted:  # noqa: ASYNC110 - it is far away
            await asyncio.sleep(0.05)
    assert (await messages.stats()).messages == wanted


def places(tmp_path: Path) -> SitePaths:
    paths = SitePaths.of(tmp_path / "site")
    paths.outbox.mkdir(parents=True)
    return paths


async def test_l14_a_message_that_is_missing_shows(hub: RunningHub, tmp_path: Path) -> None:
    """Nobody could know that a message was missing."""
    paths = places(tmp_path)
    emitter = emit.Emitter(emit.Settings(spool=str(paths.spool), transports="spool"))
    emitter.message("simulation.started", "sim", name="one")
    for n in range(8):
        emitter.message("metric", "sim", name="energy", value=n, step=n)
    emitter.close()
    (file,) = paths.spool.glob("*.spool")
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*lines[:5], *lines[6:]]))
    async with world(hub) as site, watching(site, paths):
        messages = Messages(site.user)
        await count(messages, 8)
        ((stream,), unnumbered) = await messages.streams("sim")
        assert unnumbered == 0
        assert (stream.sent, stream.received, stream.gaps) == (9, 8, [(5, 5)])
        assert not stream.whole
        lost = emit.whole(lines[5])
        assert lost is not None
        await messages.send([lost])
        ((stream,), _) = await messages.streams("sim")
        assert stream.whole


async def test_l17_what_a_killed_try_left_arrives_without_the_next(
    hub: RunningHub, tmp_path: Path
) -> None:
    """The buffer of a killed try was sent by the next try only."""
    paths = places(tmp_path)
    code = """
import os, signal, sys
import chappe_emit as emit
with emit.simulation("sim", "job", name="killed"):
    for n in range(100):
        emit.metric("energy", n, step=n)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", code],
        cwd=Path(emit.__file__).parent,
        env={**os.environ, "CHAPPE_EMIT_SPOOL": str(paths.spool)},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    (file,) = paths.spool.glob("*.spool")
    header = emitted.read_header(str(file))
    assert header is not None
    assert emitted.writer_is_gone(header)
    async with world(hub) as site, watching(site, paths):
        messages = Messages(site.user)
        await count(messages, 101)
        ((stream,), _) = await messages.streams("sim")
        assert stream.whole
        assert stream.stream == header.stream


async def test_what_https_could_not_send_comes_by_the_agent_and_counts_once(
    hub: RunningHub, tmp_path: Path
) -> None:
    paths = places(tmp_path)
    token = tmp_path / "token"
    token.write_text(hub.token)
    given = {
        "url": hub.url,
        "token_file": str(token),
        "ca_file": str(hub.ca_file),
        "spool": str(paths.spool),
    }
    good = emit.Emitter(emit.Settings(**given, limit_s="60"))
    bad = emit.Emitter(emit.Settings(**{**given, "url": "https://127.0.0.1:9"}, limit_s="0.3"))
    for n in range(20):
        for emitter, uid in ((good, "good"), (bad, "bad")):
            emitter.message("metric", uid, name="energy", value=n, step=n)
    await asyncio.to_thread(good.close)
    await asyncio.to_thread(bad.close)
    (left,) = paths.spool.glob("*.spool")
    raws = emitted.read(str(left), 0).messages
    async with world(hub) as site, watching(site, paths):
        messages = Messages(site.user)
        await count(messages, 40)
        streams, _ = await messages.streams()
        assert [s.sent for s in streams] == [20, 20]
        assert all(s.whole for s in streams)
        stats = await messages.stats()
        assert sorted((s.door, s.stored) for s in stats.sources) == [("https", 20), ("spool", 20)]
        # Once more by another way: the same bytes are the same message.
        await messages.send(raws)
        assert (await messages.stats()).messages == 40
