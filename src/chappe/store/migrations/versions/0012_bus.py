"""The bus: its log, what each queue has of it, and the queues' counts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from chappe.store.dialect import Integer, Text

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    """Make the columns and tables."""
    for name in ("next_position", "next_lease"):
        op.add_column("hub", sa.Column(name, Integer, nullable=False, server_default="1"))
    op.create_table(
        "bus_log",
        sa.Column("position", Integer, nullable=False, autoincrement=False),
        sa.Column("project", Integer, nullable=False),
        sa.Column("topic", Text, nullable=False),
        sa.Column("body", Text, nullable=False),
        sa.Column("published_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("position"),
    )
    op.create_index("ix_bus_log_topic", "bus_log", ["topic", "position"])
    op.create_table(
        "bus_delivery",
        sa.Column("queue", Text, nullable=False),
        sa.Column("position", Integer, nullable=False, autoincrement=False),
        sa.Column("project", Integer, nullable=False),
        sa.Column("state", Text, nullable=False),
        sa.Column("until", sa.Float(), nullable=True),
        sa.Column("lease", Integer, nullable=False),
        sa.Column("tries", Integer, nullable=False),
        sa.Column("since", sa.Float(), nullable=False),
        sa.Column("died_at", sa.Float(), nullable=True),
        sa.Column("reason", Text, nullable=True),
        sa.PrimaryKeyConstraint("queue", "position"),
        sa.CheckConstraint(
            "state IN ('ready', 'leased', 'delayed', 'dead')", name=op.f("ck_bus_delivery_state")
        ),
        sa.CheckConstraint(
            "(until IS NOT NULL) = (state IN ('leased', 'delayed'))",
            name=op.f("ck_bus_delivery_until"),
        ),
        sa.CheckConstraint(
            "(died_at IS NOT NULL) = (state = 'dead')", name=op.f("ck_bus_delivery_dead")
        ),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_bus_delivery_position", "bus_delivery", ["position"])
    for name, columns, where in (
        ("ready", ["queue", "position"], "state = 'ready'"),
        ("until", ["queue", "state", "until"], "until IS NOT NULL"),
        ("dead", ["queue", "position"], "state = 'dead'"),
    ):
        predicate = sa.text(where)
        op.create_index(
            f"ix_bus_delivery_{name}",
            "bus_delivery",
            columns,
            sqlite_where=predicate,
            postgresql_where=predicate,
        )
    counts = ("arrived", "acked", "retried", "lost", "died", "revived", "forgotten")
    op.create_table(
        "bus_queue",
        sa.Column("name", Text, nullable=False),
        *(sa.Column(count, Integer, nullable=False) for count in counts),
        sa.PrimaryKeyConstraint("name"),
    )
