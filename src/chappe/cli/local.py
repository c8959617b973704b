"""The hub and the site of `chappe up`: two background processes, known by the files that they leave.

The hub's process is recorded like an agent's (`chappe.site.status`): a number alone proves nothing, since
numbers are given again.
"""

from __future__ import annotations

import fcntl
import getpass
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from chappe.sdk.config import config_path, load
from chappe.sdk.errors import ChappeError, Conflict, Unavailable
from chappe.sdk.sync import Client
from chappe.site import config as site_config
from chappe.site import daemon, status
from chappe.site.init import HubAccess, init_site
from chappe.site.paths import SitePaths
from chappe.site.status import PidFile, Presence

START_S = 120.0
STOP_S = 30.0
PORT = 8461
_READY = "hub ready "


class HubFailed(ChappeError):
    """The hub did not start; the message is the hub's own, or names its log."""

    default_code = "start_failed"


class Part(msgspec.Struct, frozen=True):
    """What became of the hub or the site: `state` is started | running | stopped."""

    what: str
    state: str
    where: str
    words: str


class _Url(msgspec.Struct):
    url: str = ""


@dataclass(frozen=True)
class Local:
    """The hub with its files in `data`, and the site in `directory`."""

    data: Path
    directory: Path

    @classmethod
    def of(cls, data: Path | None, directory: Path) -> Local:
        """On the defaults, where nothing is given."""
        base = os.environ.get("XDG_DATA_HOME")
        default = (Path(base) if base else Path.home() / ".local/share") / "chappe"
        return cls((data or default).absolute(), directory.absolute())

    @property
    def site(self) -> str:
        """The site's name: that of its file, or of the directory."""
        if SitePaths.of(self.directory).config.exists():
            return site_config.load(self.directory).site.name
        return re.sub(r"[^A-Za-z0-9_.-]", "-", self.directory.name)

    def start(self, port: int | None) -> list[Part]:
        """Start what does not run. Raises HubFailed, StartFailed, and Conflict for another hub's files."""
        self.data.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._alone():
            self._check_client()
            return [self._start_hub(port), self._start_site()]

    def stop(self) -> list[Part]:
        """Stop the site's agent, then the hub. Harmless when they do not run."""
        parts = []
        if SitePaths.of(self.directory).config.exists():
            was = daemon.status(self.directory).presence is Presence.RUNNING
            daemon.stop(self.directory)
            words = f"{self.site} {'stopped; jobs that run go on' if was else 'did not run'}"
            parts.append(Part("site", "stopped", str(self.directory), words))
        found = status.read(self._pid_file)
        runs = found is not None and found.presence is Presence.RUNNING
        if found is not None and runs:
            _terminate(found)
        words = "stopped" if runs else "was not started by `chappe up`, or has ended"
        parts.append(Part("hub", "stopped", str(self.data), words))
        return parts

    # -- the hub -----------------------------------------------------------------------------------

    @property
    def _pid_file(self) -> Path:
        return self.data / "up.pid"

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One `chappe up` at a time: the second then finds what the first has started."""
        with (self.data / "up.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _check_client(self) -> None:
        """A configuration for another hub is not ours to replace, and jobs would go there."""
        users, ours = _url_in(config_path()), _url_in(self.data / "client.json")
        if users and users != ours:
            raise Conflict(
                f"{config_path()} is for the hub {users}: name another file in CHAPPE_CONFIG to have "
                "a hub of your own beside it",
                code="other_hub",
            )

    def _start_hub(self, port: int | None) -> Part:
        found = status.read(self._pid_file)
        if found is not None and found.presence is Presence.RUNNING:
            here = _url_in(self.data / "client.json")
            return Part("hub", "running", here, f"runs at {here} (process {found.pid})")
        before = _url_in(self.data / "client.json").rpartition(":")[2]
        chosen = str(port) if port is not None else before or str(PORT)
        log = self.data / "hub.log"
        argv = [
            sys.executable,
            "-P",
            "-m",
            "chappe.hub",
            "--data",
            str(self.data),
            "--port",
            chosen,
        ]
        with open(log, "ab", opener=lambda path, flags: os.open(path, flags, 0o600)) as errors:
            begin = errors.tell()
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
                cwd=self.data,
            )
        url = _ready(process)
        if url is None:
            process.kill()
            process.wait()
            raise HubFailed(_last_words(log, begin))
        if status.started(process.pid) is None:
            raise HubFailed(_last_words(log, begin))
        status.write(self._pid_file, "hub", pid=process.pid)
        process.returncode = 0  # it outlives us; Popen would warn that nobody waits for it
        return Part("hub", "started", url, f"started at {url}; its log is {log}")

    # -- the site ----------------------------------------------------------------------------------

    def _start_site(self) -> Part:
        made = not SitePaths.of(self.directory).config.exists()
        if made:
            self._make_site()
        settings = load()
        theirs = site_config.load(self.directory).hub.url
        if theirs.rstrip("/") != settings.url:
            raise Conflict(
                f"the site in {self.directory} belongs to the hub {theirs}, not to {settings.url}: "
                "name another directory",
                code="other_hub",
            )
        if daemon.status(self.directory).presence is Presence.RUNNING:
            return Part("site", "running", str(self.directory), f"{self.site} runs")
        daemon.start(self.directory)
        words = f"{self.site} {'made and ' if made else ''}started in {self.directory}"
        return Part("site", "started", str(self.directory), words)

    def _make_site(self) -> None:
        with Client() as client:
            access = HubAccess(client.settings.url, client.settings.token, client.settings.ca_file)
            key = client.public_key()
            # Who types this owns the machine's account and the key: their own functions are welcome.
            made = init_site(
                self.directory, self.site, access, key, getpass.getuser(), functions=True
            )
            client.know_site(made.id, made.key)


def _url_in(path: Path) -> str:
    """The hub that a client's configuration is for; nothing when there is none."""
    with suppress(FileNotFoundError, msgspec.DecodeError):
        return msgspec.json.decode(path.read_bytes(), type=_Url).url.rstrip("/")
    return ""


def _ready(process: subprocess.Popen[bytes]) -> str | None:
    """The URL of the ready line; None when the hub ended or took too long."""
    assert process.stdout is not None  # noqa: S101 - made with a pipe
    deadline, line = time.monotonic() + START_S, b""
    with process.stdout as out:
        while not line.endswith(b"\n"):
            if not select.select([out], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return None
            part = os.read(out.fileno(), 4096)
            if not part:
                return None
            line += part
    text = line.decode().strip()
    return text.removeprefix(_READY) if text.startswith(_READY) else None


def _last_words(log: Path, begin: int) -> str:
    """What the hub said before it ended, as a person may read it."""
    with log.open("rb") as file:
        file.seek(begin)
        lines = file.read().decode(errors="replace").splitlines()
    said = [line for line in lines if line.startswith("chappe hub: ")]
    return said[-1].removeprefix("chappe hub: ") if said else f"the hub did not start; see {log}"


def _terminate(found: PidFile) -> None:
    """TERM to exactly this process, and wait for its end. Raises Unavailable."""
    try:
        fd = os.pidfd_open(found.pid)
    except ProcessLookupError:
        return
    try:
        if status.started(found.pid) != found.start:
            return
        signal.pidfd_send_signal(fd, signal.SIGTERM)
        if not select.select([fd], [], [], STOP_S)[0]:
            raise Unavailable(f"the hub (process {found.pid}) does not end; `kill -9` is safe")
    finally:
        os.close(fd)
