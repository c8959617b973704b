"""Nodes of one allocation that are set apart: for the pilot that places, and for the Hub that grants."""

from __future__ import annotations

import pytest

from chappe.core.errors import Invalid
from chappe.core.jobs import Resources, check_resources
from chappe.core.rooms import Room
from chappe.core.shapes import Capacity, NodeRoom, Shape, misfit
from chappe.pilot.nodes import Need
from chappe.pilot.placement import Placement, tags_of
from chappe.testing.nodes import GIB, plain

MPI = Need(2, nodes=2, tag="mpi")


def placement() -> Placement:
    """Four nodes of two cores, two of them for MPI."""
    names = [f"n{k}" for k in range(4)]
    nodes = [plain(range(2), name=name) for name in names]
    return Placement(nodes, tags=tags_of(names, {"mpi": 2}))


def test_the_last_nodes_are_set_apart_and_the_first_never() -> None:
    names = ["a", "b", "c", "d"]
    assert tags_of(names, {"mpi": 2}) == {"d": "mpi", "c": "mpi"}
    assert tags_of(names, {"mpi": 1, "io": 1}) == {"d": "mpi", "c": "io"}
    assert tags_of(names, {"mpi": 9, "io": 1}) == {"d": "mpi", "c": "mpi", "b": "mpi"}
    assert tags_of(["a"], {"mpi": 1}) == {}


def test_jobs_run_on_nodes_of_their_tag_and_on_no_other() -> None:
    p = placement()
    small = [p.take(Need(1)) for _ in range(4)]
    assert {slot.node.name for slot in small if slot is not None} == {"n0", "n1"}
    assert p.take(Need(1)) is None, "what is set apart is not for all, though it is free"
    wide = p.take(MPI)
    assert wide is not None
    assert {share.node.name for share in wide.shares} == {"n2", "n3"}
    assert p.take(MPI) is None
    assert p.fits_ever(MPI)
    assert not p.fits_ever(MPI._replace(nodes=3))
    assert not p.fits_ever(Need(1, tag="io"))


def test_room_is_gathered_where_the_job_may_run_and_nowhere_else() -> None:
    p = placement()
    small = p.take(Need(1, tag="mpi"), 0.0, 100.0)
    assert small is not None
    p.reserve(MPI, 0.0)
    assert p.reservation is not None
    assert {node.name for node in p.reservation.nodes} == {"n2", "n3"}
    assert p.take(Need(2), 0.0) is not None, "others go on"
    assert p.take(Need(1, tag="mpi"), 0.0) is None, "what would keep it waiting does not"


def test_the_hub_is_told_what_is_free_of_each_kind() -> None:
    p = placement()
    assert p.tags == {"mpi": 2}
    assert set(p.rooms(0.0)) == {
        NodeRoom(2, 2, GIB),
        NodeRoom(2, 2, GIB, tag="mpi"),
    }
    p.remove("n3")
    assert p.tags == {"mpi": 1}


def offer() -> Capacity:
    p = placement()
    return Capacity(8, 4 * GIB, 2, GIB, nodes=4, rooms=p.rooms(0.0), tags=p.tags)


def test_the_hub_grants_by_tag() -> None:
    room = Room(offer(), 100)
    tagged, plain_ = Shape(("s",), 2, node_tag="mpi"), Shape(("s",), 2)
    assert [room.most(tagged), room.most(plain_)] == [2, 2]
    assert [room.take(tagged) for _ in range(3)] == [True, True, False]
    assert [room.take(plain_) for _ in range(3)] == [True, True, False]


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (Shape(("s",), nodes=2), None),
        (Shape(("s",), nodes=2, node_tag="mpi"), None),
        (Shape(("s",), nodes=3), "3 nodes and the pilot has 2"),
        (Shape(("s",), nodes=3, node_tag="mpi"), "3 nodes tagged mpi and the pilot has 2"),
        (Shape(("s",), node_tag="io"), "1 nodes tagged io and the pilot has 0"),
    ],
)
def test_why_a_job_does_not_fit_is_said(shape: Shape, words: str | None) -> None:
    found = misfit(shape, offer())
    assert found is None if words is None else words in (found or "")


@pytest.mark.parametrize("tag", ["-x", "a b", "a" * 65, "ä"])
def test_a_tag_is_a_word(tag: str) -> None:
    with pytest.raises(Invalid, match="a tag is a letter"):
        check_resources(Resources(node_tag=tag))
