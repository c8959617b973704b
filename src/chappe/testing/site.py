"""A real Site for tests: its agent, and the pilots, launchers and Jobs that this starts, all mortal.

The agent is our child. What it starts is found as Chappe itself finds it, by the Session's mark in /proc; so
nothing but this Site's processes is ever touched, and nothing is left behind by `close`.
"""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from chappe.link import journal
from chappe.link.faults import arm_from_env
from chappe.pilot.procs import find_marked, kill_marked, of_a_job, signal_marked
from chappe.site.init import HubAccess, init_site
from chappe.site.paths import SitePaths
from chappe.testing.history import TRACER

START_WITHIN_S = 60.0
STOP_WITHIN_S = 30.0

APP = """\
name = "{name}"
version = "1"
shell = '''{shell}'''
env = {{ TRACE = {trace}, BEATS = "{beats}", BEAT_S = "{beat_s}", GATE = "" }}
allow_env = ["BEATS", "BEAT_S", "GATE"]
[files]
log = "none"
{files}
"""
#: App → its shell text and its `[files]`.
APPS = {
    "trace": (TRACER, "own_directory = false"),
    "trace-result": (TRACER + 'echo "[$CHAPPE_ATTEMPT]" > "$CHAPPE_RESULT"\n', 'result = "r.json"'),
}


class SiteFailed(AssertionError):
    """The agent did not start; the message says what it said."""


def crash_at(point: str, nth: int, once: Path) -> dict[str, str]:
    """The environment that makes a process kill itself when it reaches `point` for the nth time.

    The file `once` then exists, which disarms what is started with the same environment later.
    """
    environ = {"CHAPPE_CRASH_AT": f"{point}:{nth}", "CHAPPE_CRASH_ONCE": str(once)}
    arm_from_env({**environ, "CHAPPE_CRASH_AT": ""})
    return environ


def configure(path: Path, section: str, **settings: Any) -> None:
    """Set keys of the site.toml at `path` that its template shows as comments. Raises SiteFailed."""
    head, mark, body = path.read_text().partition(f"[{section}]\n")
    for key, value in settings.items():
        line = f"{key} = {_toml(value)}"
        escaped = line.replace("\\", r"\\")
        body, found = re.subn(rf"(?m)^(# )?{key} = .*$", escaped, body, count=1)
        if not found:
            raise SiteFailed(f"site.toml has no [{section}] {key}")
    path.write_text(head + mark + body)


