"""The key by which a Site's users know it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from chappe.store.dialect import Text

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Make the column."""
    op.add_column("site", sa.Column("key", Text, nullable=False, server_default=""))
