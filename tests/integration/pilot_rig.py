"""A Site's directory and pilots in it, for tests against a real Hub or the scripted one.

No agent: the rig registers the Site, a BatchJob and its Session as an agent would, writes session.json, and
starts `python -m chappe.pilot` itself, so that a test can kill exactly that.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from asyncio.subprocess import Process
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from chappe.core.jobs import AppRef, Envelope, JobSpec
from chappe.link.clock import new_id
from chappe.link.http import HubClient
from chappe.link.keys import SigningKey, load_or_create
from chappe.link.signing import make_submissions
from chappe.link.trust import add
from chappe.pilot.procs import find_marked, kill_marked
from chappe.testing.hub import RunningHub
from chappe.wire.jobs import (
    ActOnJobs,
    ActReply,
    CreateJobs,
    CreateReply,
    JobFilter,
    JobView,
    NewJob,
)
from chappe.wire.sites import (
    AgentHello,
    AppView,
    NewBatchJob,
    NewSession,
    NewSessionReply,
    NewSite,
    NewSiteReply,
    PublishApps,
)

DEADLINE_S = 60.0
TRUE = 'name = "true"\nversion = "1"\ncommand = ["/bin/true"]\n[files]\nown_directory = false\nlog = "none"\n'
SH = 'name = "sh"\nversion = "1"\nshell = "{{ text }}"\n[parameters.text]\nhelp = "shell text"\n'
# `eval` makes the value, which is one quoted word, shell text again.
SH = SH.replace('"{{ text }}"', '"eval {{ text }}"').replace(
    "[parameters", "[files]\nseparate_stderr = true\n[parameters"
)
RESULT = SH.replace('name = "sh"', 'name = "result"').replace(
    "separate_stderr = true", 'result = "out.json"'
)
APPS = {"true": TRUE, "sh": SH, "result": RESULT}


async def until(condition: Callable[[], Any], what: str) -> Any:
    """What `condition` returns once it is true; bounded."""
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not (value := condition()):  # noqa: ASYNC110 - nothing tells of a file
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"never happened: {what}") from None
    return value


class SiteDir:
    """A Site's directory with Apps and one trusted key, and what a Session needs."""

    def __init__(self, path: Path, project: str) -> None:
        self.path = path
        self.project = project
        self.site = new_id()
        for name in ("apps", "data", "ledger", "sessions", "local"):
            (path / name).mkdir(parents=True)
        for name, text in APPS.items():
            (path / "apps" / f"{name}.toml").write_text(text)
        self.key: SigningKey = load_or_create(path / "key")
        add(path / "trusted_keys", self.key.public_b64, "test")

    def spec(self, app: str, **fields: Any) -> bytes:
        """A Job's bytes."""
        if "text" in fields:
            fields["parameters"] = {"text": fields.pop("text")}
        if app == "true":
            fields.setdefault("workdir", "shared")
        return msgspec.json.encode(
            JobSpec(new_id(), self.project, (self.site,), AppRef(app), **fields)
        )

    def write_session(
        self, session: str, url: str, token: str, ca_file: str | None, **more: Any
    ) -> Path:
        """The directory of a Session, with its session.json."""
        directory = self.path / "sessions" / session
        directory.mkdir()
        path = directory / "session.json"
        path.touch(0o600)
        told = {
            "session": session,
            "project": self.project,
            "site": self.site,
            "site_name": "paris",
            "url": url,
            "site_dir": str(self.path),
            "token": token,
            "ca_file": ca_file,
            "node_local": str(self.path / "local"),
            **more,
        }
        path.write_bytes(msgspec.json.encode(told))
        return directory


class Pilot:
    """Pilots of one Session, one after the other."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.session = directory.name
        self.process: Process | None = None

    async def start(self, env: Mapping[str, str] | None = None) -> None:
        """Start a head."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("CHAPPE_")}
        with (self.directory / "pilot.out").open("ab") as out:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-P", "-m", "chappe.pilot", "--dir", str(self.directory)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**inherited, "CHAPPE_SESSION": self.session, **(env or {})},
                start_new_session=True,
            )

    def signal(self, signum: signal.Signals) -> None:
        """Send the head a signal."""
        assert self.process is not None
        self.process.send_signal(signum)

    async def ended(self) -> int:
        """The head's exit status, once it has ended."""
        assert self.process is not None
        async with asyncio.timeout(DEADLINE_S):
            return await self.process.wait()

    async def kill9(self) -> None:
        """Kill the head."""
        self.signal(signal.SIGKILL)
        await self.ended()

    def launcher(self) -> int:
        """The launcher's pid; 0 when there is none."""
        for process in find_marked(self.session):
            if process.job == "" and (self.process is None or process.pid != self.process.pid):
                command = Path(f"/proc/{process.pid}/cmdline")
                try:
                    if b"chappe.pilot.launcher" in command.read_bytes():
                        return process.pid
                except OSError:
                    continue
        return 0

    def jobs(self) -> list[int]:
        """The pids of the Jobs' processes."""
        return [process.pid for process in find_marked(self.session) if process.job]

    def log(self) -> list[dict[str, Any]]:
        """What the head logged. What starts its hands writes plain lines beside it."""
        try:
            lines = (self.directory / "pilot.log").read_bytes().splitlines()
        except FileNotFoundError:
            return []
        return [msgspec.json.decode(line) for line in lines if line.startswith(b"{")]

    def logged(self, event: str) -> list[dict[str, Any]]:
        """The log's lines about one thing."""
        return [line for line in self.log() if line.get("event") == event]

    async def clean(self) -> None:
        """Leave nothing behind."""
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()
        await asyncio.to_thread(kill_marked, self.session, lambda _: True)