class RunningSite:
    """A Site in `root` with Apps that trace their runs into `traces` (see `testing.history`).

    A Job that does not say for how long it lives does so for `beats` beats of `beat_s` seconds. `pilot`
    are settings of `[pilot]` in site.toml. `environ` is added to the environment of every agent from the next
    start on, and is inherited by all that it starts.
    """

    def __init__(
        self,
        root: Path,
        access: HubAccess,
        public_key: str,
        traces: Path,
        *,
        beats: int = 1,
        beat_s: float = 0.01,
        **pilot: Any,
    ) -> None:
        self.name = root.name
        self.root = root
        self.paths = SitePaths.of(root)
        self.traces = traces
        traces.mkdir(exist_ok=True)
        self.environ: dict[str, str] = {}
        self.wanted = False
        """Whether there should be an agent: see `Cluster.tend`."""
        self._agent: subprocess.Popen[bytes] | None = None
        made = init_site(root, self.name, access, public_key)
        self.id = made.id
        (self.paths.apps / "hello.toml").unlink()
        for name, (shell, files) in APPS.items():
            text = APP.format(
                name=name,
                shell=shell,
                trace=_toml(str(traces)),
                beats=beats,
                beat_s=beat_s,
                files=files,
            )
            (self.paths.apps / f"{name}.toml").write_text(text)
        (root / "tmp").mkdir(mode=0o700)
        defaults = {"slots": 4, "kill_s": 5.0, "drain_s": 5.0, "node_local": str(root / "tmp")}
        self.configure("pilot", **{**defaults, **pilot})
        self.configure("scheduler", status_interval_s=1.0)

    def configure(self, section: str, **settings: Any) -> None:
        """Set keys of site.toml that its template shows as comments; agents read them at their start."""
        configure(self.paths.config, section, **settings)

    # --- the agent

    def start(self) -> None:
        """Start an agent, and return when it says that it works. Raises SiteFailed."""
        read_end, write_end = os.pipe()
        argv = [sys.executable, "-P", "-m", "chappe.site", "--dir", str(self.root)]
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("CHAPPE_")}
        try:
            with (self.paths.logs / "agent.out").open("ab") as out:
                self._agent = subprocess.Popen(
                    [*argv, "--ready-fd", str(write_end)],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    env={**inherited, **self.environ},
                    pass_fds=(write_end,),
                    cwd=self.root,
                    start_new_session=True,
                )
        finally:
            os.close(write_end)
        self.wanted = True
        try:
            self._await_ready(read_end)
        finally:
            os.close(read_end)

    def _await_ready(self, fd: int) -> None:
        line, deadline = b"", time.monotonic() + START_WITHIN_S
        while not line.endswith(b"\n"):
            left_s = max(0.0, deadline - time.monotonic())
            part = os.read(fd, 65536) if select.select([fd], [], [], left_s)[0] else b""
            if not part:
                break
            line += part
        if b'"ready":true' not in line and not self._crashed():
            raise SiteFailed(
                f"the agent of {self.name} did not start: {line.decode()}{self.tail()}"
            )

    def _crashed(self) -> bool:
        """Whether the agent ended at a crash point."""
        assert self._agent is not None  # noqa: S101 - start() made it
        with suppress(subprocess.TimeoutExpired):
            return self._agent.wait(STOP_WITHIN_S) == -signal.SIGKILL
        return False

    @property
    def agent_up(self) -> bool:
        """Whether the agent lives. One that ended is reaped."""
        return self._agent is not None and self._agent.poll() is None

    def stop(self) -> None:
        """End the agent in peace; pilots go on. Harmless when there is none."""
        self._end(signal.SIGTERM)

    def kill_agent(self) -> bool:
        """Kill the agent, and nothing else; whether it lived."""
        return self._end(signal.SIGKILL)

    def _end(self, signum: signal.Signals) -> bool:
        if self._agent is None or self._agent.poll() is not None:
            return False
        self._agent.send_signal(signum)
        self._agent.wait(STOP_WITHIN_S)
        return True

    # --- allocations

    def sessions(self) -> list[str]:
        """The Sessions that this Site ever had, oldest first."""
        return sorted(path.name for path in self.paths.sessions.iterdir())

    def written_ends(self) -> int:
        """How many ends the first session's journal holds that the hub has given no verdict on."""
        path = self.paths.session(self.sessions()[0]) / journal.FILE
        return len(journal.read(path)[0].ends) if path.exists() else 0

    def pilots(self) -> list[int]:
        """The pids of the pilots."""
        return self._pids("chappe.pilot")

    def launchers(self) -> list[int]:
        """The pids of the launchers."""
        return self._pids("chappe.pilot.launcher")

    def hands(self) -> list[int]:
        """The pids of the hands, on the further nodes of allocations."""
        return self._pids("chappe.pilot.hand")

    def jobs(self) -> list[int]:
        """The pids of the processes of Jobs."""
        return [p.pid for session in self.sessions() for p in find_marked(session) if of_a_job(p)]

    def signal(self, pids: list[int], signum: signal.Signals = signal.SIGKILL) -> bool:
        """Signal these, as long as they are there; whether any was."""
        reached = False
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signum)
                reached = True
        return reached

    def kill_allocations(self) -> bool:
        """Kill all that runs in allocations, as a node that dies does: first what could notice; whether
        there was anything."""
        killed: list[int] = []
        for session in self.sessions():
            killed += signal_marked(session, lambda p: not of_a_job(p), signal.SIGKILL)
            killed += kill_marked(session, lambda _: True)
        return bool(killed)

    def _pids(self, module: str) -> list[int]:
        """Processes of the Sessions that were started as `python -m MODULE`."""
        found = {}
        for session in self.sessions():
            for process in find_marked(session):
                with suppress(OSError):
                    words = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")
                    if module.encode() in words:
                        found[process.pid] = _parent(process.pid)
        # Between vfork and exec a child looks like its parent.
        return [pid for pid, parent in found.items() if parent not in found]

    # --- what is left of it

    def log(self, name: str = "pilot.log") -> list[dict[str, Any]]:
        """What the pilots of all Sessions logged (or the launchers, in the same file), in order."""
        lines: list[dict[str, Any]] = []
        for session in self.sessions():
            with suppress(FileNotFoundError):
                for line in (self.paths.session(session) / name).read_bytes().splitlines():
                    with suppress(msgspec.DecodeError):
                        lines.append(msgspec.json.decode(line))
        return lines

    def logged(self, event: str) -> list[dict[str, Any]]:
        """The lines of the pilots' logs about one thing."""
        return [line for line in self.log() if line.get("event") == event]

    def tail(self, lines: int = 25) -> str:
        """The ends of all logs, for the message of a failed test."""
        logs = [self.paths.logs / "agent.log", self.paths.logs / "agent.out"]
        for session in self.sessions():
            logs += [self.paths.session(session) / name for name in ("pilot.log", "pilot.out")]
        return "\n".join(
            f"--- {path}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
            for path in logs
            if path.exists()
        )

    def close(self) -> None:
        """End everything of this Site."""
        self.wanted = False
        # In peace first: so it does not leave a command of its scheduler behind.
        with suppress(subprocess.TimeoutExpired):
            self.stop()
        self.kill_agent()
        # A batch script that was just submitted is seen by its mark only when its guard exists.
        while self.kill_allocations():
            continue


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])


def _toml(value: object) -> str:
    """A text, a number or a flat table in TOML."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{k} = {_toml(v)}" for k, v in value.items()) + " }"
    return msgspec.json.encode(value).decode()
