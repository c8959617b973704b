"""Which decision of a Site's agent was told last."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from chappe.store.dialect import Integer

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add the column."""
    op.add_column("site", sa.Column("decided", Integer, nullable=False, server_default="0"))
