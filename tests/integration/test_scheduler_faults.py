"""The agent's loops against a scheduler that lies, stalls, forgets and loses answers."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest

from chappe.core.ids import SiteId
from chappe.core.policy import Breaker, Policy, QueueRule
from chappe.link.clock import boottime, new_id, now
from chappe.site.batch import BatchJobs
from chappe.site.book import Book, CancelAsked
from chappe.site.calls import CallRecord, Calls, read_record
from chappe.site.check import began_unknown
from chappe.site.config import Hub, PilotConfig, SchedulerConfig, SiteConfig, SiteIdentity
from chappe.site.elastic import Elastic
from chappe.site.paths import SitePaths
from chappe.site.schedulers.base import Phase, Quirks
from chappe.site.schedulers.script import CLAIM
from chappe.site.schedulers.slurm import Slurm
from chappe.site.steps import Steps
from chappe.site.wakeup import Wakeups
from chappe.site.watch import watch
from chappe.testing.fake_slurm import FakeSlurm
from chappe.wire.sites import BatchJobIntent, BatchJobOrder, BatchJobView, NewSessionReply
from tests.integration.site_rig import wishes

WITHIN_S = 60.0
FAST = SchedulerConfig(kind="slurm", status_interval_s=0.2, status_fast_s=0.1)
FREE = Policy(submissions_per_s=100.0, submissions_burst=1000, queued_max=0)


class PatientSlurm(Slurm):
    """As Slurm, but for tests that cannot wait for half a minute."""

    quirks = Quirks(settle_s=0.5)


class StubHub:
    """Registers whatever it is asked to."""

    def __init__(self, config: SiteConfig) -> None:
        self._site = config.site

    async def request(self, method: str, path: str, body: Any, *_: Any, **__: Any) -> Any:
        if path == "/v1/sessions":
            return NewSessionReply(body.id, "token", self._site.project, self._site.id)
        return BatchJobView(body.id, self._site.id, "requested", body.intent, 1.0)


class Agent:
    """The loops that submit and watch, without a Hub's loops; made anew it is the next agent."""

    opened: ClassVar[list[Agent]] = []

    def __init__(
        self,
        root: Path,
        policy: Policy = FREE,
        pace: SchedulerConfig = FAST,
        wall_s: float = 600.0,
        timeout_s: float = 30.0,
    ) -> None:
        self.paths = SitePaths.of(root)
        for directory in (self.paths.outbox, self.paths.sessions):
            directory.mkdir(parents=True, exist_ok=True)
        self.config = SiteConfig(
            Hub("http://127.0.0.1:1"),
            SiteIdentity(SiteId("s" * 36), "lyon", "p"),
            pace,
            policy,
            PilotConfig(keep=0, wall_s=wall_s),
        )
        self.book = Book(self.paths.book)
        self.wakeups = Wakeups()
        self.wakeups.online.set()
        self.elastic = Elastic(self.config, self.book, self.wakeups)
        self.jobs = BatchJobs(self.paths, self.config, self.book, self.elastic, self.wakeups)
        self.calls = Calls(self.paths.calls, policy, shared=True, timeout_s=timeout_s)
        self.scheduler = PatientSlurm()
        self._runner = asyncio.Runner()
        self.opened.append(self)

    def order(
        self, intent: BatchJobIntent | None = None, cancel: bool = False, id: str = ""
    ) -> str:
        ident = id or new_id()
        self.jobs.take([BatchJobOrder(ident, wishes(intent or BatchJobIntent(cores=1)), cancel)])
        return ident

    def phase(self, ident: str) -> Phase:
        return self.book.batches[ident].phase

    async def until(self, condition: Callable[[], object], what: str) -> None:
        """Run the loops until `condition`."""
        hub: Any = StubHub(self.config)
        steps = Steps(
            self.paths,
            self.config,
            self.scheduler,
            self.calls,
            hub,
            self.jobs,
            self.elastic,
            self.wakeups,
        )
        pace = self.config.scheduler
        loops = [
            asyncio.create_task(steps.run()),
            asyncio.create_task(watch(self.jobs, self.scheduler, self.calls, self.wakeups, pace)),
        ]
        deadline = boottime() + WITHIN_S
        try:
            while not condition():
                assert boottime() < deadline, f"never happened: {what}"
                for loop in loops:
                    if loop.done():
                        loop.result()
                await asyncio.sleep(0.01)
        finally:
            for loop in loops:
                loop.cancel()
            for loop in loops:
                with suppress(asyncio.CancelledError):
                    await loop

    def run_until(self, condition: Callable[[], object], what: str) -> None:
        self._runner.run(self.until(condition, what))

    def close(self) -> None:
        self._runner.close()
        self.book.close()


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """No agent stays open, also when its test fails."""
    yield
    while Agent.opened:
        Agent.opened.pop().close()


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    made = FakeSlurm(tmp_path / "fake")
    monkeypatch.setenv("PATH", f"{made.bin}{os.pathsep}{os.environ['PATH']}")
    return made


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "site"


