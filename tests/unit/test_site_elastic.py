"""The agent's own wishes: from what waits to the book, across deaths of the agent."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from msgspec import Raw

from chappe.core.elastic import NodeSize, PolicyKind
from chappe.core.shapes import Shape
from chappe.link.clock import new_id, now
from chappe.site import config
from chappe.site.batch import BatchJobs
from chappe.site.book import Batch, Book, Buried, CancelAsked, Forgotten, Said, Wanted, read_book
from chappe.site.config import SchedulerConfig, SiteConfig
from chappe.site.elastic import Elastic
from chappe.site.elastic_inputs import policy_of, situation
from chappe.site.paths import SitePaths
from chappe.site.schedulers.base import Phase
from chappe.site.schedulers.script import CLAIM
from chappe.site.wakeup import Wakeups
from chappe.wire.demand import Demand, PilotOffer, ShapeWaiting
from chappe.wire.sites import BatchJobIntent, BatchJobOrder

SHAPE = Shape(("s",), 4, wall_s=7_200)


def site(**elastic: str) -> SiteConfig:
    given = {"policy": '"fit"', "node_cores": "8", "maximum": "20", **elastic}
    text = config.TEMPLATE
    for key, value in given.items():
        head, mark, body = text.partition("[elastic]\n")
        lines = [f"{key} = {value}" if x.startswith(f"# {key} = ") else x for x in body.split("\n")]
        text = head + mark + "\n".join(lines)
    return config.parse(text, "site.toml")


def demand(jobs: int, *pilots: PilotOffer) -> Demand:
    return Demand(
        f"m{jobs}{len(pilots)}", [ShapeWaiting(SHAPE, jobs)] if jobs else [], 0, [*pilots]
    )


@pytest.fixture
def book(tmp_path: Path) -> Book:
    return Book(tmp_path / "book")


def agent(book: Book, **elastic: str) -> Elastic:
    return Elastic(site(**elastic), book, Wakeups())


def hear(agent: Elastic, demand: Demand) -> None:
    agent.heard(demand, agent.asked_for)
    agent.look()


def end(book: Book, agent: Elastic, batch: Batch, phase: Phase = Phase.ENDED) -> None:
    book.add(Said(batch.id, phase, "", now()))
    agent.ended(batch, now())


def test_nothing_is_asked_for_before_the_hub_has_spoken(book: Book) -> None:
    made = agent(book)
    made.look()
    assert not book.batches
    assert made.mark == ""
    hear(made, demand(6))
    assert [b.wanted.intent.nodes for b in book.batches.values()] == [1, 1, 1]
    assert {b.wanted.idle_s for b in book.batches.values()} == {300.0}
    assert made.mark == "m60"
    book.close()


def test_an_agent_that_was_killed_finds_what_it_wanted(tmp_path: Path, book: Book) -> None:
    hear(agent(book), demand(6))
    wanted = list(book.batches)
    again = Book(tmp_path / "book")  # the dead one closed nothing
    hear(agent(again), demand(6))
    assert list(again.batches) == wanted
    assert len(again.memory.untold) == 1
    again.close()
    book.close()


def test_decisions_wait_until_the_hub_has_them(tmp_path: Path, book: Book) -> None:
    made = agent(book)
    for jobs in (2, 4, 6):
        hear(made, demand(jobs))
    told = made.untold()
    assert [len(d.data["asks"]) for d in told] == [1, 1, 1]
    assert [d.no for d in told] == sorted({d.no for d in told})
    made.told(told[:2], told[1].no)
    assert made.untold() == told[2:]
    made.told(made.untold(), None)  # a hub of the version before, which takes none
    assert read_book(tmp_path / "book").memory.untold == []
    book.close()


def test_an_end_makes_what_was_known_out_of_date(book: Book) -> None:
    made = agent(book)
    hear(made, demand(2))
    (batch,) = book.batches.values()
    before = made.asked_for
    end(book, made, batch)
    made.look()
    assert not made.heard(demand(2), before), "an answer to an older question"
    made.look()
    assert len(book.batches) == 1
    hear(made, demand(2))
    assert len(book.batches) == 2
    book.close()


def test_pilots_that_die_at_once_are_not_asked_for_as_fast(book: Book) -> None:
    made = agent(book)
    hear(made, demand(2))
    (batch,) = book.batches.values()
    end(book, made, batch, Phase.FAILED)
    hear(made, demand(2))
    assert len(book.batches) == 1
    assert made.again_at() is not None
    book.close()


def test_what_a_pilot_tells_and_what_was_learned_outlive_the_agent(
    tmp_path: Path, book: Book
) -> None:
    made = agent(book, node_cores="0")
    hear(made, demand(100))
    (first,) = book.batches.values()
    book.add(Said(first.id, Phase.RUNNING, "", first.wanted.at + 40.0))
    hear(made, demand(100, PilotOffer(first.session, cores=16)))
    assert book.memory.node == NodeSize(16)
    assert len(book.batches) > 1
    end(book, made, first)
    book.add(Buried(first.id), Forgotten(first.id))
    book.close()
    memory = Book(tmp_path / "book").memory  # it was written anew when it was opened
    again = read_book(tmp_path / "book").memory
    assert again == memory == book.memory
    assert memory.waits.expected_s("", 1, first.wanted.intent.wall_s) == 40.0
    assert list(memory.spent_since(0.0)) == [""]
    assert not memory.spent_since(now() + 1)


def test_a_smaller_one_is_not_submitted_beside_what_it_replaces(book: Book) -> None:
    config_ = site(nodes="4", wait_s="600.0")
    made = Elastic(config_, book, Wakeups())
    jobs = BatchJobs(SitePaths.of(Path()), config_, book, made, Wakeups())
    old = Wanted(new_id(), BatchJobIntent(nodes=4), new_id(), True, now() - 601, 300.0)
    book.add(old)
    hear(made, demand(8))
    smaller = [b for b in jobs.all() if b.wanted.instead_of == old.id]
    assert [b.wanted.intent.nodes for b in smaller] == [2]
    assert book.batches[old.id].cancel
    assert jobs.awaits_another(smaller[0])
    book.add(Said(old.id, Phase.CANCELLED, "", now()))
    assert not jobs.awaits_another(smaller[0])
    book.close()


@pytest.mark.parametrize("sign", ["claim", "running"])
def test_what_has_begun_is_not_taken_back_and_nothing_is_put_in_its_place(
    tmp_path: Path, book: Book, sign: str
) -> None:
    config_ = site(nodes="4", wait_s="600.0")
    made = Elastic(config_, book, Wakeups())
    paths = SitePaths.of(tmp_path)
    jobs = BatchJobs(paths, config_, book, made, Wakeups())
    old = Wanted(new_id(), BatchJobIntent(nodes=4), new_id(), True, now() - 601, 300.0)
    book.add(old)
    hear(made, demand(8))
    (smaller,) = [b for b in jobs.all() if b.wanted.instead_of == old.id]
    jobs.spare_begun(())
    assert book.batches[old.id].cancel, "it waits"
    if sign == "claim":
        (paths.session(old.session) / CLAIM).mkdir(parents=True)
    else:
        book.add(Said(old.id, Phase.RUNNING, "", now()))
    jobs.spare_begun({old.id})
    assert book.batches[old.id].cancel, "it is ending"
    jobs.spare_begun(())
    assert not book.batches[old.id].cancel
    assert book.batches[smaller.id].cancel
    assert not read_book(tmp_path / "book").batches[old.id].cancel
    jobs.take([BatchJobOrder(old.id, Raw(b"{}"), cancel=True)])
    jobs.spare_begun(())
    assert book.batches[old.id].cancel, "what the hub orders is done, begun or not"
    book.close()


def test_an_order_to_cancel_is_stronger_than_a_take_back(book: Book) -> None:
    for entries in ((True, False), (False, True)):
        wanted = Wanted(new_id(), BatchJobIntent(), new_id(), True, now(), 300.0)
        book.add(wanted, *(CancelAsked(wanted.id, if_waiting=each) for each in entries))
        assert book.batches[wanted.id].cancel
        assert not book.batches[wanted.id].if_waiting
    book.close()


def test_what_was_asked_for_without_an_account_is_spent_from_the_sites(book: Book) -> None:
    made = site()
    made = msgspec.structs.replace(made, scheduler=SchedulerConfig("slurm", account="ocean"))
    at = now()
    for account, node_s in (("", 100.0), ("ocean", 10.0), ("ice", 1.0)):
        book.memory.ended(at - 1.0, account, node_s)
    assert situation(made, book, None, {}, at).spent == {"ocean": 110.0, "ice": 1.0}
    book.close()


def test_what_is_to_stay_stays_when_it_is_idle(book: Book) -> None:
    made = agent(book, minimum="2")
    hear(made, demand(0))
    assert [b.wanted.idle_s for b in book.batches.values()] == [0.0, 0.0]
    made.look()
    assert len(book.batches) == 2
    book.close()


@pytest.mark.parametrize(
    "shape",
    [
        Shape((), nodes=0),
        Shape((), nodes=-3),
        Shape((), nodes=1 << 60),
        Shape((), cores=0),
        Shape((), cores=-1),
        Shape((), wall_s=-5),
        Shape((), mem_bytes=-1),
        Shape((), gpus=-1.0),
        Shape((), gpus=float("nan")),
        Shape((), named=(("x", 0),)),
        Shape((), wall_s=1 << 62),
    ],
)
def test_a_hub_that_talks_nonsense_is_asked_for_nothing(book: Book, shape: Shape) -> None:
    made = agent(book)
    hear(made, Demand("m", [ShapeWaiting(shape, 5)], pilots=[PilotOffer("x", cores=-4)]))
    assert not book.batches
    hear(made, Demand("n", [ShapeWaiting(SHAPE, 1 << 62), ShapeWaiting(SHAPE, -2)]))
    assert not book.batches
    hear(made, Demand("o", [ShapeWaiting(SHAPE, 10**9)]))
    assert 0 < len(book.batches) <= 20, "the owner's limits hold, whatever the hub says"
    book.close()


def test_the_policy_of_a_site_is_the_narrower_of_two_sections() -> None:
    text = config.TEMPLATE.replace("# queued_max = 20", "queued_max = 3")
    assert policy_of(config.parse(text, "site.toml")).queued_most == 3
    keep = policy_of(config.parse(config.TEMPLATE, "site.toml"))
    assert (keep.kind, keep.keep, keep.wall_s) == (PolicyKind.KEEP, 1, None)
    late = policy_of(site(policy='"deadline"', deadline='"2026-12-01T08:00:00Z"'))
    assert late.deadline_at == 1_796_112_000.0
