"""Up to where Events were published at a broker."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from chappe.store.dialect import Integer

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "outlet",
        sa.Column("project", Integer, nullable=False, autoincrement=False),
        sa.Column("seq", Integer, nullable=False),
        sa.Column("moved_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("project"),
        sqlite_with_rowid=False,
    )
