"""The demonstration's world: one Hub on its defaults, and Sites like machines of their own.

Everything goes through the command line, as a user would do it. Where the kernel allows it, a Site has
its own user, file system and network, and only the Hub's port in common with the rest.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from chappe.site.init import CA_FILE
from chappe.testing.sandbox import Isolation, Sandbox, SandboxError, probe

CODE = Path(__file__).resolve().parent / "barotropic"
CHAPPE = str(Path(sys.executable).with_name("chappe"))
#: Sites whose simulations report by HTTPS.
BY_HTTPS = ("paris",)
START_S = 60.0
STOP_S = 15.0


class WorldError(Exception):
    """Something of the demonstration's world did not come up; the message has its last words."""


class World:
    """A Hub and its Sites below one directory; `environment` is what makes a user theirs."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = directory / "client.json"
        self.key = directory / "key"
        self.environment = {"CHAPPE_CONFIG": str(self.config), "CHAPPE_KEY": str(self.key)}
        self.sandboxes: dict[str, Sandbox] = {}
        self._isolation: Isolation | None = None
        self.url = ""
        #: Its mail.toml, for a Hub that takes mail.
        self.mail: Path | None = None
        self._hub: subprocess.Popen[bytes] | None = None

    @property
    def explanation(self) -> str:
        """How much the Sites are isolated from each other."""
        self._isolation = self._isolation or probe()
        return self._isolation.explanation

    def start_hub(self) -> None:
        """Start the Hub on a free port, and return once it says that it is ready."""
        log = self.directory / "hub.log"
        command = [CHAPPE, "hub", "start", "--data", str(self.directory / "hub"), "--port", "0"]
        if self.mail is not None:
            command += ["--mail", str(self.mail)]
        with log.open("wb") as err:
            self._hub = subprocess.Popen(
                command,
                env=os.environ | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=err,
                start_new_session=True,  # Ctrl-C is for the demonstration, which stops all in order
            )
        assert self._hub.stdout is not None
        said = self._hub.stdout.readline().decode()
        if not said.startswith("hub ready "):
            raise WorldError(f"the hub did not start:\n{log.read_text()[-2000:]}")
        self.url = said.split()[-1]

    def add_site(self, name: str) -> None:
        """Make a Site, move it into its sandbox, and start its agent."""
        directory = self.make_site(name)
        port = int(self.url.rpartition(":")[2])
        sandbox = self.sandboxes[name] = Sandbox(name, port, directory, [CODE])
        if sandbox.isolation.uid:
            for place in [directory, *directory.rglob("*")]:
                os.chown(place, sandbox.uid, sandbox.uid)
        done = sandbox.run([CHAPPE, "site", "start", str(directory)], timeout_s=START_S)
        if done.returncode != 0:
            raise WorldError(f"site {name} did not start:\n{done.stdout}{done.stderr}")

    def make_site(self, name: str) -> Path:
        """Make a Site with the model's Apps; its directory."""
        directory = self.directory / name
        made = subprocess.run(
            [CHAPPE, "site", "init", str(directory), "--name", name],
            env=os.environ | self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode != 0:
            raise WorldError(f"site {name} could not be made:\n{made.stderr}")
        for app in (CODE / "apps").glob("*.toml"):
            text = app.read_text(encoding="utf-8")
            text = text.replace("@PYTHON@", sys.executable).replace("@CODE@", str(CODE))
            if name in BY_HTTPS:
                text = text.replace("[files]", self._by_https(directory) + "[files]", 1)
            (directory / "apps" / app.name).write_text(text, encoding="utf-8")
        return directory

    def _by_https(self, directory: Path) -> str:
        """Lets an App's simulations send by themselves; without it they leave all to the Site's agent."""
        return (
            f'[env]\nCHAPPE_EMIT_URL = "{self.url}"\n'
            f'CHAPPE_EMIT_TOKEN_FILE = "{directory}/secrets/site.token"\n'
            f'CHAPPE_EMIT_CA_FILE = "{directory}/{CA_FILE}"\n\n'
        )

    def stop(self) -> None:
        """End all: the agents, then whatever is left in the sandboxes, then the Hub."""
        for name, sandbox in self.sandboxes.items():
            try:
                sandbox.run([CHAPPE, "site", "stop", str(self.directory / name)], timeout_s=STOP_S)
            except (SandboxError, subprocess.TimeoutExpired) as error:
                print(f"site {name}: {error}", file=sys.stderr)
            sandbox.close()
        if self._hub is None:
            return
        self._hub.terminate()
        try:
            self._hub.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._hub.kill()
            self._hub.wait()
        if self._hub.stdout is not None:
            self._hub.stdout.close()
