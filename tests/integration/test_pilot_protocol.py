"""The pilot's side of the sync protocol, against a scripted Hub that loses, forgets and refuses."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from chappe.link import journal
from chappe.link.clock import new_id
from chappe.link.signing import make_submissions
from chappe.wire.sync import Grant, JobEpoch, SyncReply, SyncRequest
from tests.integration.pilot_rig import Pilot, SiteDir, until
from tests.integration.pilot_stub import Lost, Refused, StubHub


class Rig:
    """A scripted Hub, a Site's directory, and a pilot."""

    def __init__(self, path: Path) -> None:
        self.hub = StubHub()
        self.site = SiteDir(path, new_id())
        self.pilot: Pilot

    async def start(self, **options: object) -> None:
        await self.hub.start()
        directory = self.site.write_session(
            new_id(), self.hub.url, "token", None, options={"slots": 1, **options}
        )
        self.pilot = Pilot(directory)
        await self.pilot.start()
        await until(lambda: self.hub.requests, "the first sync")

    def grant(self, *specs: bytes, signed: bool = True) -> list[str]:
        """Have these granted; their ids."""
        (submission,) = make_submissions(self.site.key, self.site.project, specs, time.time() + 600)
        for k, spec in enumerate(specs):
            job = msgspec.json.decode(spec)["id"]
            self.hub.grants.append(Grant(job, 1, 1, msgspec.Raw(spec), submission.id, k))
        if signed:
            self.hub.submissions.append(submission)
        self.hub.hint()
        return [grant.job for grant in self.hub.grants]

    def waiting(self) -> bytes:
        """A Job that ends when the file `go` is there."""
        return self.site.spec("sh", text=f"while [ ! -e {self.go} ]; do sleep 0.02; done")

    @property
    def go(self) -> Path:
        return self.site.path / "go"

    async def reported(self, job: str, kind: str) -> None:
        await until(lambda: (job, kind) in self.hub.reports, f"{kind} of {job}")

    def held(self) -> set[str]:
        return {h.job for h in self.hub.requests[-1].held}


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    made = Rig(tmp_path / "site")
    yield made
    await made.pilot.clean()
    await made.hub.stop()


def leads(pid: int) -> bool:
    """Whether it leads a process group; what has just ended does not."""
    try:
        return os.getpgid(pid) == pid
    except ProcessLookupError:
        return False


async def test_a_lost_reply_is_asked_for_again_byte_for_byte(rig: Rig) -> None:
    await rig.start()
    lost: list[int] = []

    def lose(request: SyncRequest, reply: SyncReply) -> SyncReply:
        if request.reports and len(lost) < 2:
            lost.append(request.request_no)
            raise Lost
        return reply

    rig.hub.script = lose
    (job,) = rig.grant(rig.site.spec("true"))
    await until(lambda: len(lost) == 2 and rig.hub.requests[-1].request_no > lost[0], "it goes on")
    # On a slow machine the start was told, too, in a request of its own.
    await until(lambda: (job, "end") in rig.hub.reports, "the end is told")
    assert len(set(lost)) == 1
    again = [
        body
        for body, request in zip(rig.hub.bodies, rig.hub.requests, strict=True)
        if request.request_no == lost[0]
    ]
    assert len(again) == 3
    assert len(set(again)) == 1
    numbers = [request.request_no for request in rig.hub.requests]
    assert numbers == sorted(numbers)
    assert set(rig.hub.reports) <= {(job, "start"), (job, "end")}


async def test_answered_is_the_last_reply_that_was_read(rig: Rig) -> None:
    await rig.start()
    (job,) = rig.grant(rig.site.spec("true"))
    await rig.reported(job, "end")
    await until(lambda: len(rig.hub.requests) > 3, "more syncs")
    for before, request in zip(rig.hub.requests, rig.hub.requests[1:], strict=False):
        assert request.answered == before.request_no
        assert request.seen[0] == 1


async def test_a_refused_request_is_said_anew_under_new_numbers(rig: Rig) -> None:
    await rig.start()
    refused: list[SyncRequest] = []

    def refuse(request: SyncRequest, reply: SyncReply) -> SyncReply:
        if request.reports and not refused:
            refused.append(request)
            raise Refused(422, "invalid")
        return reply

    rig.hub.script = refuse
    (job,) = rig.grant(rig.site.spec("true"))
    await until(lambda: rig.hub.reports.count((job, "end")) == 2, "the end is told again")
    again = next(r for r in rig.hub.requests if r.reports and r is not refused[0])
    assert again.request_no > refused[0].request_no
    assert again.reports[0].no > refused[0].reports[0].no


async def test_a_running_job_that_the_hub_forgot_runs_on_and_its_outcome_is_kept(rig: Rig) -> None:
    await rig.start()
    (job,) = rig.grant(rig.waiting())
    await rig.reported(job, "start")
    rig.hub.verdict = "stale_lease"
    rig.hub.unknown = [JobEpoch(job, 1)]
    rig.hub.hint()
    await until(lambda: not rig.held(), "it is not named any more")
    assert rig.pilot.jobs()
    rig.go.touch()
    await rig.reported(job, "end")
    await until(lambda: rig.hub.requests[-1].request_no > 0 and not rig.pilot.jobs(), "it ended")
    await rig.pilot.kill9()
    found, damage = journal.read(rig.pilot.directory / "journal")
    assert damage == ""
    assert found.ends[job].orphan


