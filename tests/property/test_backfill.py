"""A large Job begins within the bound that estimates give, however many small ones arrive.

Nodes run Jobs with estimates that hold. A large Job becomes the first in line; from then on small ones come
without end, in any sizes, and start wherever the pilot lets them.
"""

from __future__ import annotations

from math import inf

from hypothesis import given
from hypothesis import strategies as st

from chappe.core.rooms import Room
from chappe.core.shapes import Capacity, Shape
from chappe.pilot.nodes import Need
from chappe.pilot.placement import Placement, Slot
from chappe.testing.nodes import GIB, big, plain

CORES = 4

TIMES = st.integers(1, 40)
SMALL = st.tuples(st.integers(1, CORES), TIMES | st.none(), st.integers(1, 60))
"""Cores, what its user expects, and how long it takes when nobody said."""


class World:
    """Jobs that end when they said, and a clock that goes from end to end."""

    def __init__(self, placement: Placement) -> None:
        self.placement = placement
        self.running: list[tuple[float, int, Slot]] = []
        self.now = 0.0

    def run(self, need: Need, time_s: float | None, really_s: float, *, first: bool) -> bool:
        slot = self.placement.take(
            need, self.now, inf if time_s is None else time_s, inf, first=first
        )
        if slot is not None:
            self.running.append((self.now + really_s, slot.lane, slot))
        return slot is not None

    def step(self) -> None:
        """To the next ends."""
        self.now = min(at for at, _, _ in self.running)
        for run in [run for run in self.running if run[0] == self.now]:
            self.running.remove(run)
            self.placement.leave(run[2])


@given(
    st.integers(1, 3),
    st.lists(st.tuples(st.integers(1, CORES), TIMES), max_size=8),
    st.integers(1, 3),
    st.integers(1, CORES),
    st.lists(SMALL, min_size=1, max_size=12),
)
def test_a_large_job_begins_when_the_estimates_said(
    nodes: int,
    before: list[tuple[int, int]],
    wide: int,
    cores: int,
    small: list[tuple[int, int | None, int]],
) -> None:
    world = World(Placement([plain(range(CORES), GIB, f"n{n}") for n in range(nodes)]))
    for many, time_s in before:
        world.run(Need(many), time_s, time_s, first=True)
    large = Need(cores, nodes=min(wide, nodes))
    world.placement.reserve(large, world.now)
    kept = world.placement.reservation
    assert kept is not None
    bound = kept.begins_at(world.now)
    assert bound < inf
    while not world.run(large, 1, 1, first=True):
        assert world.now < bound
        for many, said, really_s in small:
            time_s = really_s if said is None else said
            world.run(Need(many), said, time_s, first=False)
        world.step()
    assert world.now <= bound


@given(
    st.lists(st.tuples(st.integers(1, CORES), TIMES | st.none()), max_size=6),
    st.integers(1, CORES),
    st.lists(st.tuples(st.integers(1, CORES), TIMES | st.none()), max_size=10),
)
def test_what_the_hub_may_grant_meanwhile_the_pilot_can_start(
    before: list[tuple[int, int | None]], cores: int, small: list[tuple[int, int | None]]
) -> None:
    world = World(Placement([plain(range(CORES))]))
    for many, time_s in before:
        world.run(Need(many), time_s, 1, first=True)
    world.placement.reserve(Need(cores), 0.0)
    rooms = world.placement.rooms(0.0)
    room = Room(Capacity(CORES, GIB, CORES, GIB, rooms=rooms), 100)
    if not rooms:
        return
    for many, time_s in small:
        if room.take(Shape(("s",), many, wall_s=time_s or 0)):
            assert world.run(Need(many), time_s, 1, first=False)


GPUS = st.sampled_from([0, 0, 25, 40, 50, 100, 200, 300])


@given(st.lists(st.tuples(st.integers(1, 3), GPUS, st.booleans()), max_size=40))
def test_a_node_never_gives_more_than_it_has(wanted: list[tuple[int, int, bool]]) -> None:
    node = big(domains=2, cpus=4, gpus=2)
    placement = Placement([node])
    taken: list[Slot] = []
    for cores, gpus, back in wanted:
        if back and taken:
            placement.leave(taken.pop(0))
        need = Need(cores, gpus=gpus)
        fits = node.fits(need)
        slot = placement.take(need)
        assert (slot is not None) == fits
        taken += [] if slot is None else [slot]
        cpus = [cpu for s in taken for cpu in s.cpus]
        assert len(cpus) == len(set(cpus)) == sum(s.need.cores for s in taken)
        for uuid, free in node.free_gpus.items():
            used = sum(s.shares[0].gpus.get(uuid, 0) for s in taken)
            assert 0 <= used == 100 - free
        assert all(sum(s.shares[0].gpus.values()) == s.need.gpus for s in taken)
