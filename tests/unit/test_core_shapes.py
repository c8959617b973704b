"""Shapes: what is alike, what fits a node at all, and what fits now."""

from __future__ import annotations

from typing import Any

import pytest

from chappe.core import limits
from chappe.core.jobs import AppRef, JobSpec, Resources
from chappe.core.shapes import (
    LADDER_S,
    Capacity,
    Room,
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
        (0.001, 60),
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
    # An expected time is for the pilot; sites come in any order; limits are rounded.
    same = spec("a", "b", cores=4, mem_bytes=7, wall_s=119, estimate_s=5, nodes=2, ranks=8, gpus=1)
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
        (shape(wall_s=3_600), node(), None),
        (shape(wall_s=3_600), node(left_s=3_600.0), None),
        (
            shape(wall_s=3_600),
            node(left_s=3_599.0),
            "its limit of 3600 s is longer than the 3599 s",
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
