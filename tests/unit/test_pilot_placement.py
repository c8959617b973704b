"""Cores, memory and lanes of one node, and the line of those that wait."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from chappe.pilot.nodes import Need, Node
from chappe.pilot.placement import LANE_MOST, Line, Place, Placement
from chappe.pilot.topology import Topology
from chappe.testing.nodes import plain

GIB = 1 << 30


def test_jobs_get_distinct_cpus_and_give_them_back() -> None:
    node = Placement([plain([0, 2, 4, 6], 4 * GIB)])
    first, second = node.take(Need(1, 0)), node.take(Need(3, 0))
    assert first is not None
    assert second is not None
    assert (first.cpus, second.cpus) == ([0], [2, 4, 6])
    assert node.take(Need(1, 0)) is None
    node.leave(second)
    third = node.take(Need(2, 0))
    assert third is not None
    assert third.cpus == [2, 4]


def test_memory_is_room_too() -> None:
    node = Placement([plain([0, 1], 4 * GIB)])
    taken = node.take(Need(1, 3 * GIB))
    assert taken is not None
    assert node.take(Need(1, 2 * GIB)) is None
    node.leave(taken)
    assert node.take(Need(1, 2 * GIB)) is not None


def test_what_never_fits() -> None:
    node = Placement([plain([0, 1], GIB)])
    assert node.fits_ever(Need(2, GIB))
    assert not node.fits_ever(Need(3, 0))
    assert not node.fits_ever(Need(1, GIB + 1))


def test_slots_override_cores_and_end_affinity() -> None:
    node = Placement([Node(Topology(((0, 1),)), GIB, 5)])
    slots = [node.take(Need(1, 0)) for _ in range(5)]
    assert all(slot is not None and slot.cpus == [] for slot in slots)
    assert node.take(Need(1, 0)) is None


def test_lanes_are_never_used_twice() -> None:
    node = Placement([plain([0], GIB)], first_lane=7)
    lanes = []
    for _ in range(3):
        slot = node.take(Need(1, 0))
        assert slot is not None
        lanes.append(slot.lane)
        node.leave(slot)
    assert lanes == [7, 8, 9]


def test_short_jobs_share_a_slot_and_long_ones_do_not() -> None:
    node = Placement([plain([0], GIB)])
    slot = node.take(Need(1, 0))
    assert slot is not None
    assert node.share(Need(1, 0), None) is None
    assert node.share(Need(1, 0), 10.0) is None
    assert node.share(Need(1, 1), 0.001) is None  # of another size
    shared = 0
    while node.share(Need(1, 0), 0.0001) is slot:
        shared += 1
    assert 1 + shared == slot.jobs == LANE_MOST
    for _ in range(shared):
        node.leave(slot)
    assert (node.free_cores, node.shared) == (0, 0)
    node.leave(slot)
    assert node.free_cores == 1


def test_a_slot_is_filled_up_when_half_empty() -> None:
    node = Placement([plain([0], GIB)])
    slot = node.take(Need(1, 0))
    assert slot is not None
    while node.share(Need(1, 0), 0.001):
        pass
    full = slot.jobs
    node.leave(slot)
    assert node.share(Need(1, 0), 0.001) is None
    while slot.jobs > full // 2 - 1:
        node.leave(slot)
    assert node.share(Need(1, 0), 0.001) is slot


def test_what_runs_already_takes_its_room_even_if_there_is_none() -> None:
    node = Placement([plain([0, 1], GIB)])
    known = node.occupy(Need(1), [Place("", {1})])
    assert known.cpus == [1]
    unknown = node.occupy(Need(2))
    assert unknown.cpus == []
    assert node.free_cores == -1
    assert node.take(Need(1, 0)) is None
    node.leave(unknown)
    slot = node.take(Need(1, 0))
    assert slot is not None
    assert slot.cpus == [0]


class Item(NamedTuple):
    name: str
    priority: int


def test_the_line_is_by_priority_then_by_arrival() -> None:
    line: Line[Item] = Line()
    for name, priority in (("a", 0), ("b", 5), ("c", 0), ("d", 5), ("e", -1)):
        line.push(Item(name, priority))
    line.push_front(Item("again", 0))
    assert [line.pop().name for _ in range(6)] == ["b", "d", "again", "a", "c", "e"]
    assert not line
    assert line.peek() is None
    with pytest.raises(IndexError):
        line.pop()
