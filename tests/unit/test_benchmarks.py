"""The arithmetic behind the table of figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.__main__ import table
from benchmarks.bench import Bench
from benchmarks.contract import ROWS
from benchmarks.figures import Row, bound_shown, met, percentile, shown
from benchmarks.jobs import shapes
from chappe.core.jobs import JobSpec
from chappe.core.shapes import Capacity, misfit, shape_of

AT_LEAST = Row("speed", "how fast", "jobs/s", 100.0)
AT_MOST = Row("delay", "how late", "ms", 5.0, at_least=False)


@pytest.mark.parametrize(
    ("samples", "percent", "expected"),
    [
        ([7.0], 99, 7.0),
        ([3.0, 1.0, 2.0], 50, 2.0),
        ([4.0, 3.0, 2.0, 1.0], 50, 2.0),
        ([float(n) for n in range(1, 101)], 95, 95.0),
        ([float(n) for n in range(1, 101)], 99, 99.0),
        ([float(n) for n in range(1, 21)], 95, 19.0),
        ([1.0, 2.0], 100, 2.0),
    ],
)
def test_percentile_is_the_nearest_rank(
    samples: list[float], percent: float, expected: float
) -> None:
    assert percentile(samples, percent) == expected


def test_percentile_refuses_what_has_no_answer() -> None:
    with pytest.raises(ValueError, match="no samples"):
        percentile([], 50)
    with pytest.raises(ValueError, match="percentage"):
        percentile([1.0], 0)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.04321, "0.0432"),
        (0.999, "0.999"),
        (0.9996, "1.00"),
        (3.14159, "3.14"),
        (99.96, "100"),
        (123.4, "123"),
        (34_070.0, "34 100"),
        (1_234_567.0, "1 230 000"),
    ],
)
def test_numbers_are_shown_with_three_figures(value: float, text: str) -> None:
    assert shown(value) == text


def test_a_bound_is_kept_on_its_own_side_and_at_the_bound() -> None:
    assert met(AT_LEAST, 100.0) is True
    assert met(AT_LEAST, 99.9) is False
    assert met(AT_MOST, 5.0) is True
    assert met(AT_MOST, 5.1) is False
    assert met(AT_LEAST._replace(bound=None), 1.0) is None
    assert bound_shown(AT_LEAST) == "≥ 100"
    assert bound_shown(AT_MOST) == "≤ 5.00"


def _break() -> None:
    raise RuntimeError("it broke")


def test_a_value_is_the_median_and_a_problem_is_not_met(tmp_path: Path) -> None:
    bench = Bench(tmp_path, rounds=3, quick=True)
    for value in (29_000.0, 31_000.0, 90_000.0):
        bench.add("create", value)
    bench.add("latency.p50", 1.0)
    with bench.attempt("latency.p50", "crowd.slowest"):
        _break()
    lines = {line["key"]: line for line in bench.table()}
    assert lines["create"]["value"] == 31_000.0
    assert lines["create"]["met"] is True
    assert lines["latency.p50"]["met"] is False
    assert lines["crowd.slowest"]["value"] is None
    assert lines["crowd.slowest"]["problem"] == "RuntimeError: it broke"
    text = table(list(lines.values()))
    assert "| 31 000 | jobs/s | ≥ 30 000 | met |" in text
    assert "NOT MET" in text


def test_the_rows_have_keys_of_their_own() -> None:
    keys = [row.key for row in ROWS]
    assert len(set(keys)) == len(keys)


def test_shapes_differ_and_as_many_fit_as_is_said() -> None:
    needs = shapes(200, 2)
    node = Capacity(cores=2, mem_bytes=8 << 30, node_cores=2, node_mem_bytes=8 << 30)
    made = {shape_of(JobSpec("i", "p", ("s",), resources=need)) for need in needs}
    assert len(made) == 200
    assert sum(misfit(shape, node) is None for shape in made) == 2
