"""How far mailboxes were read."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from chappe.store.dialect import Integer, Text

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "mailbox",
        sa.Column("source", Text, nullable=False),
        sa.Column("mailbox", Text, nullable=False),
        sa.Column("folder", Text, nullable=False),
        sa.Column("uidvalidity", Integer, nullable=False),
        sa.Column("uid", Integer, nullable=False),
        sa.Column("read_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("source", "mailbox", "folder", "uidvalidity"),
        sqlite_with_rowid=False,
    )
