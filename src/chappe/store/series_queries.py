"""Reading scalar time series.

A plot has some hundreds of points however many values there are. So values are read in buckets of equal
time, each with its least, greatest and mean value: a peak is never averaged away.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection

from chappe.core import limits
from chappe.core.errors import Invalid, TooLarge
from chappe.store.dialect import sql
from chappe.store.principal import Principal
from chappe.store.producers import MAIN_NAME, named
from chappe.store.tx import to_json
from chappe.wire.metrics import Point, SeriesList, SeriesView

_SERIES = f"""
    SELECT s.n, s.simulation, s.job, s.name, COALESCE(p.name, '{MAIN_NAME}') AS producer
    FROM series s LEFT JOIN producer p ON p.n = s.producer WHERE s.project = :project"""

SPAN = sql("""
    SELECT count(*) AS many, min(at_ns) AS first, max(at_ns) AS last FROM metric
    WHERE series = :series AND at_ns >= :since AND at_ns < :until""")

VALUES = sql("""
    SELECT at_ns, value, step, time FROM metric
    WHERE series = :series AND at_ns >= :since AND at_ns < :until ORDER BY at_ns, message""")

#: A bucket's time is that of its first value; step and time are the greatest in it.
BUCKETS = sql("""
    SELECT min(at_ns) AS at_ns, min(value) AS low, max(value) AS high, avg(value) AS mean,
           count(*) AS many, max(step) AS step, max(time) AS time
    FROM metric WHERE series = :series AND at_ns >= :since AND at_ns < :until
    GROUP BY (at_ns - :first) / :width ORDER BY 1""")

#: Times that 64 bits hold.
_EVER_NS = 1 << 62


def read(
    conn: Connection,
    p: Principal,
    simulation: str | None,
    job: str | None,
    names: Sequence[str],
    producer: str | None,
    since: float | None,
    until: float | None,
    buckets: int,
) -> SeriesList:
    """The series of a simulation or a job (at least one of them is named), each in at most so many buckets;
    with 0 only what there is."""
    if simulation is None and job is None:
        raise Invalid("name a simulation or a job", field="simulation")
    where = [_SERIES]
    params: dict[str, Any] = {"project": p.project_n, "most": limits.SERIES_PER_REQUEST + 1}
    for column, value in (("simulation", simulation), ("job", job)):
        if value is not None:
            where.append(f"s.{column} = :{column}")
            params[column] = value
    if names:
        where.append("s.name IN (SELECT value FROM texts(:names) v)")
        params["names"] = to_json(names)
    if producer is not None:
        where.append("s.producer = :producer")
        params["producer"] = named(conn, p.project_n, producer)
    text = f"{' AND '.join(where)} ORDER BY s.name, s.job, s.n LIMIT :most"
    rows = conn.execute(sql(text), params).fetchall()
    if len(rows) > limits.SERIES_PER_REQUEST or len(rows) * buckets > limits.POINTS_PER_REQUEST:
        raise TooLarge(
            f"{len(rows)} series of {buckets} buckets are too much at once: name some of them (name), "
            "or ask for fewer buckets",
            field="buckets",
        )
    span = {
        "since": -_EVER_NS if since is None else _ns(since),
        "until": _EVER_NS if until is None else _ns(until),
    }
    return SeriesList([_view(conn, row, span, buckets) for row in rows])


def _ns(seconds: float) -> int:
    return int(max(-4e9, min(4e9, seconds)) * 1e9)


def _view(conn: Connection, row: Any, span: dict[str, int], buckets: int) -> SeriesView:
    among = span | {"series": row.n}
    count, first, last = conn.execute(SPAN, among).one()
    points: list[Point] = []
    if count and count <= buckets:
        points = [
            Point(at_ns / 1e9, value, value, value, 1, step, time)
            for at_ns, value, step, time in conn.execute(VALUES, among)
        ]
    elif count and buckets:
        width = (last - first) // buckets + 1
        points = [
            Point(b.at_ns / 1e9, b.low, b.high, b.mean, b.many, b.step, b.time)
            for b in conn.execute(BUCKETS, among | {"first": first, "width": width})
        ]
    return SeriesView(
        row.name,
        row.simulation,
        row.job,
        row.producer,
        count,
        None if first is None else first / 1e9,
        None if last is None else last / 1e9,
        points,
    )
