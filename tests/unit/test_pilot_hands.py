"""What a head that is started again waits for: nodes that may have Jobs, and no others."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from chappe.link.clock import new_id
from chappe.pilot import hand_wire
from chappe.pilot import hands as hands_module
from chappe.pilot.hand_wire import Hello
from chappe.pilot.hands import Hands
from chappe.pilot.hosts import Emulated
from chappe.pilot.keeper import place_file
from chappe.pilot.launch_wire import Events, Snapshot
from chappe.pilot.log import open_log
from chappe.pilot.session import Options, Session


class Nobody:
    """Hears nothing that matters here."""

    def joined(self, hello: Hello, snapshot: Snapshot, *, same: bool) -> None: ...

    def heard(self, node: str, events: Events) -> None: ...

    def cut(self, node: str) -> None: ...

    def lost(self, node: str, cause: str) -> None: ...


@asynccontextmanager
async def opened(directory: Path) -> AsyncIterator[Hands]:
    """The hands' head, started again, to the end of the block."""
    ident = new_id()
    options = Options(head_grace_s=600.0)
    session = Session(ident, "p", "s", "paris", "https://hub", str(directory), options=options)
    log, file = open_log(directory / "log", ident)
    hands = Hands(session, directory, Emulated(ident, 3), Nobody(), log, file)
    try:
        await hands.open(again=True)
        yield hands
    finally:
        hands.leave()
        file.close()


async def test_nodes_without_a_launcher_are_not_waited_for(tmp_path: Path) -> None:
    async with opened(tmp_path) as hands, asyncio.timeout(30):
        await hands.all_known()


async def test_a_node_with_a_launcher_is(tmp_path: Path) -> None:
    place_file(tmp_path, "n2").touch()
    async with opened(tmp_path) as hands:
        waiting = asyncio.create_task(hands.all_known())
        done, _ = await asyncio.wait([waiting], timeout=0.1)
        assert not done
        waiting.cancel()
        assert hands.missing() == {"n2"}


async def test_a_node_that_stays_away_is_not_waited_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hands_module, "KNOWN_S", 0.05)
    place_file(tmp_path, "n2").touch()
    async with opened(tmp_path) as hands, asyncio.timeout(30):
        await hands.all_known()
        assert hands.missing() == {"n2"}


async def test_the_certificate_is_made_once_and_is_private(tmp_path: Path) -> None:
    key, cert = tmp_path / hand_wire.KEY, tmp_path / hand_wire.CERT
    async with opened(tmp_path):
        before = key.read_bytes(), cert.read_bytes()
    assert stat.S_IMODE(key.stat().st_mode) == stat.S_IMODE(cert.stat().st_mode) == 0o600
    async with opened(tmp_path):
        assert (key.read_bytes(), cert.read_bytes()) == before
