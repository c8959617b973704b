"""Scalar time series."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from chappe.store.dialect import Integer, Text

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "series",
        sa.Column("n", Integer, nullable=False),
        sa.Column("project", Integer, nullable=False),
        sa.Column("simulation", Text, nullable=False),
        sa.Column("job", Text, nullable=False),
        sa.Column("name", Text, nullable=False),
        sa.Column("producer", Integer, nullable=False),
        sa.PrimaryKeyConstraint("n"),
        sa.UniqueConstraint(
            "project",
            "simulation",
            "job",
            "name",
            "producer",
            name=op.f("uq_series_project_simulation_job_name_producer"),
        ),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_series_job", "series", ["project", "job"])
    op.create_table(
        "metric",
        sa.Column("series", Integer, nullable=False),
        sa.Column("at_ns", Integer, nullable=False),
        sa.Column("message", Integer, nullable=False),
        sa.Column("value", sa.Float(), nullable=True),
        sa.Column("step", sa.Float(), nullable=True),
        sa.Column("time", Text, nullable=True),
        sa.PrimaryKeyConstraint("series", "at_ns", "message"),
        sqlite_with_rowid=False,
    )
