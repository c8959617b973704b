"""`chappe up`: hub and site in one go, known again by whoever comes next, and stopped together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tomllib
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from chappe.pilot.procs import kill_marked
from tests.integration.sdk_rig import CHAPPE

WITHIN_S = 120.0


@dataclass
class Laptop:
    """A user's HOME, and nothing in it."""

    home: Path

    def chappe(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run the command line as its user."""
        return subprocess.run(
            [CHAPPE, *arguments],
            env=self.environ | environ,
            capture_output=True,
            text=True,
            timeout=WITHIN_S,
            check=False,
        )

    @property
    def environ(self) -> dict[str, str]:
        """That of a fresh login."""
        kept = ("PATH", "LANG", "TMPDIR")
        return {k: v for k, v in os.environ.items() if k in kept} | {"HOME": str(self.home)}

    def up(self, *arguments: str) -> dict[str, dict[str, Any]]:
        """`chappe up --json`: hub and site by their names."""
        done = self.chappe("up", "--json", *arguments)
        assert done.returncode == 0, done.stderr
        return {part["what"]: part for part in map(json.loads, done.stdout.splitlines())}

    @property
    def hub_pid(self) -> int:
        """The process that `up` has started."""
        return int(json.loads((self.home / ".local/share/chappe/up.pid").read_bytes())["pid"])


@pytest.fixture
def laptop(tmp_path: Path) -> Generator[Laptop, None, None]:
    made = Laptop(tmp_path / "home")
    made.home.mkdir()
    yield made
    made.chappe("up", "--stop")
    for session in (made.home / "chappe/here/sessions").glob("*"):
        kill_marked(session.name, lambda _process: True)  # its pilot goes on, as it should


def test_up_and_again_and_down(laptop: Laptop) -> None:
    first = laptop.up("--port", "0")
    assert {part["state"] for part in first.values()} == {"started"}
    assert first["site"]["where"] == str(laptop.home / "chappe/here")
    ran = laptop.chappe("run", "here", "--", "true")
    assert ran.returncode == 0, ran.stderr
    settings = (laptop.home / "chappe/here/site.toml").read_text()
    assert tomllib.loads(settings)["functions"] == {"allowed": True}, "it is their own machine"

    again = laptop.up()
    assert {part["state"] for part in again.values()} == {"running"}
    assert again["hub"]["where"] == first["hub"]["where"]
    words = laptop.chappe("up").stdout
    assert f"hub   runs at {first['hub']['where']}" in words
    assert "chappe run here -- hostname" in words

    os.kill(laptop.hub_pid, signal.SIGKILL)
    back = laptop.up()
    assert (back["hub"]["state"], back["site"]["state"]) == ("started", "running")
    assert back["hub"]["where"] == first["hub"]["where"], "the site would not find it"
    assert laptop.chappe("run", "here", "--", "true").returncode == 0

    for _ in range(2):  # stopping what is stopped is harmless
        down = laptop.up("--stop")
        assert {part["state"] for part in down.values()} == {"stopped"}
    assert laptop.chappe("job", "ls").returncode == 4
    assert laptop.chappe("site", "status", str(laptop.home / "chappe/here")).returncode == 1


def test_a_client_of_another_hub_is_not_hijacked(laptop: Laptop) -> None:
    config = laptop.home / ".config/chappe/client.json"
    config.parent.mkdir(parents=True)
    config.write_text('{"url": "https://hub.example.org", "token": "x"}')
    config.chmod(0o600)
    before = config.read_bytes()
    done = laptop.chappe("up", "--port", "0")
    assert done.returncode == 5
    assert "https://hub.example.org" in done.stderr
    assert "CHAPPE_CONFIG" in done.stderr
    assert config.read_bytes() == before
    assert not (laptop.home / "chappe").exists()


def test_a_hub_that_cannot_start_says_why(laptop: Laptop) -> None:
    done = laptop.chappe("up", "--port", "0", CHAPPE_DB="oracle://nowhere")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "oracle" in done.stderr
    assert "Traceback" not in done.stderr


def test_in_the_foreground_both_end_with_it(laptop: Laptop) -> None:
    argv = [CHAPPE, "up", "--foreground", "--port", "0"]
    with subprocess.Popen(argv, env=laptop.environ, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        assert lines[0].startswith("hub   started at https://127.0.0.1:")
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        assert process.wait(WITHIN_S) == 0
    assert "site  here stopped" in rest
    assert "hub   stopped" in rest