def sockets_of(session: str) -> list[Path]:
    """What the launchers of a Session have left of theirs."""
    return list(Path("/tmp").glob(f"chappe-*/{session}"))  # noqa: S108 - it is where they are


@asynccontextmanager
async def real_site(hub: RunningHub, directory: Path) -> AsyncGenerator[RealSite, None]:
    """A Site at a Hub where others may have theirs."""
    made = RealSite(directory / "site", hub.url, hub.token, hub.project, hub.ca_file or None)
    await made.register(f"paris-{new_id()}")
    try:
        yield made
    finally:
        await made.close()


class RealSite:
    """The Site at a real Hub."""

    def __init__(self, path: Path, url: str, token: str, project: str, ca_file: str | None) -> None:
        self.dir = SiteDir(path, project)
        self.url = url
        self.ca_file = ca_file
        self.user = HubClient(url, token, ca_file=ca_file)
        self.agent: HubClient
        self.name = ""
        self.pilots: list[Pilot] = []

    async def register(self, name: str = "paris") -> None:
        """Make the Site known, with its Apps and an agent."""
        self.name = name
        made = await self.user.request(
            "POST", "/v1/sites", NewSite(self.dir.site, name), NewSiteReply
        )
        self.agent = HubClient(self.url, made.token, ca_file=self.ca_file)
        await self.agent.request(
            "POST", f"/v1/sites/{self.dir.site}/agent", AgentHello(new_id(), "test")
        )
        await self.publish()

    async def publish(self) -> None:
        """Tell the Hub what Apps there are."""
        from chappe.link.apps import load_apps, to_view

        views: list[AppView] = [to_view(app) for app in load_apps(self.dir.path / "apps").values()]
        await self.agent.request("PUT", f"/v1/sites/{self.dir.site}/apps", PublishApps(views))

    async def session(self, options: Mapping[str, Any] | None = None, **more: Any) -> Pilot:
        """A BatchJob and its Session; its pilot is not started yet."""
        batch_job, session = new_id(), new_id()
        await self.agent.request("POST", "/v1/batch-jobs", NewBatchJob(batch_job, self.dir.site))
        made = await self.agent.request(
            "POST", "/v1/sessions", NewSession(session, batch_job), NewSessionReply
        )
        pilot = Pilot(
            self.dir.write_session(
                session, self.url, made.token, self.ca_file, options=dict(options or {}), **more
            )
        )
        self.pilots.append(pilot)
        return pilot

    async def submit(self, specs: Sequence[bytes], priority: int = 0) -> list[str]:
        """Sign and submit these; their ids."""
        submissions = make_submissions(self.dir.key, self.dir.project, specs, time.time() + 3600)
        jobs = [
            NewJob(msgspec.Raw(spec), Envelope(priority=priority), k // 1000, k % 1000)
            for k, spec in enumerate(specs)
        ]
        reply = await self.user.request(
            "POST", "/v1/jobs", CreateJobs(jobs, submissions), CreateReply
        )
        return [verdict.id for verdict in reply.verdicts]

    async def job(self, ident: str) -> JobView:
        """One Job as it is now."""
        return await self.user.request("GET", f"/v1/jobs/{ident}", reply=JobView)

    async def reaches(self, ident: str, *states: str) -> JobView:
        """The Job, once it is in one of these states (or final, which fails the test)."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                while True:
                    view = await self.job(ident)
                    if view.state in states:
                        return view
                    assert view.phase not in ("finished", "failed", "cancelled"), view
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"never {states}: {await self.job(ident)}") from None

    async def reaches_final(self, ident: str) -> JobView:
        """The Job, once it is final."""
        return await self.reaches(ident, "JOB_FINISHED", "FAILED", "CANCELLED")

    async def cancel(self, ident: str) -> None:
        """Cancel one Job."""
        await self.user.request(
            "POST", "/v1/jobs/cancel", ActOnJobs(JobFilter(ids=[ident])), ActReply
        )

    async def close(self) -> None:
        """Leave nothing behind."""
        for pilot in self.pilots:
            await pilot.clean()
        await self.user.aclose()
        await self.agent.aclose()
