"""Holds, frozen selections and acts on them, indexes for every documented filter."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

from chappe.store.dialect import Integer, Text

revision = "0003"
down_revision = "0002"

WAITS = "phase = 'runnable' AND session IS NULL AND not_before IS NULL AND held_at IS NULL"


def upgrade() -> None:
    """Make the columns, indexes and tables."""
    op.add_column("job", sa.Column("held_at", sa.Float(), nullable=True))
    op.add_column("job", sa.Column("updated_at", sa.Float(), nullable=True))
    op.add_column("session", sa.Column("created_at", sa.Float(), nullable=True))
    op.add_column("session", sa.Column("cores", Integer, nullable=True))
    op.drop_index("ix_job_waiting", "job")
    op.drop_index("ix_job_phase", "job")
    indexes: tuple[tuple[str, Sequence[str | sa.TextClause], str], ...] = (
        ("ix_job_waiting", ["shape", sa.text("priority DESC"), "n"], WAITS),
        (
            "ix_job_list",
            ["project", sa.text("COALESCE(site, 0)"), sa.text("COALESCE(app, '')"), "state", "n"],
            "phase <> 'deleted'",
        ),
        (
            "ix_job_ended",
            ["project", "changed_at", "n"],
            "phase IN ('finished', 'failed', 'cancelled')",
        ),
        ("ix_job_held", ["project", "n"], "held_at IS NOT NULL"),
        ("ix_job_tombstone", ["changed_at"], "phase = 'deleted'"),
    )
    for name, columns, where in indexes:
        predicate = sa.text(where)
        op.create_index(name, "job", columns, sqlite_where=predicate, postgresql_where=predicate)
    op.create_index("ix_job_name", "job", ["project", "name", "n"])
    _selections()


def _selections() -> None:
    op.create_table(
        "selection",
        sa.Column("n", Integer, nullable=False),
        sa.Column("project", Integer, nullable=False),
        sa.Column("id", Text, nullable=False),
        sa.Column("filter", Text, nullable=False),
        sa.Column("count", Integer, nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("expires_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("n"),
        sa.UniqueConstraint("project", "id", name=op.f("uq_selection_project_id")),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_selection_expires_at", "selection", ["expires_at"])
    op.create_table(
        "selection_chunk",
        sa.Column("selection", Integer, nullable=False),
        sa.Column("pos", Integer, nullable=False),
        sa.Column("jobs", Text, nullable=False),
        sa.PrimaryKeyConstraint("selection", "pos"),
    )
    op.create_table(
        "act",
        sa.Column("n", Integer, nullable=False),
        sa.Column("project", Integer, nullable=False),
        sa.Column("id", Text, nullable=False),
        sa.Column("selection", Integer, nullable=False),
        sa.Column("selection_id", Text, nullable=False),
        sa.Column("verb", Text, nullable=False),
        sa.Column("change", Text, nullable=True),
        sa.Column("state", Text, nullable=False),
        sa.Column("message", Text, server_default="", nullable=False),
        sa.Column("total", Integer, nullable=False),
        sa.Column("done", Integer, nullable=False),
        sa.Column("pos", Integer, nullable=False),
        sa.Column("counts", Text, nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("ended_at", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("n"),
        sa.UniqueConstraint("project", "id", name=op.f("uq_act_project_id")),
        sa.CheckConstraint(
            "state IN ('running', 'done', 'stopped', 'failed')", name=op.f("ck_act_state")
        ),
        sqlite_autoincrement=True,
    )
    is_open = sa.text("ended_at IS NULL")
    op.create_index(
        "ix_act_open", "act", ["selection"], sqlite_where=is_open, postgresql_where=is_open
    )
