"""Servers of a test: started in the foreground as our children, stopped by their process, and reaped."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

START_WITHIN_S = 60.0
STOP_WITHIN_S = 30.0


class NotStarted(RuntimeError):
    """A server did not start; the message has the end of its log."""


def program(name: str) -> str | None:
    """The path of a program, also of those that only root has in PATH."""
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


def free_ports(count: int) -> list[int]:
    """Ports on loopback that were free a moment ago."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def until(condition: Callable[[], object], what: str, within_s: float = START_WITHIN_S) -> None:
    """Wait for `condition`. Raises TimeoutError naming `what`."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {within_s:g} s: {what}")
        time.sleep(0.05)


class Daemons:
    """Named servers with their logs in `directory`/log."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        (directory / "log").mkdir(exist_ok=True)

    def launch(
        self, name: str, argv: Sequence[str | Path], environ: Mapping[str, str] | None = None
    ) -> None:
        """Start one, unless it runs."""
        if self.alive(name):
            return
        with (self.directory / "log" / f"{name}.out").open("ab") as log:
            self._running[name] = subprocess.Popen(
                [str(arg) for arg in argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env={**os.environ, **(environ or {})},
                start_new_session=True,
            )

    def alive(self, name: str) -> bool:
        """Whether it runs."""
        process = self._running.get(name)
        return process is not None and process.poll() is None

    def await_ready(
        self, name: str, ready: Callable[[], object], within_s: float = START_WITHIN_S
    ) -> None:
        """Wait until `ready`. Raises NotStarted."""
        try:
            until(lambda: ready() or not self.alive(name), name, within_s)
        except TimeoutError as e:
            raise NotStarted(f"{name} is not ready: {self.tail(name)}") from e
        if not self.alive(name):
            raise NotStarted(f"{name} ended: {self.tail(name)}")

    def tail(self, name: str) -> str:
        """The end of what it said."""
        path = self.directory / "log" / f"{name}.out"
        return path.read_text(errors="replace")[-2000:] if path.exists() else ""

    def stop(self, name: str, signum: signal.Signals = signal.SIGTERM) -> None:
        """End one with `signum`, and by force if it does not."""
        process = self._running.pop(name, None)
        if process is None or process.poll() is not None:
            return
        process.send_signal(signum)
        try:
            process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def close(self) -> None:
        """Stop all, the last first."""
        for name in reversed(self._running.copy()):
            self.stop(name)
