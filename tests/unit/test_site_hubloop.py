"""The agent's loops and a Hub that is broken, or in the wrong hands: they ask it in no circles, the book has
a bound, whatever is ordered, and an order that is not understood is refused, that one alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import pytest

from chappe.core.ids import SiteId
from chappe.link.clock import new_id
from chappe.site import batch, hubloop
from chappe.site.batch import BatchJobs
from chappe.site.book import Book, Forgotten
from chappe.site.config import Hub, PilotConfig, SiteConfig, SiteIdentity
from chappe.site.elastic import Elastic
from chappe.site.hubloop import AgentId, HubLoop
from chappe.site.memory import Decided
from chappe.site.paths import SitePaths
from chappe.site.schedulers.base import Phase
from chappe.site.wakeup import Wakeups
from chappe.wire.demand import Decision
from chappe.wire.sites import (
    AgentSync,
    AgentSyncReply,
    BatchJobOrder,
    BatchJobView,
    Listing,
    StrictIntent,
)

LONG_S = 200.0
MOST = 50
PLAIN = msgspec.Raw(b"{}")

Answer = Callable[[AgentSync, int], AgentSyncReply]


class Clock:
    """Time passes where somebody waits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_000.0
        real = asyncio.sleep

        async def sleep(seconds: float) -> None:
            self.now += seconds
            await real(0)

        for module in (hubloop, batch):
            monkeypatch.setattr(module, "boottime", lambda: self.now)
        monkeypatch.setattr(asyncio, "sleep", sleep)


class Agent:
    """The loops of one, and the Hub that answers them at once."""

    def __init__(self, root: Path, clock: Clock) -> None:
        self.clock = clock
        self.paths = SitePaths.of(root)
        for directory in (self.paths.outbox, self.paths.apps, self.paths.data):
            directory.mkdir(parents=True)
        site = SiteIdentity(SiteId("s" * 36), "lyon", "p")
        config = SiteConfig(Hub("http://127.0.0.1:1"), site, pilot=PilotConfig(keep=0))
        self.book = Book(self.paths.book)
        self.wakeups = Wakeups()
        self.wakeups.online.set()
        elastic = Elastic(config, self.book, self.wakeups)
        self.jobs = BatchJobs(self.paths, config, self.book, elastic, self.wakeups)
        me = AgentId(new_id(), (), True)
        hub: Any = self
        self.loop = HubLoop(self.paths, config, hub, self.jobs, elastic, self.wakeups, me)
        self.answer: Answer = lambda sync, n: reply()
        self.listed: list[BatchJobView] = []
        self.requests = 0

    async def request(
        self, method: str, path: str, body: object = None, reply: object = None, **options: Any
    ) -> object:
        """What a HubClient would do."""
        self.requests += 1
        # A real one takes its time; nobody shall depend on it.
        await asyncio.sleep(0)
        if isinstance(body, AgentSync):
            return self.answer(body, self.requests)
        return Listing(batch_jobs=self.listed) if reply is Listing else None

    async def runs(self, loop: Callable[[], Any]) -> None:
        """Let a loop run for LONG_S of its own time, or until it has nothing to do."""
        task = asyncio.create_task(loop())
        end = self.clock.now + LONG_S
        idle = 0
        while not task.done() and self.clock.now < end and idle < 1_000:
            before = (self.requests, self.clock.now)
            await asyncio.sleep(0)
            idle = idle + 1 if before == (self.requests, self.clock.now) else 0
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def reply(**changes: Any) -> AgentSyncReply:
    return msgspec.structs.replace(AgentSyncReply(1, 60.0, decided=0), **changes)


def order(intent: msgspec.Raw = PLAIN, *, cancel: bool = False) -> BatchJobOrder:
    return BatchJobOrder(new_id(), intent, cancel)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(batch, "OPEN_MOST", MOST)
    return Clock(monkeypatch)


@pytest.fixture
async def agent(tmp_path: Path, clock: Clock) -> AsyncIterator[Agent]:
    made = Agent(tmp_path / "site", clock)
    yield made
    made.book.close()


@pytest.fixture(params=["orders", "cancels", "silence", "restored", "over", "old words"])
def restless(request: pytest.FixtureRequest, agent: Agent) -> Agent:
    """A Hub that has something to say whenever it is asked."""
    over = new_id()
    agent.book.add(Forgotten(over, "ended"))
    incarnations = count(1)
    answers: dict[str, Answer] = {
        "orders": lambda sync, n: reply(orders=[order() for _ in range(10)]),
        "cancels": lambda sync, n: reply(orders=[order(cancel=True) for _ in range(10)]),
        "silence": lambda sync, n: reply(silent=[new_id()]),
        "restored": lambda sync, n: reply(incarnation=next(incarnations)),
        "over": lambda sync, n: reply(
            orders=[BatchJobOrder(over, PLAIN)], accepted=[r.id for r in sync.reports]
        ),
        "old words": lambda sync, n: reply(
            orders=[order(msgspec.Raw(b'{"options":{"a":"b"}}'))], accepted=[]
        ),
    }
    agent.answer = answers[request.param]
    return agent


