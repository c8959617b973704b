"""The journal of messages: producers and their tokens, messages, quarantine, counters."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from chappe.store.dialect import Integer, Text

revision = "0008"
down_revision = "0007"

SCOPES = "scope IN ('user', 'site', 'session', 'producer')"
COLUMNS = "prefix, hash, scope, project, site, session, note, created_at, expires_at, revoked_at, account, role"


def upgrade() -> None:
    """Make the tables, and let tokens be a producer's."""
    _tokens()
    _sources()
    _messages()


def _tokens() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.add_column("token", sa.Column("producer", Integer, nullable=True))
        op.drop_constraint(op.f("ck_token_scope"), "token", type_="check")
        op.create_check_constraint(op.f("ck_token_scope"), "token", SCOPES)
        return
    # SQLite cannot change a CHECK: the rows move to a table that has the new one.
    op.drop_index("ix_token_session", "token")
    op.drop_index("ix_token_account", "token")
    op.rename_table("token", "token_before")
    op.create_table(
        "token",
        sa.Column("prefix", Text, nullable=False),
        sa.Column("hash", Text, nullable=False),
        sa.Column("scope", Text, nullable=False),
        sa.Column("project", Integer, nullable=False),
        sa.Column("site", Integer, nullable=True),
        sa.Column("session", Integer, nullable=True),
        sa.Column("note", Text, nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("expires_at", sa.Float(), nullable=True),
        sa.Column("revoked_at", sa.Float(), nullable=True),
        sa.Column("account", Integer, nullable=True),
        sa.Column("role", Text, nullable=True),
        sa.Column("producer", Integer, nullable=True),
        sa.CheckConstraint(SCOPES, name=op.f("ck_token_scope")),
        sa.PrimaryKeyConstraint("prefix"),
    )
    op.execute(f"INSERT INTO token ({COLUMNS}) SELECT {COLUMNS} FROM token_before")
    op.drop_table("token_before")
    op.create_index("ix_token_session", "token", ["session"])
    op.create_index("ix_token_account", "token", ["account"])


def _sources() -> None:
    op.create_table(
        "producer",
        sa.Column("n", Integer, nullable=False),
        sa.Column("project", Integer, nullable=False),
        sa.Column("name", Text, nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("removed_at", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("n"),
        sa.UniqueConstraint("project", "name", name=op.f("uq_producer_project_name")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "source",
        sa.Column("n", Integer, nullable=False),
        sa.Column("project", Integer, nullable=False),
        sa.Column("door", Text, nullable=False),
        sa.Column("name", Text, nullable=False),
        sa.Column("received", Integer, nullable=False),
        sa.Column("stored", Integer, nullable=False),
        sa.Column("duplicate", Integer, nullable=False),
        sa.Column("quarantined", Integer, nullable=False),
        sa.Column("last_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("n"),
        sa.UniqueConstraint("project", "door", "name", name=op.f("uq_source_project_door_name")),
        sa.CheckConstraint(
            "received = stored + duplicate + quarantined", name=op.f("ck_source_balance")
        ),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "source_latency",
        sa.Column("source", Integer, nullable=False),
        sa.Column("bucket", Integer, nullable=False),
        sa.Column("count", Integer, nullable=False),
        sa.PrimaryKeyConstraint("source", "bucket"),
        sqlite_with_rowid=False,
    )


def _messages() -> None:
    op.create_table(
        "carrier",
        sa.Column("n", Integer, nullable=False),
        sa.Column("project", Integer, nullable=False),
        sa.Column("sha256", Text, nullable=False),
        sa.Column("received_at", sa.Float(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("n"),
        sa.UniqueConstraint("project", "sha256", name=op.f("uq_carrier_project_sha256")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "message",
        sa.Column("project", Integer, nullable=False),
        sa.Column("n", Integer, nullable=False),
        sa.Column("producer", Integer, nullable=False),
        sa.Column("uid", Text, nullable=False),
        sa.Column("simulation", Text, nullable=True),
        sa.Column("job", Text, nullable=True),
        sa.Column("code", Text, nullable=False),
        sa.Column("type", Text, nullable=False),
        sa.Column("at_ns", Integer, nullable=False),
        sa.Column("received_at", sa.Float(), nullable=False),
        sa.Column("source", Integer, nullable=False),
        sa.Column("carrier", Integer, nullable=True),
        sa.Column("stream", Text, nullable=True),
        sa.Column("seq", Integer, nullable=False),
        sa.Column("sha256", Text, nullable=False),
        sa.Column("raw", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("project", "n"),
        sa.UniqueConstraint(
            "project", "producer", "uid", name=op.f("uq_message_project_producer_uid")
        ),
    )
    for name, columns, where in (
        ("ix_message_simulation", ["project", "simulation", "n"], "simulation IS NOT NULL"),
        ("ix_message_stream", ["project", "stream", "seq"], "stream IS NOT NULL"),
    ):
        some = sa.text(where)
        op.create_index(name, "message", columns, sqlite_where=some, postgresql_where=some)
    op.create_table(
        "quarantine",
        sa.Column("n", Integer, nullable=False),
        sa.Column("project", Integer, nullable=False),
        sa.Column("producer", Integer, nullable=False),
        sa.Column("uid", Text, nullable=False),
        sa.Column("reason", Text, nullable=False),
        sa.Column("words", Text, nullable=False),
        sa.Column("received_at", sa.Float(), nullable=False),
        sa.Column("source", Integer, nullable=False),
        sa.Column("carrier", Integer, nullable=True),
        sa.Column("stream", Text, nullable=True),
        sa.Column("seq", Integer, nullable=False),
        sa.Column("sha256", Text, nullable=False),
        sa.Column("raw", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("n"),
        sa.UniqueConstraint(
            "project", "producer", "sha256", name=op.f("uq_quarantine_project_producer_sha256")
        ),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_quarantine_project_n", "quarantine", ["project", "n"])
    some = sa.text("stream IS NOT NULL")
    op.create_index(
        "ix_quarantine_stream",
        "quarantine",
        ["project", "stream", "seq"],
        sqlite_where=some,
        postgresql_where=some,
    )
