"""Simulations, their jobs, and which messages tell of what."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from chappe.store.dialect import Integer, Text, rows_where

revision = "0009"
down_revision = "0008"

TEXTS = ("name", "experiment", "model", "space", "machine", "login", "centre", "account")


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "simulation",
        sa.Column("n", Integer, autoincrement=False, nullable=False),
        sa.Column("project", Integer, nullable=False),
        sa.Column("producer", Integer, nullable=False),
        sa.Column("uid", Text, nullable=False),
        sa.Column("state", Text, nullable=False),
        sa.Column("identity", Text, nullable=False),
        sa.Column("try_no", Integer, nullable=False),
        sa.Column("active", Integer, nullable=False),
        sa.Column("purged", Integer, nullable=False),
        *(sa.Column(name, Text, nullable=False) for name in TEXTS),
        sa.Column("started", Text, nullable=True),
        sa.Column("tombstone", Text, nullable=True),
        sa.Column("started_at", sa.Float(), nullable=True),
        sa.Column("ended_at", sa.Float(), nullable=True),
        sa.Column("changed_at", sa.Float(), nullable=False),
        sa.Column("progress", sa.Float(), nullable=True),
        sa.Column("messages", Integer, nullable=False),
        sa.Column("counts", Text, nullable=False),
        sa.Column("took", Text, nullable=False),
        sa.Column("fold", Text, nullable=False),
        sa.PrimaryKeyConstraint("n"),
        sa.UniqueConstraint(
            "project", "producer", "uid", name=op.f("uq_simulation_project_producer_uid")
        ),
    )
    op.create_index("ix_simulation_uid", "simulation", ["project", "uid"])
    op.create_index(
        "ix_simulation_identity",
        "simulation",
        ["project", "producer", "identity"],
        **rows_where("identity <> ''"),
    )
    op.create_index(
        "ix_simulation_active", "simulation", ["project", "n"], **rows_where("active = 1")
    )
    op.create_index("ix_simulation_list", "simulation", ["project", "n"])
    op.create_table(
        "sim_job",
        sa.Column("simulation", Integer, autoincrement=False, nullable=False),
        sa.Column("id", Text, nullable=False),
        sa.Column("state", Text, nullable=False),
        sa.Column("due_at", sa.Float(), nullable=True),
        sa.Column("fold", Text, nullable=False),
        sa.PrimaryKeyConstraint("simulation", "id"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_sim_job_due", "sim_job", ["due_at"], **rows_where("due_at IS NOT NULL"))
    op.create_table(
        "fact",
        sa.Column("simulation", Integer, autoincrement=False, nullable=False),
        sa.Column("family", Text, nullable=False),
        sa.Column("message", Integer, autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("simulation", "family", "message"),
        sqlite_with_rowid=False,
    )
