"""A real Hub in a process of its own, for tests, the demo and benchmarks."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

START_WITHIN_S = 60.0
STOP_WITHIN_S = 30.0


class HubFailed(AssertionError):
    """The Hub ended before it was ready, or did not become ready; the message holds its log's end."""


class RunningHub:
    """A Hub that was started. Its files are in `data`, its log is `data/hub.log`.

    `client_config` is a file for CHAPPE_CONFIG; `url`, `token`, `project` and `ca_file` are what it says.
    """

    def __init__(
        self,
        data: Path,
        options: Mapping[str, Any],
        environ: Mapping[str, str],
        program: Sequence[str] = ("-m", "chappe.hub"),
    ) -> None:
        self.data = data
        self._program = program
        self.client_config = data / "client.json"
        self.url = ""
        self.token = ""
        self.project = ""
        self.ca_file = ""
        self._options = dict(options)
        self._environ = dict(environ)
        self.process: subprocess.Popen[bytes]

    @property
    def log(self) -> str:
        """All that the Hub has logged so far."""
        return (self.data / "hub.log").read_text(errors="replace")

    def start(self, environ: Mapping[str, str] | None = None) -> RunningHub:
        """Start the process and return when it is ready. Raises HubFailed."""
        self.launch(environ)
        return self.wait_ready()

    def launch(self, environ: Mapping[str, str] | None = None) -> None:
        """Start the process without waiting for it. `environ` is added for this start only."""
        argv = [sys.executable, "-P", *self._program, "--data", str(self.data)]
        for name, value in self._options.items():
            argv += [f"--{name.replace('_', '-')}", str(value)]
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("CHAPPE_")}
        own = {"CHAPPE_CONFIG": str(self.data / "user" / "client.json")}
        self.data.mkdir(parents=True, exist_ok=True)
        with (self.data / "hub.log").open("ab") as log:
            self.process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**inherited, **own, **self._environ, **(environ or {})},
            )

    def wait_ready(self, within_s: float = START_WITHIN_S) -> RunningHub:
        """Return when the ready line came. Raises HubFailed."""
        line = self._ready_line(within_s)
        if not line.startswith("hub ready "):
            self.kill9()
            raise HubFailed(f"the hub did not become ready; its log ends: {self.log[-3000:]}")
        self.url = line.removeprefix("hub ready ").strip()
        self._options["port"] = self.url.rsplit(":", 1)[1]
        config = msgspec.json.decode(self.client_config.read_bytes())
        self.token, self.project = config["token"], config["project"]
        self.ca_file = config.get("ca_file", "")
        return self

    def _ready_line(self, within_s: float) -> str:
        assert self.process.stdout is not None  # noqa: S101 - launch() made the pipe
        fd = self.process.stdout.fileno()
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        line, deadline = b"", time.monotonic() + within_s
        while not line.endswith(b"\n"):
            left_ms = (deadline - time.monotonic()) * 1000
            if left_ms <= 0 or not poller.poll(left_ms):
                break
            chunk = os.read(fd, 4096)
            if not chunk:
                break
            line += chunk
        return line.decode()

    def stop(self) -> int:
        """SIGTERM; the exit code. Harmless when it has ended."""
        return self._end(signal.SIGTERM)

    def kill9(self) -> int:
        """SIGKILL; the exit code. Harmless when it has ended."""
        return self._end(signal.SIGKILL)

    def wait_dead(self, within_s: float = STOP_WITHIN_S) -> int:
        """The exit code of a Hub that is expected to end by itself (a crash point)."""
        code = self.process.wait(within_s)
        self._close()
        return code

    def restart(self, environ: Mapping[str, str] | None = None) -> RunningHub:
        """Stop it if it runs, and start it again at the same address."""
        self.stop()
        return self.start(environ)

    def _end(self, sig: signal.Signals) -> int:
        if self.process.poll() is None:
            self.process.send_signal(sig)
        try:
            return self.process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(STOP_WITHIN_S)
            raise HubFailed(f"the hub did not stop; its log ends: {self.log[-3000:]}") from None
        finally:
            self._close()

    def _close(self) -> None:
        if self.process.stdout is not None:
            self.process.stdout.close()

    def __enter__(self) -> RunningHub:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def start_hub(
    data: Path | str, *, environ: Mapping[str, str] | None = None, **options: Any
) -> RunningHub:
    """Start a Hub with its files in `data`, and return when it is ready.

    `options` are those of `python -m chappe.hub` with underscores; `port` is a free one by default, and
    stays the same over restarts. `environ` is added to the environment of every start.
    """
    return RunningHub(Path(data).absolute(), {"port": 0, **options}, environ or {}).start()
