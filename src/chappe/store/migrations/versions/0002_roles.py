"""Users with roles in projects, service tokens, and the audit of administrative acts.

The tokens that a hub had so far were all its owner's: they become those of its first user, an administrator
named `admin`, who owns its project.
"""

import sqlalchemy as sa
from alembic import op

from chappe.store.dialect import Integer, Text

revision = "0002"
down_revision = "0001"

TRIGGERS = {
    "sqlite": [
        "CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END",
        "CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END",
    ],
    "postgresql": [
        """CREATE FUNCTION audit_stays() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'the audit is append-only' USING ERRCODE = 'check_violation'; END $$""",
        """CREATE TRIGGER audit_stays BEFORE UPDATE OR DELETE ON audit
FOR EACH ROW EXECUTE FUNCTION audit_stays()""",
    ],
}


def upgrade() -> None:
    """Create the tables, and give what exists to the first user."""
    op.create_table(
        "account",
        sa.Column("n", Integer, nullable=False),
        sa.Column("name", Text, nullable=False),
        sa.Column("password", Text, nullable=True),
        sa.Column("admin", Integer, nullable=False),
        sa.Column("invite", Text, nullable=True),
        sa.Column("invite_until", sa.Float(), nullable=True),
        sa.Column("disabled_at", sa.Float(), nullable=True),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("n"),
        sa.UniqueConstraint("invite", name=op.f("uq_account_invite")),
        sa.UniqueConstraint("name", name=op.f("uq_account_name")),
    )
    op.create_table(
        "member",
        sa.Column("project", Integer, nullable=False),
        sa.Column("account", Integer, nullable=False),
        sa.Column("role", Text, nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.CheckConstraint("role IN ('viewer', 'operator', 'owner')", name=op.f("ck_member_role")),
        sa.PrimaryKeyConstraint("project", "account"),
    )
    op.create_index("ix_member_account", "member", ["account"], unique=False)
    op.create_table(
        "audit",
        sa.Column("n", Integer, nullable=False),
        sa.Column("project", Integer, nullable=False),
        sa.Column("no", Integer, nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("actor", Text, nullable=False),
        sa.Column("token", Text, nullable=False),
        sa.Column("address", Text, nullable=False),
        sa.Column("action", Text, nullable=False),
        sa.Column("subject", Text, nullable=False),
        sa.Column("details", Text, nullable=True),
        sa.PrimaryKeyConstraint("n"),
        sa.UniqueConstraint("project", "no", name=op.f("uq_audit_project_no")),
        sqlite_autoincrement=True,
    )
    for trigger in TRIGGERS[op.get_bind().dialect.name]:
        op.execute(trigger)
    op.add_column("token", sa.Column("account", Integer, nullable=True))
    op.add_column("token", sa.Column("role", Text, nullable=True))
    op.create_index("ix_token_account", "token", ["account"], unique=False)
    op.execute(
        "INSERT INTO account (name, admin, created_at) SELECT 'admin', 1, min(created_at) FROM project HAVING count(*) > 0"
    )
    op.execute(
        "INSERT INTO member (project, account, role, created_at) SELECT p.n, a.n, 'owner', p.created_at FROM project p CROSS JOIN account a"
    )
    op.execute("UPDATE token SET account = (SELECT n FROM account) WHERE scope = 'user'")
