"""Scalar series: each metric message is one value, once; buckets hide no peak."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from chappe.core.errors import Invalid, TooLarge
from chappe.store import journal, series_queries
from chappe.store.journal import Arrival, item
from chappe.testing.store import StoreRig
from chappe.wire.metrics import SeriesView


def metric(uid: str, second: float, value: Any, **fields: Any) -> bytes:
    at = f"2026-01-02T03:{int(second) // 60:02d}:{second % 60:09.6f}Z"
    made = {
        "msgUID": uid,
        "msgType": "metric",
        "msgProducer": "chappe",
        "msgTimestamp": at,
        "simuid": "s1",
        "jobuid": "j1",
        "name": "energy",
        "value": value,
    }
    return json.dumps(made | fields).encode()


def accept(rig: StoreRig, *raws: bytes, producer: int = 0) -> None:
    items = [item(raw) for raw in raws]
    project = rig.user.project_n
    rig.do(journal.accept, Arrival(project, producer, "https", "me", rig.clock(), items))


def read(
    rig: StoreRig,
    simulation: str | None = "s1",
    *,
    job: str | None = None,
    names: Sequence[str] = (),
    since: float | None = None,
    until: float | None = None,
    buckets: int = 100,
) -> list[SeriesView]:
    found = rig.ask(
        series_queries.read, rig.user, simulation, job, names, None, since, until, buckets
    )
    return list(found.series)


def test_values_are_told_as_they_were_sent(rig: StoreRig) -> None:
    accept(rig, metric("m2", 2, ".5", step=2, time="1850-01-02"), metric("m1", 1, 3, step="1"))
    accept(rig, metric("m1", 1, 3, step="1"))
    (found,) = read(rig)
    assert (found.name, found.simulation, found.job, found.producer) == (
        "energy",
        "s1",
        "j1",
        "main",
    )
    assert [(p.mean, p.step, p.time) for p in found.points] == [
        (3.0, 1.0, None),
        (0.5, 2.0, "1850-01-02"),
    ]
    assert found.count == 2
    assert found.first_at == found.points[0].at


def test_what_is_no_number_is_a_point_without_a_value(rig: StoreRig) -> None:
    accept(rig, metric("m1", 1, "NaN"), metric("m2", 2, "inf"), metric("m3", 3, [1]))
    accept(rig, metric("m4", 4, 1, name=""), metric("m5", 5, 1, name=7))
    (found,) = read(rig)
    assert [p.mean for p in found.points] == [None, None, None]
    assert [p.min for p in read(rig, buckets=2)[0].points] == [None, None]


def test_buckets_keep_every_value_and_every_peak(rig: StoreRig) -> None:
    values = [(i * 37 % 101) / 7 for i in range(1_000)]
    values[617] = 1e9
    accept(rig, *(metric(f"m{i}", i / 10, v, step=i) for i, v in enumerate(values)))
    (found,) = read(rig, buckets=30)
    assert len(found.points) <= 30
    assert sum(p.count for p in found.points) == 1_000
    assert max(p.max for p in found.points if p.max is not None) == 1e9
    assert min(p.min for p in found.points if p.min is not None) == min(values)
    total = sum(p.mean * p.count for p in found.points if p.mean is not None)
    assert total == pytest.approx(sum(values))
    assert [p.step for p in found.points] == sorted(p.step or 0 for p in found.points)
    middle = read(rig, since=found.points[9].at, until=found.points[11].at, buckets=1_000)[0]
    assert middle.count == found.points[9].count + found.points[10].count


def test_series_are_apart_by_name_job_and_producer(rig: StoreRig) -> None:
    accept(rig, metric("a", 1, 1), metric("b", 1, 2, name="mass"), metric("c", 1, 3, jobuid="j2"))
    accept(rig, metric("a", 1, 9), producer=3)
    shown = [(s.name, s.job, s.points[0].mean) for s in read(rig)]
    assert shown == [
        ("energy", "j1", 1.0),
        ("energy", "j1", 9.0),
        ("energy", "j2", 3.0),
        ("mass", "j1", 2.0),
    ]
    assert [s.job for s in read(rig, None, job="j2")] == ["j2"]
    assert [s.name for s in read(rig, names=["mass", "none"])] == ["mass"]
    assert read(rig, "nobody's") == []
    assert [s.points for s in read(rig, buckets=0)] == [[]] * 4


def test_a_question_without_bounds_is_refused(rig: StoreRig) -> None:
    with pytest.raises(Invalid, match="name a simulation or a job"):
        read(rig, None)
    accept(rig, *(metric(f"m{i}", 1, 1, name=f"n{i}") for i in range(30)))
    with pytest.raises(TooLarge):
        read(rig, buckets=10_000)


def test_a_rollback_leaves_no_series_behind_in_memory(rig: StoreRig) -> None:
    def half(tx: Any) -> None:
        items = [item(metric("m1", 1, 1))]
        journal.accept(tx, Arrival(rig.user.project_n, 0, "https", "me", 5.0, items))
        raise RuntimeError("the disk")

    with pytest.raises(RuntimeError):
        rig.do(half)
    accept(rig, metric("m1", 1, 1))
    assert [p.mean for p in read(rig)[0].points] == [1.0]
