"""Graphs of Jobs: circles, and what becomes of a child."""

from __future__ import annotations

from itertools import pairwise

import pytest

from chappe.core.dag import after_parents, check_acyclic
from chappe.core.errors import Invalid
from chappe.core.jobs import ParentPolicy
from chappe.core.states import State


@pytest.mark.parametrize(
    "graph",
    [
        {},
        {"a": []},
        {"a": ["outside"], "b": ["outside"]},
        {"a": [], "b": ["a"], "c": ["a", "b"]},
        {"d": ["b", "c"], "c": ["a"], "b": ["a"], "a": []},
        {"a": ["x"], "x": ["y"]},
    ],
)
def test_graphs_without_a_circle(graph: dict[str, list[str]]) -> None:
    check_acyclic(graph)


@pytest.mark.parametrize(
    ("graph", "circles"),
    [
        ({"a": ["a"]}, [{"a"}]),
        ({"a": ["b"], "b": ["a"]}, [{"a", "b"}]),
        ({"a": ["b"], "b": ["c"], "c": ["a"]}, [{"a", "b", "c"}]),
        # What only hangs on a circle, or leads to one, is not named.
        ({"a": ["b"], "b": ["a"], "child": ["a"], "free": []}, [{"a", "b"}]),
        ({"a": ["b", "root"], "b": ["a"], "root": []}, [{"a", "b"}]),
        ({"a": ["b"], "b": ["a"], "c": ["d"], "d": ["c"]}, [{"a", "b"}, {"c", "d"}]),
        ({"deep": ["mid"], "mid": ["c"], "c": ["d"], "d": ["c"]}, [{"c", "d"}]),
    ],
)
def test_one_circle_is_named(graph: dict[str, list[str]], circles: list[set[str]]) -> None:
    with pytest.raises(Invalid) as caught:
        check_acyclic(graph)
    assert (caught.value.code, caught.value.field) == ("cycle", "parents")
    named = caught.value.message.split(": ")[1].split(" → ")
    assert named[0] == named[-1]
    assert set(named) in circles
    assert len(named) == len(set(named)) + 1
    assert all(parent in graph[job] for job, parent in pairwise(named))


def test_a_chain_of_ten_thousand_is_no_recursion() -> None:
    chain = {str(i): [str(i - 1)] for i in range(1, 10_000)}
    check_acyclic(chain)
    check_acyclic(dict(reversed(chain.items())))
    with pytest.raises(Invalid) as caught:
        check_acyclic(chain | {"0": ["9999"]})
    # The message stays readable: the ends of the circle, and how many are between.
    named = caught.value.message.split(": ")[1].split(" → ")
    assert named[0] == named[-1]
    assert named[5] == "(9991 more)"
    assert len(named) == 11


def test_a_fan_of_ten_thousand() -> None:
    leaves = {str(i): ["root"] for i in range(10_000)}
    check_acyclic(leaves | {"root": [], "join": list(leaves)})


@pytest.mark.parametrize(
    ("policy", "succeeded", "new"),
    [
        (ParentPolicy.FAIL, 3, State.PREPROCESSED),
        (ParentPolicy.FAIL, 2, State.FAILED),
        (ParentPolicy.FAIL, 0, State.FAILED),
        (ParentPolicy.ANYWAY, 3, State.PREPROCESSED),
        (ParentPolicy.ANYWAY, 0, State.PREPROCESSED),
        (ParentPolicy.SUCCEEDED, 3, State.PREPROCESSED),
        (ParentPolicy.SUCCEEDED, 1, State.PREPROCESSED),
        (ParentPolicy.SUCCEEDED, 0, State.FAILED),
    ],
)
def test_when_the_last_of_three_parents_is_final(
    policy: ParentPolicy, succeeded: int, new: State
) -> None:
    assert after_parents(policy, 3, succeeded) is new
