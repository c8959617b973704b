"""Shapes: what is alike, what fits a node at all, and what fits now."""

from __future__ import annotations

from typing import Any

import pytest

from chappe.core import limits
from chappe.core.jobs import AppRef, JobSpec, Resources
from chappe.core.rooms import Room
from chappe.core.shapes import (
    LADDER_S,
    Capacity,
    NodeRoom,
    Shape,
    misfit,
    round_wall,
    shape_key,
    shape_of,
)

GIB = 1 << 30


def node(**more: Any) -> Capacity:
    """A node of 8 cores and 8 GiB, all free."""
    fields = {"cores": 8, "mem_bytes": 8 * GIB, "node_cores": 8, "node_mem_bytes": 8 * GIB}
    return Capacity(**(fields | more))


def shape(**more: Any) -> Shape:
    return Shape(("paris",), **more)


def spec(*sites: str, **resources: Any) -> JobSpec:
    return JobSpec("id", "project", sites, AppRef("true"), resources=Resources(**resources))


def test_the_ladder_rises_to_the_longest_limit() -> None:
    assert list(LADDER_S) == sorted(set(LADDER_S))
    assert LADDER_S[-1] >= limits.WALL_MAX_S


@pytest.mark.parametrize(
    ("wall", "rounded"),
    [
        (None, 0),
        (0.001, 1),
        (30.5, 60),
        (60.0, 60),
        (60.1, 120),
        (121, 300),
        (3_599, 3_600),
        (3_601, 7_200),
        (86_400, 86_400),
        (limits.WALL_MAX_S, 366 * 86_400),
    ],
)
def test_limits_are_rounded_up(wall: float | None, rounded: int) -> None:
    assert round_wall(wall) == rounded


def test_rounding_never_shortens_a_limit() -> None:
    for step in LADDER_S:
        for wall in (step - 0.5, step, step + 0.5):
            if wall <= LADDER_S[-1]:
                assert round_wall(wall) >= wall


def test_a_shape_takes_what_matching_needs_and_no_more() -> None:
    one = shape_of(spec("b", "a", cores=4, mem_bytes=7, wall_s=61, nodes=2, ranks=8, gpus=1))
    assert one == Shape(("a", "b"), 4, 7, 120, 2, 8, 1)
    # Sites come in any order; times are rounded, and an estimate goes before a limit.
    same = spec("a", "b", cores=4, mem_bytes=7, wall_s=9e5, estimate_s=99, nodes=2, ranks=8, gpus=1)
    assert shape_of(same) == one


def test_keys_tell_shapes_apart() -> None:
    shapes = [
        shape(),
        shape(cores=2),
        shape(mem_bytes=2),
        shape(wall_s=60),
        shape(nodes=2),
        shape(ranks=2),
        shape(gpus=2),
        Shape(("paris", "rome")),
        Shape(("rome",)),
        shape(named=(("a", 1),)),
        shape(least_s=1),
    ]
    assert len({shape_key(s) for s in shapes}) == len(shapes)
    assert shape_key(shape(cores=2)) == shape_key(shape(cores=2))


@pytest.mark.parametrize(
    ("wanted", "capacity", "words"),
    [
        (shape(), node(), None),
        (shape(cores=8, mem_bytes=8 * GIB), node(), None),
        # What is not free now may be free later: only the whole node counts.
        (shape(cores=8, mem_bytes=8 * GIB), node(cores=0, mem_bytes=0), None),
        (shape(cores=9), node(), "it needs 9 cores and the pilot has 8"),
        (shape(mem_bytes=9 * GIB), node(), "bytes of memory"),
        (shape(nodes=2), node(), "it needs 2 nodes and the pilot has 1"),
        (shape(gpus=2), node(gpus=1), "it needs 2 GPUs and the pilot has 1"),
        (shape(gpus=1), node(gpus=1), None),
        (shape(gpus=0.25), node(), "it needs 0.25 GPUs and the pilot has 0"),
        (shape(nodes=2), node(nodes=2), None),
        (shape(named=(("lic", 2),)), node(named={"lic": 1}), "needs 2 lic and the site has 1"),
        (shape(named=(("lic", 2),)), node(named={"lic": 2}), None),
        (shape(least_s=60), node(left_s=30.0), "60 s is longer than the 30 s"),
        (shape(wall_s=3_600), node(), None),
        (shape(wall_s=3_600), node(left_s=3_600.0), None),
        (
            shape(wall_s=3_600),
            node(left_s=3_599.0),
            "estimate of 3600 s is longer than the 3599 s",
        ),
        (shape(wall_s=60), node(left_s=-5.0), "longer than the 0 s"),
        (shape(), node(left_s=1.0), None),
        (shape(), node(left_s=-1.0), "longer than the 0 s"),
    ],
)
def test_misfits_say_what_is_missing(wanted: Shape, capacity: Capacity, words: str | None) -> None:
    found = misfit(wanted, capacity)
    if words is None:
        assert found is None
    else:
        assert words in (found or "")


