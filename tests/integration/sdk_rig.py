"""A Hub and a Site that works, made once for many tests, and the user's own configuration for both faces."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from click.testing import CliRunner

from chappe import Client
from chappe.cli import main
from chappe.site import daemon
from chappe.site.init import HubAccess, init_site
from chappe.testing.hub import RunningHub, start_hub

WITHIN_S = 60.0
SITE = "paris"
CHAPPE = str(Path(sys.executable).with_name("chappe"))

WAVE = """\
name = "wave"
version = "1"
command = ["{{ python }}", "-c", '''
import json, os, sys
n = int(sys.argv[1])
if n < 0:
    sys.exit("n is negative: no such wave")
parents = json.load(open(os.environ["CHAPPE_PARENTS"])) if "CHAPPE_PARENTS" in os.environ else []
total = n + sum(json.load(open(p["result"]))["n"] for p in parents if p["result"])
json.dump({"n": total, "parents": [p["state"] for p in parents]}, open(os.environ["CHAPPE_RESULT"], "w"))
''', "{{ n }}"]
[parameters.n]
type = "int"
default = 1
help = "a number"
[parameters.python]
type = "path"
default = "@PYTHON@"
[files]
result = "wave.json"
separate_stderr = true
"""


ENVIRONMENTS = """
[functions.environments.quick]
preload = ["numpy"]
own_directory = false
log = "shared"
[functions.environments.broken]
preload = ["no_such_module"]
"""


class Said(NamedTuple):
    """What a command answered."""

    returncode: int
    stdout: str
    stderr: str


@dataclass
class Place:
    """Where the tests of a module run: a Hub, one Site with the App `wave`, a user's files."""

    hub: RunningHub
    directory: Path

    @property
    def environment(self) -> dict[str, str]:
        """What makes a process the user's."""
        return {
            "CHAPPE_CONFIG": str(self.hub.client_config),
            "CHAPPE_KEY": str(self.directory / "key"),
        }

    def client(self) -> Client:
        """A client of the user's."""
        return Client(config_file=self.hub.client_config, key=self.directory / "key")

    def chappe(self, *arguments: str, stdin: str = "", **environment: str) -> Said:
        """Run the command line as the user, in this process: importing takes longer than most commands."""
        own = {name: None for name in os.environ if name.startswith("CHAPPE_")}
        done = CliRunner().invoke(
            main.root, arguments, input=stdin, env={**own, **self.environment, **environment}
        )
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return Said(done.exit_code, done.stdout, done.stderr)

    def process(self, *arguments: str) -> Said:
        """Run the installed script as the user, at most WITHIN_S."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("CHAPPE_")}
        done = subprocess.run(
            [CHAPPE, *arguments],
            env=inherited | self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=WITHIN_S,
            check=False,
        )
        return Said(done.returncode, done.stdout, done.stderr)


@contextmanager
def place(directory: Path) -> Generator[Place, None, None]:
    """Start a Hub and a Site with one pilot, and stop all."""
    with start_hub(directory / "hub") as hub:
        made = Place(hub, directory)
        site = directory / SITE
        with made.client() as client:
            access = HubAccess(hub.url, hub.token, hub.ca_file)
            init_site(site, SITE, access, client.public_key())
            app = WAVE.replace("@PYTHON@", sys.executable)
            (site / "apps" / "wave.toml").write_text(app)
            # The one pilot is asked for, and not replaced when it is cancelled at the end.
            config = (site / "site.toml").read_text()
            config = config.replace("# keep = 1", "keep = 0")
            (site / "site.toml").write_text(
                config.replace("# allowed = false", "allowed = true") + ENVIRONMENTS
            )
            cursor = client.cursor()
            daemon.start(site)
            batch_job = client.admin.new_batch_job(SITE)
            try:
                kinds = ["site", "session"]
                with closing(client.events(follow=True, cursor=cursor, kinds=kinds)) as changes:
                    while not (client.apps(SITE) and client.admin.sessions()):
                        next(changes)
                yield made
            finally:
                cursor = client.cursor()
                client.admin.cancel_batch_job(batch_job.id)
                kinds = ["batch_job"]
                with closing(client.events(follow=True, cursor=cursor, kinds=kinds)) as changes:
                    while any(
                        b.id == batch_job.id and b.state not in ("ended", "failed", "cancelled")
                        for b in client.admin.batch_jobs()
                    ):
                        next(changes)
                daemon.stop(site)
