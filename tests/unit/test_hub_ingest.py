"""The way into the journal: what waits together is stored together, and one that fails harms no other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from chappe.core import limits
from chappe.core.errors import Busy, Invalid, TooLarge, Unavailable
from chappe.hub.ingest import GROUP, QUICK, Intake
from chappe.store.journal import Arrival, Item
from chappe.wire.messages import Verdict


class Writer:
    """A writer that waits to be told to go on."""

    def __init__(self) -> None:
        self.groups: list[list[str]] = []
        self.bulk: list[bool] = []
        self.times: set[float] = set()
        self.go = asyncio.Event()
        self.fails: Callable[[Sequence[Arrival]], None] = lambda _arrivals: None

    async def write(
        self, _fn: object, arrivals: Sequence[Arrival], *, bulk: bool
    ) -> list[list[Verdict]]:
        self.groups.append([a.source for a in arrivals])
        self.bulk.append(bulk)
        self.times |= {a.received_at for a in arrivals}
        await self.go.wait()
        self.fails(arrivals)
        return [[Verdict("stored", a.source)] * len(a.items) for a in arrivals]


def arrival(source: str, count: int = 1, size: int = 1, **more: Any) -> Arrival:
    given: dict[str, Any] = {"received_at": 0.0} | more
    return Arrival(1, 0, "https", source, items=[Item(b"x" * size)] * count, **given)


def begin(intake: Intake, *arrivals: Arrival) -> list[asyncio.Task[list[Verdict]]]:
    return [asyncio.ensure_future(intake.take(a)) for a in arrivals]


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_what_waits_together_is_one_command() -> None:
    writer = Writer()
    intake = Intake(writer.write, lambda: 7.0)
    tasks = begin(intake, arrival("first"))
    await turns()
    tasks += begin(intake, *(arrival(f"s{i}", received_at=5.0) for i in range(3)))
    await turns()
    assert writer.groups == [["first"]]
    writer.go.set()
    verdicts = await asyncio.gather(*tasks)
    assert writer.groups == [["first"], ["s0", "s1", "s2"]]
    assert [v[0].uid for v in verdicts] == ["first", "s0", "s1", "s2"]
    assert writer.times == {7.0, 5.0}
    assert intake.waiting == 0


async def test_a_command_is_bounded_and_a_large_one_goes_the_way_of_bulk() -> None:
    writer = Writer()
    intake = Intake(writer.write, lambda: 7.0)
    tasks = begin(intake, arrival("a"), arrival("b", GROUP - 1), arrival("c", QUICK), arrival("d"))
    writer.go.set()
    await asyncio.gather(*tasks)
    assert writer.groups == [["a", "b"], ["c"], ["d"]] or writer.groups == [["a", "b"], ["c", "d"]]
    assert writer.bulk[0] is True


async def test_one_that_cannot_be_stored_harms_no_other() -> None:
    writer = Writer()

    def fails(arrivals: Sequence[Arrival]) -> None:
        if any(a.source == "bad" for a in arrivals):
            raise Invalid("the database cannot store this")

    writer.fails = fails
    intake = Intake(writer.write, lambda: 7.0)
    tasks = begin(intake, arrival("good"), arrival("bad"), arrival("fine"))
    writer.go.set()
    good, bad, fine = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(bad, Invalid)
    assert [v[0].uid for v in (good, fine) if isinstance(v, list)] == ["good", "fine"]
    assert intake.waiting == 0


async def test_a_database_that_is_down_is_told_to_all_and_not_asked_by_each() -> None:
    writer = Writer()

    def fails(_arrivals: Sequence[Arrival]) -> None:
        raise Unavailable("the disk is full")

    writer.fails = fails
    intake = Intake(writer.write, lambda: 7.0)
    tasks = begin(intake, arrival("a"), arrival("b"))
    writer.go.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(a, Unavailable) for a in answers)
    assert len(writer.groups) == 1


async def test_what_waits_is_bounded_in_number_and_size() -> None:
    writer = Writer()
    intake = Intake(writer.write, lambda: 7.0)
    most = limits.MESSAGES_PER_ARRIVAL
    tasks = begin(intake, *(arrival("x", most) for _ in range(limits.MESSAGES_WAITING // most)))
    await turns()
    with pytest.raises(Busy):
        await intake.take(arrival("one more"))
    with pytest.raises(TooLarge):
        await intake.take(arrival("too many", most + 1))
    writer.go.set()
    await asyncio.gather(*tasks)
    await intake.take(arrival("now"))
    writer.go.clear()
    tasks = begin(intake, arrival("a"), arrival("b", size=limits.MESSAGES_WAITING_BYTES - 1))
    await turns()
    with pytest.raises(Busy):
        await intake.take(arrival("c"))
    writer.go.set()
    await asyncio.gather(*tasks)


async def test_who_leaves_spoils_nothing() -> None:
    writer = Writer()
    intake = Intake(writer.write, lambda: 7.0)
    left, stays = begin(intake, arrival("left"), arrival("stays"))
    await turns()
    left.cancel()
    writer.go.set()
    assert (await stays)[0].uid == "stays"
    with pytest.raises(asyncio.CancelledError):
        await left
