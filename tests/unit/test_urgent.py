"""Cores that are kept for urgent Jobs: what the Hub grants into them, and what the pilot starts there."""

from __future__ import annotations

from chappe.core.rooms import Room
from chappe.core.shapes import Capacity, NodeRoom, Shape
from chappe.pilot.holdings import Holdings
from chappe.pilot.nodes import Need
from chappe.pilot.placement import Placement, Urgent
from chappe.testing.nodes import GIB, plain
from tests.unit.test_pilot_holdings import end, grant, hand, take

ONE = Shape(("s",), 1)


def room(cores: int, kept: int, reserve: int = 2, **told: object) -> Room:
    rooms = (NodeRoom(1, cores, GIB, (), None, kept),)
    capacity = Capacity(
        cores, GIB, node_cores=4, node_mem_bytes=GIB, urgent=100, urgent_cores=reserve, rooms=rooms
    )
    return Room(capacity, 100)


def test_others_leave_what_is_kept_and_urgent_jobs_take_it() -> None:
    offer = room(4, 2)
    assert (offer.most(ONE), offer.most(ONE, urgent=True)) == (2, 4)
    assert [offer.take(ONE, 99) for _ in range(3)] == [True, True, False]
    assert [offer.take(ONE, 100) for _ in range(3)] == [True, True, False]


def test_what_urgent_jobs_have_is_not_kept_again() -> None:
    offer = room(4, 2)
    assert offer.take(ONE, 100)
    # One core is kept still: of the three that are free others may have two.
    assert [offer.take(ONE) for _ in range(3)] == [True, True, False]


def test_a_job_too_large_for_the_rest_may_have_the_whole_node() -> None:
    large = Shape(("s",), 3)
    assert room(4, 2).take(large)
    assert not room(2, 2).take(large)
    middle = Shape(("s",), 2)
    assert not room(3, 2).take(middle)


def test_an_urgent_job_does_not_wait_for_a_large_one() -> None:
    rooms = (NodeRoom(1, 2, GIB, (), 30.0, 2),)
    capacity = Capacity(2, GIB, 4, GIB, urgent=100, urgent_cores=2, rooms=rooms)
    assert not Room(capacity, 9).take(ONE)
    assert Room(capacity, 9).take(ONE, 100)


def test_the_pilot_keeps_them_whatever_the_hub_grants() -> None:
    held = Holdings(Placement([plain(range(4))], urgent=Urgent(2, 100)))
    first, *_ = take(held, *(grant(name) for name in "abcd"))
    assert hand(held) == ["a", "b"]
    told = held.capacity(None)
    assert (told.urgent, told.urgent_cores) == (100, 2)
    take(held, grant("u", priority=100), grant("v", priority=500), grant("w", priority=100))
    assert hand(held) == ["v", "u"]  # the cores that are kept, and no others are free
    end(held, first)
    assert hand(held) == ["w"]


def test_nothing_is_gathered_for_a_job_that_only_lacks_what_is_kept() -> None:
    held = Holdings(Placement([plain(range(4))], urgent=Urgent(2, 100)))
    take(held, *(grant(name) for name in "abc"))
    hand(held)
    assert held.capacity(None).reserve
    assert held.capacity(None).rooms == (
        NodeRoom(1, 1, held.placement.node_mem_bytes, (), None, 1),
    )


def test_jobs_of_one_size_share_slots_only_with_their_kind() -> None:
    placed = Placement([plain(range(2))], urgent=Urgent(1, 100))
    slot = placed.take(Need(1))
    assert slot is not None
    assert placed.share(Need(1, urgent=True), 0.001) is None
    assert placed.share(Need(1), 0.001) is slot


def test_a_node_keeps_a_core_for_all_however_much_is_asked_for() -> None:
    placed = Placement([plain(range(2))], urgent=Urgent(50, 100))
    assert placed.nodes[0].reserve == 1
    assert placed.take(Need(1)) is not None
    assert placed.take(Need(1)) is None
    assert placed.take(Need(1, urgent=True)) is not None
