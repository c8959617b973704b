"""A Site as its user makes it: `chappe site init`, Apps, `chappe site start`; the agent brings the pilot."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec

import chappe
from benchmarks.processes import children_cpu_s, command_of, cpu_s, kill_all, marked, pss_bytes
from benchmarks.rig import HubProcess
from chappe.site.status import AgentStatus
from chappe.wire.sites import SessionView

NAME = "bench"
SLOTS = 2
_WITHIN_S = 60.0

_SHARED = '[files]\nown_directory = false\nlog = "shared"\n'
APPS = {
    # The lean profile: a directory and a log that all Jobs share.
    "lean": f'command = ["/bin/true"]\n{_SHARED}',
    # The full profile: a directory, two files and a result for each Job. dash writes the result.
    "full": 'command = ["/bin/sh", "-c", "echo 1 >result.json"]\n'
    '[files]\nown_directory = true\nlog = "file"\nseparate_stderr = true\nresult = "result.json"\n',
    # Writes a line into a pipe that we read: the job's own first act.
    "ping": f'command = ["/bin/sh", "-c", "echo >$CHAPPE_DATA/pipe"]\n{_SHARED}',
    "hold": f'command = ["/bin/sleep", "600"]\n{_SHARED}',
}


class Pids(NamedTuple):
    """The processes of one Session that are no Jobs. `shell` is the batch script's."""

    pilot: int
    launcher: int
    shell: list[int]


class Site:
    """A Site with one pilot of two slots. After `start`, stop it with `stop`, whatever happened."""

    def __init__(
        self, hub: HubProcess, directory: Path, client: chappe.Client, functions: str
    ) -> None:
        self.directory = directory
        self._functions = functions
        self._client = client
        self._environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("CHAPPE_")},
            "CHAPPE_CONFIG": str(hub.running.client_config),
            "CHAPPE_KEY": str(hub.key_file),
        }
        self.agent, self.session, self.pids = 0, "", Pids(0, 0, [])

    def start(self) -> None:
        """Make the Site, and return when its pilot offers its slots."""
        directory = self.directory
        self._chappe("site", "init", str(directory), "--name", NAME)
        for name, text in APPS.items():
            (directory / "apps" / f"{name}.toml").write_text(
                f'name = "{name}"\nversion = "1"\n{text}'
            )
        config = directory / "site.toml"
        text = config.read_text().replace("# slots = 0", f"slots = {SLOTS}")
        if self._functions:
            text = text.replace("# allowed = false", "allowed = true") + self._functions
        config.write_text(text)
        status = self._chappe("site", "start", str(directory), "--json")
        self.agent = msgspec.json.decode(status, type=AgentStatus).pid
        self.session = self._wait_live().id
        self.pids = self._find()

    def app(self, name: str) -> chappe.App:
        """One of the Apps; its Jobs share a directory, except in the full profile."""
        found = self._client.app(name, site=NAME)
        return found if name == "full" else found.options(workdir="shared")

    def held(self) -> int:
        """How many Jobs the pilot holds, as the Hub knows it."""
        return self._view().held

    def cpu_s(self) -> float:
        """CPU of agent, pilot, launcher, batch script and all Jobs that have ended."""
        own = sum(cpu_s(pid) for pid in (self.agent, *self.pids.shell, *self.pids[:2]))
        return own + children_cpu_s(self.pids.launcher)

    def pilot_pss_bytes(self) -> int:
        """Memory of pilot, launcher and batch script."""
        return sum(pss_bytes(pid) for pid in (*self.pids[:2], *self.pids.shell))

    def stop(self) -> None:
        """End the agent if it runs, then all that carries the mark of a Session of this Site."""
        if (self.directory / "site.toml").exists():
            self._chappe("site", "stop", str(self.directory))
        for session in self.directory.glob("sessions/*"):
            kill_all(marked("CHAPPE_SESSION", session.name))

    def _chappe(self, *arguments: str) -> bytes:
        done = subprocess.run(
            [sys.executable, "-m", "chappe.cli.main", *arguments],
            env=self._environment,
            capture_output=True,
            timeout=_WITHIN_S,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"chappe {' '.join(arguments)}: {done.stderr.decode()[-2000:]}")
        return done.stdout

    def _view(self) -> SessionView:
        return next(s for s in self._client.admin.sessions() if s.id == self.session)

    def _wait_live(self) -> SessionView:
        """The Session, once its pilot has offered its cores."""
        deadline = time.monotonic() + _WITHIN_S
        while time.monotonic() < deadline:
            for session in self._client.admin.sessions():
                if session.capacity is not None:
                    return session
            time.sleep(0.05)
        raise TimeoutError(f"no pilot within {_WITHIN_S:g} s; see {self.directory}/logs")

    def _find(self) -> Pids:
        pilot = launcher = 0
        shell = []
        for pid in marked("CHAPPE_SESSION", self.session):
            command = " ".join(command_of(pid))
            if "chappe.pilot.launcher" in command:
                launcher = pid
            elif "chappe.pilot" in command:
                pilot = pid
            else:
                shell.append(pid)
        assert pilot, "no pilot carries the session's mark"
        assert launcher, "no launcher carries the session's mark"
        return Pids(pilot, launcher, shell)


@contextmanager
def site(
    hub: HubProcess, directory: Path, client: chappe.Client, functions: str = ""
) -> Iterator[Site]:
    """A Site that is stopped at the end, also when its start failed half-way. With `functions`, tables of
    environments, it allows them."""
    running = Site(hub, directory, client, functions)
    try:
        running.start()
        yield running
    finally:
        running.stop()
