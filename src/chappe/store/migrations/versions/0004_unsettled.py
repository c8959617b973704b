"""Jobs whose parents have ended and that are still to be decided."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from chappe.store.dialect import Integer

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "unsettled",
        sa.Column("job", Integer, autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("job"),
    )
