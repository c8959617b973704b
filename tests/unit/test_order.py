"""The order of the files: none of its names is out of date."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.order import LONGEST, longest_first, scope


def test_each_name_is_a_file_or_directory_of_tests(repository: Path) -> None:
    assert [name for name in LONGEST if not (repository / name).exists()] == []
    assert len(set(LONGEST)) == len(LONGEST)


@pytest.mark.parametrize(
    ("nodeid", "expected"),
    [
        ("tests/chaos/test_deaths.py::test_a[b::c]", "tests/chaos"),
        ("tests/unit/test_order.py::test_a", "tests/unit/test_order.py"),
    ],
)
def test_chaos_stays_together_and_others_by_file(nodeid: str, expected: str) -> None:
    assert scope(nodeid) == expected


def test_the_longest_come_first_and_the_rest_stays_in_its_order(
    request: pytest.FixtureRequest, repository: Path
) -> None:
    items = list(request.session.items)
    longest_first(items, repository)
    again = list(items)
    longest_first(again, repository)
    assert again == items
    names = [scope(item.nodeid) for item in items]
    first = [name for name in names if name in LONGEST]
    assert names[: len(first)] == first
    assert [LONGEST.index(name) for name in first] == sorted(map(LONGEST.index, first))