def test_room_fills_what_is_free_and_then_the_prefetch() -> None:
    room = Room(node(prefetch=2), most=100)
    assert [room.take(shape(cores=4)) for _ in range(5)] == [True, True, True, True, False]
    assert room.left == 96


def test_room_is_bounded_by_memory_too() -> None:
    room = Room(node(), most=100)
    assert [room.take(shape(mem_bytes=3 * GIB)) for _ in range(3)] == [True, True, False]
    # What needs little still fits.
    assert room.take(shape(mem_bytes=2 * GIB))


def test_room_ends_at_the_bound_of_a_sync() -> None:
    room = Room(node(prefetch=10), most=2)
    assert [room.take(shape()) for _ in range(3)] == [True, True, False]
    assert room.most(shape()) == 0


@pytest.mark.parametrize(
    ("wanted", "capacity", "most", "bound"),
    [
        (shape(), node(), 100, 8),
        (shape(cores=3), node(), 100, 2),
        (shape(cores=9), node(prefetch=1), 100, 1),
        (shape(mem_bytes=3 * GIB), node(), 100, 2),
        (shape(mem_bytes=3 * GIB), node(prefetch=5), 100, 7),
        (shape(), node(prefetch=500), 100, 100),
        (shape(), node(cores=0), 100, 0),
    ],
)
def test_the_bound_of_a_search(wanted: Shape, capacity: Capacity, most: int, bound: int) -> None:
    room = Room(capacity, most)
    assert room.most(wanted) == bound
    assert sum(room.take(wanted) for _ in range(200)) == bound


def test_shares_of_gpus_are_packed_and_whole_ones_stay_whole() -> None:
    room = Room(node(gpus=2, rooms=(NodeRoom(1, 8, 8 * GIB, (100, 100)),)), most=100)
    assert [room.take(shape(gpus=0.4)) for _ in range(3)] == [True, True, True]
    assert not room.take(shape(gpus=1))
    assert [room.take(shape(gpus=0.6)) for _ in range(2)] == [True, False]


def test_two_shares_leave_one_gpu_whole() -> None:
    room = Room(node(gpus=2, rooms=(NodeRoom(1, 8, 8 * GIB, (100, 100)),)), most=100)
    assert [room.take(shape(gpus=g)) for g in (0.5, 0.5, 1)] == [True, True, True]


def test_a_job_of_several_nodes_gets_each_from_another() -> None:
    room = Room(node(nodes=3, rooms=(NodeRoom(1, 2, GIB), NodeRoom(2, 4, GIB))), most=100)
    assert not room.take(shape(nodes=2, cores=5))
    assert not room.take(shape(nodes=3, cores=3))
    assert room.take(shape(nodes=2, cores=3))
    assert room.take(shape(nodes=3, cores=1))
    assert not room.take(shape(cores=2))


def test_room_that_is_kept_is_for_what_ends_in_time() -> None:
    room = Room(node(rooms=(NodeRoom(1, 8, GIB, (), 60.0),)), most=100)
    assert [room.take(shape(wall_s=w)) for w in (0, 120, 60)] == [False, False, True]


def test_named_resources_are_counted_and_can_be_kept() -> None:
    lic = shape(named=(("lic", 2),))
    room = Room(node(named={"lic": 5}, prefetch=9), 100, {"lic": 1})
    assert room.most(lic) == 2
    assert [room.take(lic) for _ in range(3)] == [True, True, False]
    room = Room(node(named={"lic": 5}), 100, {"lic": 4})
    assert room.keep_named(lic)
    assert not room.take(shape(named=(("lic", 1),)))
    assert not room.keep_named(shape())


def test_a_reservation_ends_the_round() -> None:
    room = Room(node(cores=1, reserve=True), most=100)
    assert room.reserve(shape(cores=8))
    assert not room.take(shape())
    assert not Room(node(), most=100).reserve(shape(cores=8))