async def test_a_restless_hub_is_asked_in_no_circles(restless: Agent) -> None:
    await restless.runs(restless.loop.listen)
    assert restless.requests <= 3 * (LONG_S + hubloop.BURST + 1)
    assert len(restless.book.batches) <= MOST
    assert restless.paths.book.stat().st_size < 1 << 20


async def test_a_restless_hub_is_told_in_no_circles(restless: Agent) -> None:
    """Also where it lets no report be."""
    for _ in range(20):
        restless.jobs.take([order(cancel=True)])
        restless.jobs.now_is(restless.jobs.all()[-1], Phase.CANCELLED)
        restless.jobs.buried(restless.jobs.all()[-1])
    await restless.runs(restless.loop.report)
    assert restless.requests <= LONG_S + 2 * hubloop.BURST
    assert len(restless.book.batches) <= MOST


@pytest.mark.parametrize("decided", [0, 41, -1])
async def test_a_hub_that_takes_nothing_is_told_more_and_more_seldom(
    agent: Agent, decided: int
) -> None:
    agent.book.add(Decided(Decision(42, 1.0)))
    agent.jobs.take([order(cancel=True)])
    agent.jobs.now_is(agent.jobs.all()[0], Phase.CANCELLED)
    agent.jobs.buried(agent.jobs.all()[0])
    agent.answer = lambda sync, n: reply(decided=decided, accepted=[new_id()])
    await agent.runs(agent.loop.report)
    assert 5 < agent.requests < 20
    # Nothing was given up: a Hub that listens hears it all.
    agent.answer = lambda sync, n: reply(decided=42, accepted=[r.id for r in sync.reports])
    await agent.runs(agent.loop.report)
    assert not agent.book.batches
    assert not agent.book.memory.untold


async def test_the_reports_of_many_are_sent_without_pauses(agent: Agent) -> None:
    for _ in range(40):
        agent.jobs.take([order(cancel=True)])
        agent.jobs.now_is(agent.jobs.all()[-1], Phase.CANCELLED)
        agent.jobs.buried(agent.jobs.all()[-1])
    agent.answer = lambda sync, n: reply(accepted=[r.id for r in sync.reports])
    began = agent.clock.now
    await agent.runs(agent.loop.report)
    assert not agent.book.batches
    assert agent.requests == 1
    assert agent.clock.now == began


# -- versions that differ ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("intent", "named"),
    [
        (b'{"nodes":2,"exclusive":true}', "exclusive"),
        (b'{"options":{"qos":"low"}}', "options"),
        (b'{"nodes":"two"}', "nodes"),
        (b'{"nodes":0}', "nodes"),
        (b'{"queue":"q\\n#SBATCH --uid=0"}', "no name"),
        (b'{"queue":"' + b"x" * 1_000_000 + b'"}', "no name"),
        (b"[]", "object"),
        (b"[" * 10_000 + b"]" * 10_000, "understood"),
        (b"null", "object"),
    ],
)
async def test_one_order_that_is_not_understood_is_refused_and_no_other(
    agent: Agent, intent: bytes, named: str
) -> None:
    """Submitted without the wish that is unknown, it would be another allocation than was asked for."""
    strange, plain = order(msgspec.Raw(intent)), order(msgspec.Raw(b'{"nodes":2}'))
    agent.jobs.take([strange, plain])
    (refused,) = agent.jobs.dead()
    assert refused.id == strange.id
    assert (refused.state, refused.intended) == ("requested", False)
    agent.jobs.buried(refused)
    (report,) = agent.jobs.reports()
    assert (report.id, report.state) == (strange.id, "failed")
    assert named in report.message
    assert len(report.message) < 1_000
    assert agent.book.batches[plain.id].wanted.intent.nodes == 2
    assert agent.paths.book.stat().st_size < 10_000
    # As the agent that comes after finds it.
    agent.book.close()
    agent.book = Book(agent.paths.book)
    assert agent.book.batches[strange.id].state == "failed"


async def test_taking_back_needs_no_wish_to_be_understood(agent: Agent) -> None:
    strange = order(msgspec.Raw(b'{"exclusive":true}'), cancel=True)
    agent.jobs.take([strange])
    assert agent.book.batches[strange.id].cancel
    assert not agent.book.batches[strange.id].over


def test_a_sync_of_a_newer_hub_is_read_as_a_whole() -> None:
    """The wire itself: an intent with a new field inside of a reply, and in a listing."""
    body = b'{"incarnation":1,"ttl_s":60,"orders":[{"id":"a","intent":{"exclusive":true}},'
    body += b'{"id":"b","intent":{"nodes":3},"new":1}]}'
    found = msgspec.json.decode(body, type=AgentSyncReply)
    assert [bytes(o.intent) for o in found.orders] == [b'{"exclusive":true}', b'{"nodes":3}']
    view = (
        b'{"id":"a","site":"s","state":"running","intent":{"nodes":3,"options":{}},"created_at":1}'
    )
    assert msgspec.json.decode(view, type=BatchJobView).intent.nodes == 3
    with pytest.raises(msgspec.ValidationError, match="exclusive"):
        msgspec.json.decode(b'{"exclusive":true}', type=StrictIntent)
