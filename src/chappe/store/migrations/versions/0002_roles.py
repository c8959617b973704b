"""Users with roles in projects, service tokens, and the audit of administrative acts.

The tokens that a hub had so far were all its owner's: they become those of its first user, an administrator
named `admin`, who owns its project.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

AUDIT_TRIGGERS = (
    "CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END",
    "CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END",
)


def upgrade() -> None:
    """Create the tables, and give what exists to the first user."""
    op.create_table(
        "account",
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("password", sa.Text(), nullable=True),
        sa.Column("admin", sa.Integer(), nullable=False),
        sa.Column("invite", sa.Text(), nullable=True),
        sa.Column("invite_until", sa.Float(), nullable=True),
        sa.Column("disabled_at", sa.Float(), nullable=True),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("n"),
        sa.UniqueConstraint("invite", name=op.f("uq_account_invite")),
        sa.UniqueConstraint("name", name=op.f("uq_account_name")),
    )
    op.create_table(
        "member",
        sa.Column("project", sa.Integer(), nullable=False),
        sa.Column("account", sa.Integer(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.CheckConstraint("role IN ('viewer', 'operator', 'owner')", name=op.f("ck_member_role")),
        sa.PrimaryKeyConstraint("project", "account"),
    )
    op.create_index("ix_member_account", "member", ["account"], unique=False)
    op.create_table(
        "audit",
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("project", sa.Integer(), nullable=False),
        sa.Column("no", sa.Integer(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("token", sa.Text(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("details", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("n"),
        sa.UniqueConstraint("project", "no", name=op.f("uq_audit_project_no")),
        sqlite_autoincrement=True,
    )
    for trigger in AUDIT_TRIGGERS:
        op.execute(trigger)
    op.add_column("token", sa.Column("account", sa.Integer(), nullable=True))
    op.add_column("token", sa.Column("role", sa.Text(), nullable=True))
    op.create_index("ix_token_account", "token", ["account"], unique=False)
    op.execute(
        "INSERT INTO account (name, admin, created_at) SELECT 'admin', 1, min(created_at) FROM project HAVING count(*) > 0"
    )
    op.execute(
        "INSERT INTO member (project, account, role, created_at) SELECT p.n, a.n, 'owner', p.created_at FROM project p CROSS JOIN account a"
    )
    op.execute("UPDATE token SET account = (SELECT n FROM account) WHERE scope = 'user'")