def submitted(agent: Agent, ident: str) -> Callable[[], bool]:
    return lambda: agent.book.batches[ident].scheduler_id is not None


# --- submit once


@pytest.mark.parametrize("how", ["accept_timeout", "late", "timeout", "garbage", "busy"])
def test_after_an_answer_that_tells_nothing_there_is_one_job(
    root: Path, fake: FakeSlurm, how: str
) -> None:
    fake.will("sbatch", how)
    agent = Agent(root)
    ident = agent.order()
    agent.run_until(submitted(agent, ident), f"submitted after {how}")
    assert [job["name"] for job in fake.jobs().values()] == [f"chappe-{ident}"]


@pytest.mark.parametrize("how", ["accept_hang", "hang"])
def test_a_command_that_never_ends_is_ended_and_there_is_one_job(
    root: Path, fake: FakeSlurm, how: str
) -> None:
    fake.will("sbatch", how)
    agent = Agent(root, timeout_s=6.0)
    ident = agent.order()
    agent.run_until(submitted(agent, ident), f"submitted after {how}")
    assert len(fake.jobs()) == 1


def test_a_refusal_is_final(root: Path, fake: FakeSlurm) -> None:
    fake.will("sbatch", "refuse")
    agent = Agent(root)
    ident = agent.order()
    agent.run_until(lambda: agent.phase(ident) is Phase.FAILED, "failed")
    assert "invalid partition" in agent.book.batches[ident].message
    assert len(fake.calls("sbatch")) == 1


def test_nothing_is_submitted_again_while_one_of_the_sources_is_silent(
    root: Path, fake: FakeSlurm
) -> None:
    fake.will("sbatch", "accept_timeout")
    fake.will("squeue", "empty")
    fake.will("sacct", "fail")
    agent = Agent(root)
    ident = agent.order()
    agent.run_until(submitted(agent, ident), "found")
    assert len(fake.calls("sbatch")) == 1


def test_an_agent_after_the_one_that_was_killed_looks_before_it_submits(
    root: Path, fake: FakeSlurm
) -> None:
    fake.will("sbatch", "accept_hang")
    first = Agent(root)
    ident = first.order()
    first.run_until(fake.jobs, "taken by the scheduler")
    first.close()
    second = Agent(root)
    second.run_until(submitted(second, ident), "found by the next agent")
    assert len(fake.calls("sbatch")) == 1


def test_a_job_that_began_and_was_forgotten_is_not_submitted_again(
    root: Path, fake: FakeSlurm
) -> None:
    fake.will("sbatch", "accept_timeout")
    fake.will("squeue", "empty")
    agent = Agent(root)
    ident = agent.order()
    agent.run_until(fake.jobs, "taken")
    claim = agent.paths.session(agent.book.batches[ident].session) / CLAIM
    claim.mkdir(exist_ok=True)
    (claim / "id").write_text("1\n")
    fake.change("1", listed=False, history=None)
    agent.run_until(submitted(agent, ident), "known by its claim")
    assert agent.book.batches[ident].scheduler_id == "1"
    assert len(fake.calls("sbatch")) == 1


