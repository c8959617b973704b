"""Start, stop and look at the agent of a Site's directory: what `chappe site start|stop|status` do."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import msgspec

from chappe.core.errors import ChappeError, Conflict, Unavailable
from chappe.link.clock import boottime
from chappe.site import status as agent_status
from chappe.site.agent import read_token
from chappe.site.calls import read_record
from chappe.site.config import load
from chappe.site.paths import SitePaths
from chappe.site.process import FirstLine
from chappe.site.status import AgentRunning, AgentStatus, Presence

START_S = 120.0
STOP_S = 20.0
_OUT = "agent.out"


class StartFailed(ChappeError):
    """The agent did not start; the message is the agent's own, or names its log."""

    default_code = "start_failed"


def start(directory: Path | str, foreground: bool = False) -> AgentStatus:
    """Start the agent and return when it works (with or without the Hub).

    With `foreground` this process waits for its end instead, and passes signals on. Raises StartFailed,
    SiteProblem, AgentRunning.
    """
    paths = SitePaths.of(Path(directory))
    # Said here, where it is seen at once; the agent checks again.
    load(paths.root)
    read_token(paths)
    agent_status.refuse_second(paths.pid_file, agent_status.read(paths.pid_file))
    paths.logs.mkdir(exist_ok=True)
    read_end, write_end = os.pipe()
    argv = [sys.executable, "-P", "-m", "chappe.site", "--dir", str(paths.root)]
    argv += ["--ready-fd", str(write_end), *(["--log-stderr"] if foreground else [])]
    try:
        with open(paths.logs / _OUT, "wb", opener=_private) as out:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=None if foreground else out,
                stderr=None if foreground else out,
                start_new_session=not foreground,
                pass_fds=(write_end,),
                cwd=paths.root,
            )
    finally:
        os.close(write_end)
    try:
        first = _first_line(read_end, paths)
    finally:
        os.close(read_end)
    if not first.ready:
        process.wait()
        raise StartFailed(first.message, code=first.code or None)
    if foreground:
        _wait(process)
    else:
        # It outlives us; without this, Popen would warn that nobody waits for it.
        process.returncode = 0
    return status(directory)


def start_if_needed(directory: Path | str, foreground: bool = False) -> AgentStatus:
    """As `start`, but no error when an agent runs already, here or where the Hub heard it."""
    try:
        return start(directory, foreground)
    except ChappeError as error:
        if error.code != AgentRunning.default_code:
            raise
        found = status(directory)
        return msgspec.structs.replace(found, message=error.message)


def stop(directory: Path | str) -> AgentStatus:
    """End the agent (TERM) and wait for its end. Pilots go on. Raises Conflict, Unavailable."""
    paths = SitePaths.of(Path(directory))
    found = agent_status.read(paths.pid_file)
    if found is not None and found.presence is Presence.ELSEWHERE:
        raise Conflict(f"the agent was started on {found.host}: stop it there")
    if found is not None and found.presence is Presence.RUNNING:
        with suppress(ProcessLookupError):
            _terminate(found)
    return status(directory)


def status(directory: Path | str) -> AgentStatus:
    """What is known of the agent of `directory`."""
    paths = SitePaths.of(Path(directory))
    found = agent_status.describe(paths.root, agent_status.read(paths.pid_file))
    return msgspec.structs.replace(found, calls=read_record(paths.calls))


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _terminate(found: agent_status.PidFile) -> None:
    """TERM to exactly this process, and wait. Raises ProcessLookupError when it is gone, Unavailable."""
    fd = os.pidfd_open(found.pid)
    try:
        if agent_status.started(found.pid) != found.start:
            return
        signal.pidfd_send_signal(fd, signal.SIGTERM)
        if not select.select([fd], [], [], STOP_S)[0]:
            raise Unavailable(
                f"the agent (process {found.pid}) does not end; `kill -9 {found.pid}` is safe, "
                "the next one goes on where it left off"
            )
    finally:
        os.close(fd)


def _first_line(fd: int, paths: SitePaths) -> FirstLine:
    """What the new agent says of itself; its end without a word is an answer, too."""
    deadline = boottime() + START_S
    data = b""
    while not data.endswith(b"\n"):
        if not select.select([fd], [], [], max(0.0, deadline - boottime()))[0]:
            return FirstLine(False, message=f"the agent is not ready after {START_S:g} s")
        part = os.read(fd, 65536)
        if not part:
            return FirstLine(False, message=f"the agent died at its start: {_last_words(paths)}")
        data += part
    return msgspec.json.decode(data, type=FirstLine)


def _last_words(paths: SitePaths) -> str:
    """What a dying interpreter printed."""
    with suppress(FileNotFoundError):
        return (paths.logs / _OUT).read_text(errors="replace").strip()[-2000:]
    return "see logs/"


def _wait(process: subprocess.Popen[bytes]) -> None:
    """Wait for the agent's end. Signals of the terminal reach it as well; TERM to us is passed on."""
    previous = {
        signum: signal.signal(signum, lambda number, _: process.send_signal(number))
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    }
    try:
        code = process.wait()
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
    if code != 0:
        raise StartFailed(f"the agent ended with {code}; its log says why")
