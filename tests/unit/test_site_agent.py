"""Small parts of the agent: supervision, tokens, the processes it watches."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from chappe.core.errors import Unavailable
from chappe.site import agent
from chappe.site.agent import AgentBroken, TokenProblem, read_token, supervise
from chappe.site.hubloop import Superseded
from chappe.site.paths import SitePaths
from chappe.site.wakeup import wait_for
from chappe.site.watch import ProcessHints


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr("chappe.site.agent.asyncio.sleep", sleep)
    return pauses


async def test_a_loop_that_keeps_failing_ends_the_agent_with_a_reason(
    no_pauses: list[float],
) -> None:
    runs = 0

    async def loop() -> None:
        nonlocal runs
        runs += 1
        raise ValueError("a bug")

    with pytest.raises(AgentBroken, match=r"status loop failed 3 times.*a bug"):
        await supervise("status", loop)
    assert runs == 3
    assert no_pauses == [1.0, 2.0]


async def test_what_may_pass_never_ends_the_agent(no_pauses: list[float]) -> None:
    errors = [Unavailable("hub away"), OSError(28, "disk full")] * 4

    async def loop() -> None:
        if errors:
            raise errors.pop()

    await supervise("reports", loop)
    assert errors == []
    assert max(no_pauses) <= agent.MOST_DELAY_S


async def test_a_superseded_agent_ends_at_once(no_pauses: list[float]) -> None:
    async def loop() -> None:
        raise Superseded("another")

    with pytest.raises(Superseded):
        await supervise("orders", loop)
    assert no_pauses == []


def test_a_token_that_others_may_read_is_not_used(tmp_path: Path) -> None:
    paths = SitePaths.of(tmp_path)
    paths.secrets.mkdir()
    paths.token.write_text("chp_s_x_y\n")
    paths.token.chmod(0o640)
    with pytest.raises(TokenProblem, match="chmod 600"):
        read_token(paths)
    paths.token.chmod(0o600)
    assert read_token(paths) == "chp_s_x_y"


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends when its stdin does."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.wait()


async def test_the_end_of_a_watched_process_wakes_once(child: subprocess.Popen[bytes]) -> None:
    event = asyncio.Event()
    hints = ProcessHints(event)
    hints.set({child.pid})
    assert not event.is_set()
    assert child.stdin is not None
    child.stdin.close()
    assert await wait_for(event, 30.0)
    await asyncio.sleep(0)
    assert not event.is_set(), "the ended process is not watched any more"
    child.wait()
    hints.set({child.pid})
    assert event.is_set(), "a process that is gone already is news at once"
    hints.set(set())


def test_the_agent_loads_neither_the_console_nor_the_hub() -> None:
    """Its memory is small because of what it does not import."""
    code = (
        "import sys; sys.argv = ['x', '--help']\n"
        "try:\n import chappe.site.__main__\nexcept SystemExit: pass\n"
        "bad = {'rich.console', 'click', 'sqlalchemy', 'fastapi', 'chappe.pilot', 'chappe.store'}\n"
        "print(sorted(bad & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout.splitlines()[-1] == "[]"
