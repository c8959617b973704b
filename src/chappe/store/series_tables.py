"""The tables of scalar time series: a projection of the journal's `metric` messages.

A series is one name of one job of a simulation. Its values lie together, in the order of their times.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import Column, Float, Table

from chappe.store.dialect import Integer, Text
from chappe.store.schema import metadata

series = Table(
    "series",
    metadata,
    Column("n", Integer, primary_key=True),
    Column("project", Integer, nullable=False),
    Column("simulation", Text, nullable=False),
    Column("job", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("producer", Integer, nullable=False),
    sa.UniqueConstraint("project", "simulation", "job", "name", "producer"),
    sa.Index("ix_series_job", "project", "job"),
    sqlite_autoincrement=True,
)

#: One value, keyed by its message. `value` is NULL where the message says NaN, or infinity.
metric = Table(
    "metric",
    metadata,
    Column("series", Integer, primary_key=True),
    Column("at_ns", Integer, primary_key=True),
    Column("message", Integer, primary_key=True),
    Column("value", Float),
    Column("step", Float),
    Column("time", Text),
    sqlite_with_rowid=False,
)
