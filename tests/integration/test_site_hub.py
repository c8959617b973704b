"""Site and Hub, both real: a Job's whole way, and what a dead pilot leaves behind."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from msgspec import Raw, json
from msgspec.structs import replace

from chappe.core.jobs import AppRef, JobSpec, Resources
from chappe.core.leases import Outcome, Reason
from chappe.core.shapes import Capacity
from chappe.link import journal, spool
from chappe.link.clock import new_id, now
from chappe.link.http import HubClient
from chappe.link.keys import SigningKey, load_or_create
from chappe.link.ledger import Ledger
from chappe.link.signing import make_submissions
from chappe.site import daemon
from chappe.site.init import HubAccess, init_site
from chappe.site.paths import SitePaths
from chappe.testing.hub import RunningHub
from chappe.wire.jobs import CreateJobs, CreateReply, JobView, NewJob
from chappe.wire.sync import HeldJob, SyncReply, SyncRequest
from tests.integration.site_rig import wait_until

SLEEPER = '#!/bin/sh\nwhile [ ! -e "$5/go" ]; do sleep 0.05; done\n'
RESULT = b"\x93\x01\x02\x03"
WRITER = """\
name = "writer"
version = "1"
shell = 'printf "[1, 2]" >"$CHAPPE_RESULT"; echo {{ word }}'
[parameters.word]
default = "hm"
[files]
result = "result.json"
"""


class RealSite:
    """A Site at a real Hub, and its user."""

    def __init__(self, root: Path, hub: RunningHub) -> None:
        self.key: SigningKey = load_or_create(root.parent / "key")
        access = HubAccess(hub.url, hub.token, hub.ca_file)
        self.made = init_site(root, root.name, access, self.key.public_b64)
        self.paths = SitePaths.of(root)
        self.client = HubClient(hub.url, hub.token, ca_file=hub.ca_file)

    async def create(self, *specs: JobSpec) -> list[str]:
        raw = [json.encode(spec) for spec in specs]
        submissions = make_submissions(self.key, self.made.project, raw, now() + 3600)
        jobs = [NewJob(Raw(spec), submission=0, idx=i) for i, spec in enumerate(raw)]
        body = CreateJobs(jobs, submissions)
        await self.client.request("POST", "/v1/jobs", body, CreateReply)
        return [spec.id for spec in specs]

    def spec(self, app: str, **fields: object) -> JobSpec:
        return JobSpec(
            new_id(),
            self.made.project,
            (self.made.id,),
            app=AppRef(app),
            **fields,  # type: ignore[arg-type]
        )

    async def job(self, ident: str) -> JobView:
        return await self.client.request("GET", f"/v1/jobs/{ident}", None, JobView)

    async def final(self, ident: str) -> JobView:
        """The Job once it is final."""
        return await self.once(ident, lambda v: v.phase in ("finished", "failed", "cancelled"))

    async def once(self, ident: str, condition: Callable[[JobView], bool]) -> JobView:
        """The Job once `condition` holds."""
        async with asyncio.timeout(60):
            while not condition(view := await self.job(ident)):  # noqa: ASYNC110 - users have the feed
                await asyncio.sleep(0.05)
            return view

    def running_session(self) -> str:
        def find() -> str:
            found = [d.name for d in self.paths.sessions.iterdir() if (d / "pilot.out").exists()]
            return found[0] if found else ""

        return str(wait_until(find, "a pilot"))


@pytest.fixture
def site(tmp_path: Path, hub: RunningHub) -> Iterator[RealSite]:
    made = RealSite(tmp_path / "brest", hub)
    yield made
    daemon.stop(made.paths.root)
    kill_sessions(made.paths)


@pytest.fixture
async def client(site: RealSite) -> AsyncIterator[HubClient]:
    async with site.client as made:
        yield made


def kill_sessions(paths: SitePaths, but: bytes = b"\0none") -> None:
    """Kill what bears a Session's mark, but for what has `but` in its environment; once, in one go."""
    marks = {f"CHAPPE_SESSION={d.name}".encode() for d in paths.sessions.iterdir()}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                environ = (entry / "environ").read_bytes()
                if but not in environ and marks & set(environ.split(b"\0")):
                    os.kill(int(entry.name), signal.SIGKILL)
            except OSError:
                continue