async def test_a_waiting_grant_that_the_hub_forgot_is_dropped(rig: Rig) -> None:
    await rig.start()
    runs, waits = rig.grant(rig.waiting(), rig.site.spec("sh", text="touch $CHAPPE_DATA/ran"))
    await rig.reported(runs, "start")
    assert rig.held() == {runs, waits}
    rig.hub.unknown = [JobEpoch(waits, 1)]
    rig.hub.hint()
    await until(lambda: rig.held() == {runs}, "it is not held any more")
    rig.go.touch()
    await rig.reported(runs, "end")
    (last,) = rig.grant(rig.site.spec("true"))
    await rig.reported(last, "end")
    assert not (rig.site.path / "data" / "ran").exists()
    assert all(job != waits for job, _ in rig.hub.reports)


async def test_a_grant_whose_signature_did_not_come_is_returned(rig: Rig) -> None:
    await rig.start()
    (job,) = rig.grant(rig.site.spec("true"), signed=False)
    await until(
        lambda: any(r.returned == [JobEpoch(job, 1)] for r in rig.hub.requests), "it is returned"
    )
    assert rig.hub.reports == []


async def test_drain_returns_what_waits_and_ends_after_what_runs(rig: Rig) -> None:
    await rig.start()
    runs, waits = rig.grant(rig.waiting(), rig.site.spec("true"))
    await rig.reported(runs, "start")
    rig.hub.drain = True
    rig.hub.hint()
    await until(
        lambda: any(JobEpoch(waits, 1) in r.returned for r in rig.hub.requests), "it is returned"
    )
    assert rig.hub.requests[-1].capacity is None
    assert rig.pilot.jobs()
    rig.go.touch()
    assert await rig.pilot.ended() == 0
    assert (runs, "end") in rig.hub.reports
    assert rig.hub.calls[-1] == ("POST", f"/v1/sessions/{rig.pilot.session}/end")


async def test_a_new_token_takes_a_new_head_and_nothing_is_killed(rig: Rig) -> None:
    await rig.start()
    (job,) = rig.grant(rig.waiting())
    await rig.reported(job, "start")
    (process,) = (pid for pid in rig.pilot.jobs() if leads(pid))
    path = rig.pilot.directory / "session.json"
    path.write_bytes(path.read_bytes().replace(b'"token":"token"', b'"token":"newer"'))
    rig.hub.tokens = {"newer"}
    rig.hub.hint()
    assert await rig.pilot.ended() == 1
    assert process in rig.pilot.jobs()
    await rig.pilot.start()
    rig.go.touch()
    await rig.reported(job, "end")


async def test_a_refused_token_alone_kills_nothing(rig: Rig) -> None:
    await rig.start()
    (job,) = rig.grant(rig.waiting())
    await rig.reported(job, "start")
    rig.hub.tokens = set()
    rig.hub.hint()
    await until(lambda: len(rig.pilot.logged("sync.failed")) > 1, "the token is refused")
    assert rig.pilot.jobs()
    rig.hub.tokens = {"token"}
    rig.go.touch()
    await rig.reported(job, "end")


async def test_a_dead_session_ends_everything(rig: Rig) -> None:
    await rig.start()
    (job,) = rig.grant(rig.waiting())
    await rig.reported(job, "start")

    def dead(_request: SyncRequest, _reply: SyncReply) -> SyncReply:
        raise Refused(409, "session_dead")

    rig.hub.script = dead
    rig.hub.hint()
    assert await rig.pilot.ended() == 3
    assert rig.pilot.jobs() == []
    assert rig.pilot.launcher() == 0


async def test_idle_one_poll_is_pending_and_nothing_else_is_asked(rig: Rig) -> None:
    await rig.start()
    await until(lambda: rig.hub.requests[-1].wait_s > 0, "it polls")
    before = len(rig.hub.calls)
    (job,) = rig.grant(rig.site.spec("true"))
    await rig.reported(job, "end")
    await until(lambda: rig.hub.requests[-1].wait_s > 0 and not rig.held(), "it polls again")
    assert len(rig.hub.calls) - before < 8


async def test_what_is_granted_while_an_idle_pilot_ends_is_handed_back(rig: Rig) -> None:
    given: list[str] = []

    def grant_to_the_poll(request: SyncRequest, reply: SyncReply) -> SyncReply:
        # The poll is answered because the pilot, idle for too long, woke the Hub.
        if request.wait_s and request.capacity is not None and not given:
            given.extend(rig.grant(rig.site.spec("true")))
            reply = msgspec.structs.replace(
                reply, grants=rig.hub.grants, submissions=rig.hub.submissions
            )
            rig.hub.grants, rig.hub.submissions = [], []
        return reply

    rig.hub.script = grant_to_the_poll
    await rig.start(idle_s=0.2)
    assert await rig.pilot.ended() == 0
    assert given
    assert [r.job for request in rig.hub.requests for r in request.returned] == given
    assert rig.hub.reports == []
