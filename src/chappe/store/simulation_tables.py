"""The tables of simulations: a projection of the journal, which can be thrown away and made again.

`fold` is what the messages come to (core.simulations), as JSON; the other columns are read off it, for lists.
`fact` says which messages of the journal tell of periods, commands, I/O actions and cards: the journal itself
holds what they say, so nothing is ever there twice.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import Column, Float, Index, Table

from chappe.store.dialect import Integer, Text
from chappe.store.schema import metadata, partial

simulation = Table(
    "simulation",
    metadata,
    Column("n", Integer, primary_key=True, autoincrement=False),
    Column("project", Integer, nullable=False),
    Column("producer", Integer, nullable=False),
    Column("uid", Text, nullable=False),
    Column("state", Text, nullable=False),
    # Simulations with the same are tries of one; empty until the start is known.
    Column("identity", Text, nullable=False),
    Column("try_no", Integer, nullable=False),
    # 1: a list shows it; it is neither purged nor followed by another try.
    Column("active", Integer, nullable=False),
    Column("purged", Integer, nullable=False),
    Column("name", Text, nullable=False),
    Column("experiment", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("space", Text, nullable=False),
    Column("machine", Text, nullable=False),
    Column("login", Text, nullable=False),
    Column("centre", Text, nullable=False),
    Column("account", Text, nullable=False),
    # Stamps, as JSON: by the first, tries are numbered.
    Column("started", Text),
    Column("tombstone", Text),
    Column("started_at", Float),
    Column("ended_at", Float),
    Column("changed_at", Float, nullable=False),
    Column("progress", Float),
    Column("messages", Integer, nullable=False),
    Column("counts", Text, nullable=False),
    # How long its messages took: {bucket: count}, of source_latency's buckets.
    Column("took", Text, nullable=False),
    Column("fold", Text, nullable=False),
    sa.UniqueConstraint("project", "producer", "uid"),
    Index("ix_simulation_uid", "project", "uid"),
    partial("ix_simulation_identity", "project", "producer", "identity", where="identity <> ''"),
    partial("ix_simulation_active", "project", "n", where="active = 1"),
    Index("ix_simulation_list", "project", "n"),
)

sim_job = Table(
    "sim_job",
    metadata,
    Column("simulation", Integer, primary_key=True, autoincrement=False),
    Column("id", Text, primary_key=True),
    Column("state", Text, nullable=False),
    # When to look again although nothing was heard (seconds since 1970).
    Column("due_at", Float),
    Column("fold", Text, nullable=False),
    partial("ix_sim_job_due", "due_at", where="due_at IS NOT NULL"),
    sqlite_with_rowid=False,
)

fact = Table(
    "fact",
    metadata,
    Column("simulation", Integer, primary_key=True, autoincrement=False),
    Column("family", Text, primary_key=True),
    Column("message", Integer, primary_key=True, autoincrement=False),
    sqlite_with_rowid=False,
)