async def test_a_job_goes_its_whole_way_with_its_result(site: RealSite, client: HubClient) -> None:
    (site.paths.apps / "writer.toml").write_text(WRITER)
    daemon.start(site.paths.root)
    site.running_session()
    (ident,) = await site.create(site.spec("writer", parameters={"word": "it's $HOME"}))
    view = await site.final(ident)
    assert (view.state, view.attempt) == ("JOB_FINISHED", 1), view
    answer = await client.fetch("GET", f"/v1/jobs/{ident}/result")
    assert answer.data == b"[1, 2]"
    logs = list(site.paths.data.rglob("stdout.log"))
    assert [log.read_text() for log in logs] == ["it's $HOME\n"]


@pytest.mark.parametrize("survivors", [b"\0none", b"CHAPPE_JOB_ID="], ids=["all", "all-but-jobs"])
async def test_killing_a_whole_allocation_loses_no_job(
    site: RealSite, client: HubClient, survivors: bytes
) -> None:
    """A process that a Job was just starting may escape the kill: it must not hold the allocation."""
    (site.paths.apps / "once.toml").write_text(
        'name = "once"\nversion = "1"\n'
        "shell = 'if [ $CHAPPE_ATTEMPT = 1 ]; then touch $CHAPPE_DATA/up; sleep 600; fi'\n"
    )
    daemon.start(site.paths.root)
    site.running_session()
    (ident,) = await site.create(site.spec("once"))
    wait_until((site.paths.data / "up").exists, "the first attempt")
    kill_sessions(site.paths, survivors)
    view = await site.final(ident)
    assert (view.state, view.attempt) == ("JOB_FINISHED", 2), view


async def test_the_last_words_of_a_dead_pilot_count(site: RealSite, client: HubClient) -> None:
    """The test is the pilot: it takes grants, writes its journal, and dies without a report."""
    site.paths.config.write_text(
        site.paths.config.read_text()
        .replace("# keep", "keep")
        .replace('# python = ""', f'python = "{site.paths.root / "python"}"', 1)
    )
    python = site.paths.root / "python"
    python.write_text(SLEEPER)
    python.chmod(0o755)
    daemon.start(site.paths.root)
    session = site.running_session()
    one = Resources(cores=1)
    jobs = await site.create(*(site.spec("hello", resources=one) for _ in range(4)))
    directory = site.paths.session(session)
    token = json.decode((directory / "session.json").read_bytes())["token"]
    url, ca_file = site.client.url, str(site.paths.root / "hub-ca.pem")
    async with HubClient(url, token, ca_file=ca_file) as pilot:
        room = Capacity(3, 1 << 30, 3, 1 << 30)
        took = await pilot.request(
            "POST", "/v1/sync", SyncRequest(session, 1, 0, (0, 0), capacity=room), SyncReply
        )
        assert [g.job for g in took.grants] == jobs[:3]
        # A reply that never reached the pilot carried the fourth.
        lost = SyncRequest(session, 2, 1, (0, 0), capacity=room)
        held = [HeldJob(g.job, g.epoch) for g in took.grants]
        await pilot.request("POST", "/v1/sync", replace(lost, held=held), SyncReply)
    finished, unfinished, unstarted = took.grants
    ledger = Ledger(site.paths.ledger)
    for grant in (finished, unfinished):
        ledger.claim(grant.job, 1, session, grant.epoch)
    result = site.paths.data / "result.msgpack"
    result.write_bytes(RESULT)
    digest = hashlib.sha256(RESULT).hexdigest()
    outcome = Outcome(Reason.EXIT, exit=0, result_sha256=digest)
    end = journal.End(
        finished.job, finished.epoch, 1, "end", now(), outcome, now() - 1, result=str(result)
    )
    records: list[journal.Record] = [
        journal.Numbers(100, 100),
        journal.Granted(1, (took.incarnation, took.commit_no), took.grants),
        journal.Ended([end]),
    ]
    with spool.SpoolWriter(directory / journal.FILE) as writer:
        writer.append(journal.encode(records))
    # No next pilot: the Jobs stay where the dead one left them.
    daemon.stop(site.paths.root)
    site.paths.config.write_text(site.paths.config.read_text().replace("keep = 1", "keep = 0"))
    (directory / "go").touch()
    daemon.start(site.paths.root)
    view = await site.final(finished.job)
    assert (view.state, view.attempt) == ("JOB_FINISHED", 1)
    answer = await client.fetch("GET", f"/v1/jobs/{finished.job}/result")
    assert answer.data == RESULT
    await site.once(unfinished.job, lambda v: v.session is None)
    left = [await site.job(j) for j in (unfinished.job, unstarted.job, jobs[3])]
    assert [(v.state, v.attempt, v.session) for v in left] == [
        ("RESTART_READY", 1, None),  # it had started: lost
        ("PREPROCESSED", 0, None),  # it had not
        ("PREPROCESSED", 0, None),
    ]