def test_the_id_that_pbs_gives_a_script_is_the_one_that_qsub_told(
    root: Path, fake: FakeSlurm
) -> None:
    fake.will("sbatch", "accept_timeout")
    agent = Agent(root)
    ident = agent.order()
    agent.run_until(fake.jobs, "taken")
    claim = agent.paths.session(agent.book.batches[ident].session) / CLAIM
    claim.mkdir(exist_ok=True)
    (claim / "id").write_text("1.server.example.org\n")
    agent.run_until(submitted(agent, ident), "known by its name and its claim")
    assert agent.book.batches[ident].scheduler_id == "1"
    assert not fake.calls("scancel")


def test_a_scheduler_of_our_own_is_believed_more_than_the_allocation_around_it(
    root: Path, fake: FakeSlurm
) -> None:
    fake.will("sbatch", "accept_timeout")
    agent = Agent(root)
    agent.scheduler.quirks = Quirks(shared=False, settle_s=0.0)
    ident = agent.order()
    agent.run_until(fake.jobs, "taken")
    claim = agent.paths.session(agent.book.batches[ident].session) / CLAIM
    claim.mkdir(exist_ok=True)
    (claim / "id").write_text("4711\n")
    agent.run_until(submitted(agent, ident), "found by its name")
    assert agent.book.batches[ident].scheduler_id == "1"
    assert not fake.calls("scancel")


def test_of_two_jobs_under_one_name_only_the_first_is_kept(root: Path, fake: FakeSlurm) -> None:
    fake.will("sbatch", "accept_timeout")
    agent = Agent(root)
    ident = agent.order()
    agent.run_until(fake.jobs, "taken")
    # Somebody, or a scheduler's own retry, submitted it once more.
    with_name = f"--job-name=chappe-{ident}"
    subprocess.run(["sbatch", with_name], check=True)
    agent.run_until(submitted(agent, ident), "found")
    assert agent.book.batches[ident].scheduler_id == "1"
    agent.run_until(lambda: fake.jobs()["2"]["state"] == "CANCELLED", "the second is cancelled")
    assert fake.jobs()["1"]["state"] == "PENDING"


def test_an_end_of_the_job_that_has_no_pilot_is_no_end_of_the_session(
    root: Path, fake: FakeSlurm
) -> None:
    agent = Agent(root)
    ident = agent.order()
    agent.run_until(submitted(agent, ident), "submitted")
    # An older submission is taken up after all, and begins first: it has the pilot.
    subprocess.run(["sbatch", f"--job-name=chappe-{ident}"], check=True)
    claim = agent.paths.session(agent.book.batches[ident].session) / CLAIM
    claim.mkdir()
    (claim / "id").write_text("2\n")
    fake.change("2", state="RUNNING", history="RUNNING")
    fake.change("1", state="FAILED", history="FAILED")
    agent.run_until(
        lambda: agent.phase(ident) in (Phase.RUNNING, Phase.FAILED), "the scheduler's word"
    )
    assert agent.phase(ident) is Phase.RUNNING
    assert agent.book.batches[ident].scheduler_id == "2"
    fake.change("2", state="COMPLETED", history="COMPLETED")
    agent.run_until(lambda: agent.phase(ident) is Phase.ENDED, "the end")


# --- what is no end


@pytest.mark.parametrize("how", ["garbage", "empty", "partial", "fail"])
def test_an_answer_without_a_job_is_no_end_of_it(root: Path, fake: FakeSlurm, how: str) -> None:
    agent = Agent(root)
    idents = [agent.order() for _ in range(4)]
    agent.run_until(lambda: all(submitted(agent, i)() for i in idents), "submitted")
    for job in fake.jobs():
        fake.change(job, state="RUNNING", history="RUNNING")
    agent.run_until(lambda: all(agent.phase(i) is Phase.RUNNING for i in idents), "running")
    before = len(fake.calls("squeue"))
    fake.will("squeue", how, how)
    agent.run_until(lambda: len(fake.calls("squeue")) >= before + 3, "some more looks")
    assert all(agent.phase(i) is Phase.RUNNING for i in idents)


