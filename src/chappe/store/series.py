"""Scalar time series: what `metric` messages say, by simulation, job and name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from chappe.core.messages import Message
from chappe.core.simulations import number
from chappe.store.dialect import sql
from chappe.store.tx import Insert, Tx

TYPE = "metric"
NAME_CHARS = 200
TIME_CHARS = 64
#: Series whose numbers are kept in memory.
KEPT = 100_000

#: Project, simulation, job, name, producer.
Key = tuple[int, str, str, str, int]
#: A series, and of one value: time, message, number, step, the model's time.
Value = tuple[Key, tuple[Any, ...]]

ADD_SERIES = sql("""
    INSERT INTO series (project, simulation, job, name, producer)
    SELECT v.project, v.simulation, v.job, v.name, v.producer
    FROM rows(:rows, project int, simulation text, job text, name text, producer int) v WHERE true
    ON CONFLICT (project, simulation, job, name, producer) DO UPDATE SET name = excluded.name
    RETURNING n, project, simulation, job, name, producer""")

INSERT_VALUES = Insert("metric", "series at_ns message value step time", "ON CONFLICT DO NOTHING")

DROP = sql("""
    DELETE FROM metric WHERE series IN (
        SELECT n FROM series WHERE project = :project AND simulation = :simulation
        AND producer = :producer)""")


def project(
    tx: Tx,
    project: int,
    producer: int,
    stored: Sequence[tuple[int, Message]],
    received_at: float,
) -> None:
    """Apply messages that were just stored: those that measure something become values of a series."""
    store(tx, values_of(project, producer, stored, received_at))


def values_of(
    project: int, producer: int, stored: Sequence[tuple[int, Message]], received_at: float
) -> list[Value]:
    """What these messages measure."""
    found: list[Value] = []
    for n, message in stored:
        if message.type != TYPE:
            continue
        fields = message.fields
        name = fields.get("name")
        if not isinstance(name, str) or not 0 < len(name) <= NAME_CHARS or "value" not in fields:
            continue
        time = fields.get("time")
        key = (project, message.simulation, message.job, name, producer)
        values = (
            message.at_ns or int(received_at * 1e9),
            n,
            number(fields["value"]),
            number(fields.get("step")),
            None if time is None else str(time)[:TIME_CHARS],
        )
        found.append((key, values))
    return found


def store(tx: Tx, found: Sequence[Value]) -> None:
    """Insert values; those that are there already stay."""
    if found:
        numbers = _numbers(tx, {key for key, _ in found})
        tx.insert(INSERT_VALUES, [(numbers[key], *values) for key, values in found])


def _numbers(tx: Tx, keys: set[Key]) -> dict[Key, int]:
    """The row numbers of series, made where they are new."""
    known = tx.catalog.series
    missing = keys - known.keys()
    if missing:
        if len(known) > KEPT:
            known.clear()
            missing = keys
        for row in tx.write_rows(ADD_SERIES, sorted(missing)):
            known[row.project, row.simulation, row.job, row.name, row.producer] = row.n
    return known


def drop(tx: Tx, project: int, producer: int, simulation: str) -> None:
    """Throw the values of a simulation away, to make them again from the journal."""
    tx.write(DROP, project=project, producer=producer, simulation=simulation)
