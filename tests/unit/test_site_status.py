"""The pid file: what it proves about the last agent, and what it does not."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from chappe.link.clock import new_id
from chappe.site import status
from chappe.site.status import AgentRunning, PidFile, Presence


@pytest.fixture
def mine(tmp_path: Path) -> PidFile:
    return status.write(tmp_path / "agent.json", new_id())


def changed(pid_file: PidFile, **fields: object) -> PidFile:
    return msgspec.structs.replace(pid_file, **fields)


def test_this_process_is_seen_running(mine: PidFile) -> None:
    assert mine.presence is Presence.RUNNING
    assert not mine.proven_over


def test_another_process_of_the_same_number_is_not_the_agent(mine: PidFile) -> None:
    other = changed(mine, start=mine.start - 1)
    assert other.presence is Presence.CRASHED
    assert other.proven_over


def test_after_a_restart_of_the_machine_the_agent_is_gone_but_that_proves_nothing(
    mine: PidFile,
) -> None:
    # Two machines may have one name: only the same boot is the same machine for certain.
    other = changed(mine, boot="another")
    assert other.presence is Presence.CRASHED
    assert not other.proven_over


def test_on_another_machine_nothing_is_known(mine: PidFile) -> None:
    other = changed(mine, host="elsewhere")
    assert other.presence is Presence.ELSEWHERE
    assert not other.proven_over


def test_an_orderly_end_is_proof_from_anywhere(mine: PidFile) -> None:
    other = changed(mine, host="elsewhere", stopped_at=1.0)
    assert other.presence is Presence.STOPPED
    assert other.proven_over


def test_a_second_agent_is_refused_and_told_where_the_first_is(tmp_path: Path) -> None:
    path = tmp_path / "agent.json"
    status.write(path, new_id())
    with pytest.raises(AgentRunning, match=f"process {os.getpid()} on {status.hostname()}"):
        status.refuse_second(path, status.read(path))


def test_only_the_agent_itself_writes_its_end_down(tmp_path: Path) -> None:
    path = tmp_path / "agent.json"
    first = status.write(path, new_id())
    second = status.write(path, new_id())
    status.mark_stopped(path, first)
    assert status.read(path) == second
    status.mark_stopped(path, second)
    found = status.read(path)
    assert found is not None
    assert found.presence is Presence.STOPPED


@pytest.mark.parametrize("content", [b"", b"{", b'{"pid": 3}'])
def test_a_damaged_file_proves_nothing(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "agent.json"
    path.write_bytes(content)
    assert status.read(path) is None


def test_those_before_an_agent_that_is_over_are_over_as_well(mine: PidFile) -> None:
    older = tuple(new_id() for _ in range(status.BEFORE_MOST))
    gone = changed(mine, start=mine.start - 1, before=older)
    starting = changed(gone, agent=new_id())
    assert status.over(None) == ()
    assert status.over(mine, None) == (), "it runs"
    assert status.over(gone, gone) == (mine.agent, *older)[: status.BEFORE_MOST], "each once"
    assert status.over(starting, gone)[-1] != older[-1], "and not for ever more"