@pytest.mark.parametrize("history", [None, "PENDING", "RUNNING", "NODE_FAIL", "NONSENSE"])
def test_a_job_that_vanished_has_not_ended(
    root: Path, fake: FakeSlurm, history: str | None
) -> None:
    agent = Agent(root)
    ident = agent.order()
    agent.run_until(submitted(agent, ident), "submitted")
    fake.change("1", state="RUNNING")
    agent.run_until(lambda: agent.phase(ident) is Phase.RUNNING, "running")
    fake.change("1", listed=False, history=history)
    before = len(fake.calls("sacct"))
    agent.run_until(lambda: len(fake.calls("sacct")) >= before + 4, "some more looks")
    assert agent.phase(ident) is Phase.RUNNING


def test_an_id_that_names_another_job_now_says_nothing(root: Path, fake: FakeSlurm) -> None:
    agent = Agent(root)
    ident = agent.order()
    agent.run_until(submitted(agent, ident), "submitted")
    fake.change("1", state="RUNNING")
    agent.run_until(lambda: agent.phase(ident) is Phase.RUNNING, "running")
    fake.change("1", name="somebody-else", state="COMPLETED", history="COMPLETED")
    before = len(fake.calls("squeue"))
    agent.run_until(lambda: len(fake.calls("squeue")) >= before + 4, "some more looks")
    assert agent.phase(ident) is Phase.RUNNING


def test_an_end_that_is_taken_back_was_none(root: Path, fake: FakeSlurm) -> None:
    agent = Agent(root)
    ident = agent.order()
    agent.run_until(submitted(agent, ident), "submitted")
    fake.change("1", state="FAILED")
    seen = len(fake.calls("squeue"))
    agent.run_until(lambda: len(fake.calls("squeue")) > seen, "a first look")
    fake.change("1", state="RUNNING")
    agent.run_until(lambda: agent.phase(ident) in (Phase.RUNNING, Phase.FAILED), "the next look")
    fake.change("1", state="COMPLETED")
    agent.run_until(lambda: agent.phase(ident) in (Phase.ENDED, Phase.FAILED), "the end")


def test_an_end_in_the_history_is_one_when_it_was_seen_twice(root: Path, fake: FakeSlurm) -> None:
    agent = Agent(root)
    ident = agent.order()
    agent.run_until(submitted(agent, ident), "submitted")
    before = len(fake.calls("sacct"))
    fake.change("1", listed=False, history="COMPLETED")
    agent.run_until(lambda: agent.phase(ident) is Phase.ENDED, "ended")
    assert len(fake.calls("sacct")) >= before + 2


