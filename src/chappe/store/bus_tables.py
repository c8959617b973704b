"""The tables of the bus: what was published, what each queue still has of it, and what was done with it."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, Column, Float, Index, Table

from chappe.store.dialect import Integer, Text
from chappe.store.schema import metadata, partial

#: What was published on the bus, at rising positions; kept for a while after all queues are done with it, so
#: that it can be put into a queue again. `project` 0 is the hub itself.
bus_log = Table(
    "bus_log",
    metadata,
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("project", Integer, nullable=False),
    Column("topic", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("published_at", Float, nullable=False),
    Index("ix_bus_log_topic", "topic", "position"),
)

#: What each queue still has of it. `until` is when a delay ends (since 1970) or a lease (CLOCK_BOOTTIME);
#: `lease` is the last under which it was taken, and no two takes have the same; `since` is when it should
#: have been dealt with.
bus_delivery = Table(
    "bus_delivery",
    metadata,
    Column("queue", Text, primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("project", Integer, nullable=False),
    Column("state", Text, nullable=False),
    Column("until", Float),
    Column("lease", Integer, nullable=False),
    Column("tries", Integer, nullable=False),
    Column("since", Float, nullable=False),
    Column("died_at", Float),
    Column("reason", Text),
    CheckConstraint("state IN ('ready', 'leased', 'delayed', 'dead')", name="state"),
    CheckConstraint("(until IS NOT NULL) = (state IN ('leased', 'delayed'))", name="until"),
    CheckConstraint("(died_at IS NOT NULL) = (state = 'dead')", name="dead"),
    partial("ix_bus_delivery_ready", "queue", "position", where="state = 'ready'"),
    partial("ix_bus_delivery_until", "queue", "state", "until", where="until IS NOT NULL"),
    partial("ix_bus_delivery_dead", "queue", "position", where="state = 'dead'"),
    Index("ix_bus_delivery_position", "position"),
    sqlite_with_rowid=False,
)

#: What was done with each queue since it is there: depth = arrived + revived − acked − died.
bus_queue = Table(
    "bus_queue",
    metadata,
    Column("name", Text, primary_key=True),
    Column("arrived", Integer, nullable=False),
    Column("acked", Integer, nullable=False),
    Column("retried", Integer, nullable=False),
    Column("lost", Integer, nullable=False),
    Column("died", Integer, nullable=False),
    Column("revived", Integer, nullable=False),
    Column("forgotten", Integer, nullable=False),
)