def test_what_the_scheduler_forgot_ends_when_its_whole_time_has_passed(
    root: Path, fake: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chappe.site.batch.HARD_END_MARGIN_S", 0.0)
    agent = Agent(root, wall_s=1.0)
    agent.config = msgspec.structs.replace(
        agent.config, pilot=PilotConfig(keep=0, wall_s=1.0, kill_s=0.5)
    )
    agent.jobs = BatchJobs(agent.paths, agent.config, agent.book, agent.elastic, agent.wakeups)
    ident = agent.order()
    agent.run_until(submitted(agent, ident), "submitted")
    fake.change("1", listed=False, history="PENDING")
    agent.run_until(lambda: agent.phase(ident) is Phase.ENDED, "given up")
    assert "whole time" in agent.book.batches[ident].message


def test_what_began_and_has_no_id_is_asked_about_ever_less_and_ends_with_its_time(
    root: Path, fake: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.will("sbatch", "accept_timeout")
    fake.will("squeue", "empty")
    agent = Agent(root, wall_s=600.0)
    ident = agent.order()
    agent.run_until(fake.jobs, "taken")
    batch = agent.book.batches[ident]
    (agent.paths.session(batch.session) / CLAIM).mkdir(exist_ok=True)
    fake.change("1", listed=False, history=None)
    began_at = now()
    pauses = []
    for later_s in (0.0, 1_000.0, 1_200.0):
        monkeypatch.setattr("chappe.site.batch.now", lambda at=began_at + later_s: at)
        pauses.append(agent.jobs.pass_claimed(batch))
    assert pauses == pytest.approx([60.0, 250.0, 300.0], abs=5.0)
    assert not batch.over
    (finding,) = began_unknown(agent.paths, agent.config)
    assert ident in finding.what
    assert batch.session in finding.remedy
    monkeypatch.setattr("chappe.site.batch.now", lambda: began_at + 1_300.0)
    second = Agent(root)
    second.run_until(lambda: second.phase(ident) is Phase.ENDED, "given up")
    assert len(fake.calls("sbatch")) == 1


def test_a_limit_that_was_made_shorter_since_ends_nothing_early(
    root: Path, fake: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Agent(root, wall_s=6_000.0)
    ident = first.order()
    first.run_until(submitted(first, ident), "submitted")
    first.close()
    second = Agent(root, wall_s=60.0)
    second.jobs.pass_hard_ends()
    seen_at = now()
    monkeypatch.setattr("chappe.site.batch.now", lambda: seen_at + 3_000.0)
    second.jobs.pass_hard_ends()
    assert not second.book.batches[ident].over
    monkeypatch.setattr("chappe.site.batch.now", lambda: seen_at + 9_000.0)
    second.jobs.pass_hard_ends()
    assert second.phase(ident) is Phase.ENDED


# --- the owner's policy


def test_submissions_keep_the_pace_also_across_agents(root: Path, fake: FakeSlurm) -> None:
    policy = Policy(submissions_per_s=0.001, submissions_burst=3, queued_max=0)
    agent = Agent(root, policy)
    for _ in range(6):
        agent.order()
    agent.run_until(lambda: len(fake.jobs()) == 3, "the burst")
    again = Agent(root, policy)
    before = len(fake.calls("squeue"))
    again.run_until(lambda: len(fake.calls("squeue")) >= before + 4, "some more looks")
    assert len(fake.calls("sbatch")) == 3


@pytest.mark.parametrize(
    "policy",
    [
        msgspec.structs.replace(FREE, queued_max=2),
        msgspec.structs.replace(FREE, running_max=2),
        msgspec.structs.replace(FREE, nodes_max=2),
        msgspec.structs.replace(FREE, queues={"q": QueueRule(queued_max=2)}),
        msgspec.structs.replace(FREE, queues={"q": QueueRule(running_max=2)}),
    ],
)
def test_no_more_is_submitted_than_there_is_room_and_the_next_when_there_is(
    root: Path, fake: FakeSlurm, policy: Policy
) -> None:
    agent = Agent(root, policy)
    idents = [agent.order(BatchJobIntent(cores=1, queue="q")) for _ in range(3)]
    agent.run_until(lambda: len(fake.jobs()) == 2, "two submitted")
    before = len(fake.calls("squeue"))
    agent.run_until(lambda: len(fake.calls("squeue")) >= before + 3, "some more looks")
    assert len(fake.jobs()) == 2
    fake.change("1", state="COMPLETED", history="COMPLETED")
    agent.run_until(lambda: agent.phase(idents[0]) is Phase.ENDED, "the end of one")
    next_round(agent)
    agent.run_until(lambda: len(fake.jobs()) == 3, "the third")


def test_what_was_registered_while_the_scheduler_was_left_alone_waits_for_room(
    root: Path, fake: FakeSlurm
) -> None:
    policy = msgspec.structs.replace(FREE, queued_max=1)
    calls = SitePaths.of(root).calls
    calls.parent.mkdir(parents=True)
    calls.write_bytes(msgspec.json.encode(CallRecord(0.0, breaker=Breaker(3, now() + 600.0))))
    first = Agent(root, policy)
    idents = [first.order() for _ in range(3)]
    first.run_until(
        lambda: all(first.book.batches[i].registered for i in idents), "all are registered"
    )
    first.close()
    calls.unlink()
    second = Agent(root, policy)
    second.run_until(fake.jobs, "one submitted")
    before = len(fake.calls("squeue"))
    second.run_until(lambda: len(fake.calls("squeue")) >= before + 3, "some more looks")
    assert len(fake.jobs()) == 1


def next_round(agent: Agent) -> None:
    """What waits for room is tried again soon, by an agent whose loops begin anew."""
    agent.wakeups.batches.set()


def test_what_the_policy_never_allows_fails_at_once_naming_it(root: Path, fake: FakeSlurm) -> None:
    agent = Agent(root, msgspec.structs.replace(FREE, accounts=["ours"]))
    refused = agent.order(BatchJobIntent(cores=1, account="theirs"))
    hostile = agent.order(BatchJobIntent(cores=1, queue="q\n#SBATCH --uid=root"))
    agent.run_until(
        lambda: {agent.phase(i) for i in (refused, hostile)} == {Phase.FAILED}, "both failed"
    )
    assert "ours" in agent.book.batches[refused].message
    assert fake.calls("sbatch") == []


def test_many_cancels_are_one_command(root: Path, fake: FakeSlurm) -> None:
    agent = Agent(root, msgspec.structs.replace(FREE, cancel_batch=3))
    idents = [agent.order() for _ in range(5)]
    agent.run_until(lambda: all(submitted(agent, i)() for i in idents), "submitted")
    for ident in idents:
        agent.order(cancel=True, id=ident)
    agent.run_until(lambda: all(agent.phase(i) is Phase.CANCELLED for i in idents), "cancelled")
    assert [len(argv) for _, argv in fake.calls("scancel")] == [3, 2]


def test_what_is_taken_back_and_has_begun_is_not_cancelled(root: Path, fake: FakeSlurm) -> None:
    agent = Agent(root)
    begun, waiting = agent.order(), agent.order()
    for ident in (begun, waiting):
        agent.run_until(submitted(agent, ident), "submitted")
    ids = {i: agent.book.batches[i].scheduler_id for i in (begun, waiting)}
    claim = agent.paths.session(agent.book.batches[begun].session) / CLAIM
    claim.mkdir(exist_ok=True)  # the scheduler has not said yet that it runs
    agent.book.add(*(CancelAsked(i, if_waiting=True) for i in (begun, waiting)))
    agent.run_until(lambda: agent.phase(waiting) is Phase.CANCELLED, "what waits is taken back")
    told = [word for _, argv in fake.calls("scancel") for word in argv]
    assert ids[waiting] in told
    assert ids[begun] not in told
    assert not agent.book.batches[begun].cancel
    assert not agent.book.batches[begun].over


def test_one_query_for_all_and_none_sooner_than_the_interval(root: Path, fake: FakeSlurm) -> None:
    pace = SchedulerConfig(kind="slurm", status_interval_s=2.0, status_fast_s=1.0)
    agent = Agent(root, pace=pace)
    idents = [agent.order() for _ in range(5)]
    agent.run_until(lambda: all(submitted(agent, i)() for i in idents), "submitted")
    calls = len(fake.calls("squeue"))

    def nervous() -> bool:
        agent.wakeups.watch.set()
        return len(fake.calls("squeue")) >= calls + 3

    agent.run_until(nervous, "three looks")
    assert sum("--name" in " ".join(argv) for _, argv in fake.calls("squeue")) == 0
    looks = fake.calls("squeue")[calls:]
    assert all(later[0] - earlier[0] >= 0.9 for earlier, later in pairwise(looks))
    assert all("--jobs=1,2,3,4,5" in argv for _, argv in looks)


def test_a_scheduler_that_fails_again_and_again_is_left_alone(root: Path, fake: FakeSlurm) -> None:
    agent = Agent(root)
    agent.order()
    fake.will("sbatch", *["busy"] * 50)
    fake.will("squeue", *["fail"] * 50)

    def broken() -> bool:
        record = read_record(agent.paths.calls)
        return record is not None and record.breaker.failures >= 3

    agent.run_until(broken, "three failures")
    record = read_record(agent.paths.calls)
    assert record is not None
    assert record.breaker.until > 0
    assert sum(counts.calls for counts in record.counts.values()) == 3


def test_every_call_is_counted(root: Path, fake: FakeSlurm) -> None:
    agent = Agent(root)
    ident = agent.order()
    agent.run_until(submitted(agent, ident), "submitted")
    fake.change("1", state="COMPLETED", history="COMPLETED")
    agent.run_until(lambda: agent.phase(ident) is Phase.ENDED, "ended")
    record = read_record(agent.paths.calls)
    assert record is not None
    assert record.counts["submit"].calls == len(fake.calls("sbatch")) == 1
    # One may have been ended before it wrote anything down itself.
    assert record.counts["status"].calls >= len(fake.calls("squeue")) >= 2
