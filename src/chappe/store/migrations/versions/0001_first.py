"""The first schema."""

import sqlalchemy as sa
from alembic import op

from chappe.store.dialect import Integer, Text, rows_where

revision = "0001"
down_revision = None

ILLEGAL = """OLD.state <> NEW.state AND NOT (CASE NEW.state WHEN 'RUNNING' THEN COALESCE(OLD.state, '') = 'PREPROCESSED' OR COALESCE(OLD.state, '') = 'RESTART_READY' WHEN 'RUN_DONE' THEN COALESCE(OLD.state, '') = 'PREPROCESSED' OR COALESCE(OLD.state, '') = 'RESTART_READY' OR COALESCE(OLD.state, '') = 'RUNNING' WHEN 'JOB_FINISHED' THEN COALESCE(OLD.state, '') = 'POSTPROCESSED' OR COALESCE(OLD.state, '') = 'PREPROCESSED' OR COALESCE(OLD.state, '') = 'RESTART_READY' OR COALESCE(OLD.state, '') = 'RUNNING' OR COALESCE(OLD.state, '') = 'RUN_DONE' OR COALESCE(OLD.state, '') = 'STAGED_OUT' WHEN 'PREPROCESSED' THEN COALESCE(OLD.state, '') = 'AWAITING_PARENTS' OR COALESCE(OLD.state, '') = 'CREATED' OR COALESCE(OLD.state, '') = 'READY' OR COALESCE(OLD.state, '') = 'STAGED_IN' WHEN 'AWAITING_PARENTS' THEN COALESCE(OLD.state, '') = 'CANCELLED' OR COALESCE(OLD.state, '') = 'CREATED' OR COALESCE(OLD.state, '') = 'FAILED' WHEN 'READY' THEN COALESCE(OLD.state, '') = 'AWAITING_PARENTS' OR COALESCE(OLD.state, '') = 'CREATED' WHEN 'STAGED_IN' THEN COALESCE(OLD.state, '') = 'READY' WHEN 'RUN_ERROR' THEN COALESCE(OLD.state, '') = 'PREPROCESSED' OR COALESCE(OLD.state, '') = 'RESTART_READY' OR COALESCE(OLD.state, '') = 'RUNNING' WHEN 'RUN_TIMEOUT' THEN COALESCE(OLD.state, '') = 'PREPROCESSED' OR COALESCE(OLD.state, '') = 'RESTART_READY' OR COALESCE(OLD.state, '') = 'RUNNING' WHEN 'RESTART_READY' THEN COALESCE(OLD.state, '') = 'CANCELLED' OR COALESCE(OLD.state, '') = 'FAILED' OR COALESCE(OLD.state, '') = 'PREPROCESSED' OR COALESCE(OLD.state, '') = 'RESTART_READY' OR COALESCE(OLD.state, '') = 'RUNNING' OR COALESCE(OLD.state, '') = 'RUN_ERROR' OR COALESCE(OLD.state, '') = 'RUN_TIMEOUT' WHEN 'POSTPROCESSED' THEN COALESCE(OLD.state, '') = 'PREPROCESSED' OR COALESCE(OLD.state, '') = 'RESTART_READY' OR COALESCE(OLD.state, '') = 'RUNNING' OR COALESCE(OLD.state, '') = 'RUN_DONE' WHEN 'STAGED_OUT' THEN COALESCE(OLD.state, '') = 'POSTPROCESSED' OR COALESCE(OLD.state, '') = 'PREPROCESSED' OR COALESCE(OLD.state, '') = 'RESTART_READY' OR COALESCE(OLD.state, '') = 'RUNNING' OR COALESCE(OLD.state, '') = 'RUN_DONE' WHEN 'FAILED' THEN COALESCE(OLD.state, '') = 'AWAITING_PARENTS' OR COALESCE(OLD.state, '') = 'CREATED' OR COALESCE(OLD.state, '') = 'POSTPROCESSED' OR COALESCE(OLD.state, '') = 'PREPROCESSED' OR COALESCE(OLD.state, '') = 'READY' OR COALESCE(OLD.state, '') = 'RESTART_READY' OR COALESCE(OLD.state, '') = 'RUNNING' OR COALESCE(OLD.state, '') = 'RUN_DONE' OR COALESCE(OLD.state, '') = 'RUN_ERROR' OR COALESCE(OLD.state, '') = 'RUN_TIMEOUT' OR COALESCE(OLD.state, '') = 'STAGED_IN' OR COALESCE(OLD.state, '') = 'STAGED_OUT' WHEN 'CANCELLED' THEN COALESCE(OLD.state, '') = 'AWAITING_PARENTS' OR COALESCE(OLD.state, '') = 'CREATED' OR COALESCE(OLD.state, '') = 'PREPROCESSED' OR COALESCE(OLD.state, '') = 'READY' OR COALESCE(OLD.state, '') = 'RESTART_READY' OR COALESCE(OLD.state, '') = 'RUNNING' OR COALESCE(OLD.state, '') = 'RUN_ERROR' OR COALESCE(OLD.state, '') = 'RUN_TIMEOUT' OR COALESCE(OLD.state, '') = 'STAGED_IN' ELSE false END)"""

TRIGGER = {
    "sqlite": [
        f"""CREATE TRIGGER job_legal BEFORE UPDATE OF state ON job
WHEN {ILLEGAL}
BEGIN SELECT RAISE(ABORT, 'illegal change of state'); END"""
    ],
    "postgresql": [
        """CREATE FUNCTION job_illegal() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'illegal change of state' USING ERRCODE = 'check_violation'; END $$""",
        f"""CREATE TRIGGER job_legal BEFORE UPDATE OF state ON job FOR EACH ROW
WHEN ({ILLEGAL})
EXECUTE FUNCTION job_illegal()""",
    ],
}


def upgrade() -> None:
    """Create all tables, and the trigger that guards the state machine."""
    op.create_table(
        "app",
        sa.Column("site", Integer, nullable=False),
        sa.Column("name", Text, nullable=False),
        sa.Column("view", Text, nullable=False),
        sa.PrimaryKeyConstraint("site", "name"),
    )
    op.create_table(
        "batch_job",
        sa.Column("n", Integer, nullable=False),
        sa.Column("project", Integer, nullable=False),
        sa.Column("id", Text, nullable=False),
        sa.Column("site", Integer, nullable=False),
        sa.Column("state", Text, nullable=False),
        sa.Column("intent", Text, nullable=False),
        sa.Column("scheduler_id", Text, nullable=True),
        sa.Column("message", Text, server_default="", nullable=False),
        sa.Column("cancel_at", sa.Float(), nullable=True),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.CheckConstraint(
            "state IN ('requested', 'submitted', 'running', 'ended', 'failed', 'cancelled')",
            name=op.f("ck_batch_job_state"),
        ),
        sa.PrimaryKeyConstraint("n"),
        sa.UniqueConstraint("project", "id", name=op.f("uq_batch_job_project_id")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_batch_job_open",
        "batch_job",
        ["site"],
        unique=False,
        **rows_where("state IN ('requested', 'submitted', 'running')"),
    )
    op.create_table(
        "counter",
        sa.Column("project", Integer, nullable=False),
        sa.Column("site", Integer, nullable=False),
        sa.Column("app", Text, nullable=False),
        sa.Column("state", Text, nullable=False),
        sa.Column("count", Integer, nullable=False),
        sa.PrimaryKeyConstraint("project", "site", "app", "state"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "edge",
        sa.Column("parent", Integer, nullable=False),
        sa.Column("child", Integer, nullable=False),
        sa.Column("pos", Integer, nullable=False),
        sa.PrimaryKeyConstraint("parent", "child"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_edge_child", "edge", ["child", "pos"], unique=False)
    op.create_table(
        "event",
        sa.Column("project", Integer, nullable=False),
        sa.Column("seq", Integer, nullable=False),
        sa.Column("kind", Text, nullable=False),
        sa.Column("job", Integer, nullable=True),
        sa.Column("old", Text, nullable=True),
        sa.Column("new", Text, nullable=True),
        sa.Column("attempt", Integer, nullable=False),
        sa.Column("epoch", Integer, nullable=False),
        sa.Column("occurred_at", sa.Float(), nullable=False),
        sa.Column("received_at", sa.Float(), nullable=False),
        sa.Column("data", Text, nullable=True),
        sa.CheckConstraint(
            "kind <> 'job' OR CASE new WHEN 'RUNNING' THEN COALESCE(old, '') = 'PREPROCESSED' OR COALESCE(old, '') = 'RESTART_READY' WHEN 'RUN_DONE' THEN COALESCE(old, '') = 'RUNNING' WHEN 'JOB_FINISHED' THEN COALESCE(old, '') = 'POSTPROCESSED' OR COALESCE(old, '') = 'RUN_DONE' OR COALESCE(old, '') = 'STAGED_OUT' WHEN 'PREPROCESSED' THEN COALESCE(old, '') = '' OR COALESCE(old, '') = 'AWAITING_PARENTS' OR COALESCE(old, '') = 'CREATED' OR COALESCE(old, '') = 'READY' OR COALESCE(old, '') = 'STAGED_IN' WHEN 'CREATED' THEN COALESCE(old, '') = '' WHEN 'AWAITING_PARENTS' THEN COALESCE(old, '') = '' OR COALESCE(old, '') = 'CANCELLED' OR COALESCE(old, '') = 'CREATED' OR COALESCE(old, '') = 'FAILED' WHEN 'READY' THEN COALESCE(old, '') = '' OR COALESCE(old, '') = 'AWAITING_PARENTS' OR COALESCE(old, '') = 'CREATED' WHEN 'STAGED_IN' THEN COALESCE(old, '') = 'READY' WHEN 'RUN_ERROR' THEN COALESCE(old, '') = 'RUNNING' WHEN 'RUN_TIMEOUT' THEN COALESCE(old, '') = 'RUNNING' WHEN 'RESTART_READY' THEN COALESCE(old, '') = 'CANCELLED' OR COALESCE(old, '') = 'FAILED' OR COALESCE(old, '') = 'RUN_ERROR' OR COALESCE(old, '') = 'RUN_TIMEOUT' WHEN 'POSTPROCESSED' THEN COALESCE(old, '') = 'RUN_DONE' WHEN 'STAGED_OUT' THEN COALESCE(old, '') = 'POSTPROCESSED' OR COALESCE(old, '') = 'RUN_DONE' WHEN 'FAILED' THEN COALESCE(old, '') = 'AWAITING_PARENTS' OR COALESCE(old, '') = 'CREATED' OR COALESCE(old, '') = 'POSTPROCESSED' OR COALESCE(old, '') = 'PREPROCESSED' OR COALESCE(old, '') = 'READY' OR COALESCE(old, '') = 'RESTART_READY' OR COALESCE(old, '') = 'RUN_DONE' OR COALESCE(old, '') = 'RUN_ERROR' OR COALESCE(old, '') = 'RUN_TIMEOUT' OR COALESCE(old, '') = 'STAGED_IN' OR COALESCE(old, '') = 'STAGED_OUT' WHEN 'CANCELLED' THEN COALESCE(old, '') = 'AWAITING_PARENTS' OR COALESCE(old, '') = 'CREATED' OR COALESCE(old, '') = 'PREPROCESSED' OR COALESCE(old, '') = 'READY' OR COALESCE(old, '') = 'RESTART_READY' OR COALESCE(old, '') = 'RUNNING' OR COALESCE(old, '') = 'RUN_ERROR' OR COALESCE(old, '') = 'RUN_TIMEOUT' OR COALESCE(old, '') = 'STAGED_IN' ELSE false END",
            name=op.f("ck_event_legal"),
        ),
        sa.PrimaryKeyConstraint("project", "seq"),
        sqlite_with_rowid=False,
    )
    op.create_index(
        "ix_event_job",
        "event",
        ["job", "seq"],
        unique=False,
        **rows_where("job IS NOT NULL"),
    )
    op.create_table(
        "hub",
        sa.Column("n", Integer, nullable=False),
        sa.Column("incarnation", Integer, nullable=False),
        sa.Column("commit_no", Integer, nullable=False),
        sa.Column("next_job", Integer, nullable=False),
        sa.CheckConstraint("n = 1", name=op.f("ck_hub_one_row")),
        sa.PrimaryKeyConstraint("n"),
    )
    op.create_table(
        "job",
        sa.Column("n", Integer, nullable=False),
        sa.Column("project", Integer, nullable=False),
        sa.Column("id", Text, nullable=False),
        sa.Column("state", Text, nullable=False),
        sa.Column("phase", Text, nullable=False),
        sa.Column("shape", Integer, nullable=False),
        sa.Column("priority", Integer, nullable=False),
        sa.Column("epoch", Integer, nullable=False),
        sa.Column("attempt", Integer, nullable=False),
        sa.Column("max_attempts", Integer, nullable=False),
        sa.Column("session", Integer, nullable=True),
        sa.Column("granted_request", Integer, nullable=True),
        sa.Column("site", Integer, nullable=True),
        sa.Column("submission", Integer, nullable=True),
        sa.Column("idx", Integer, nullable=False),
        sa.Column("app", Text, nullable=True),
        sa.Column("name", Text, nullable=False),
        sa.Column("waiting_parents", Integer, nullable=False),
        sa.Column("policy", Text, nullable=True),
        sa.Column("retries", Text, nullable=True),
        sa.Column("takeover_s", sa.Float(), nullable=True),
        sa.Column("cancel_at", sa.Float(), nullable=True),
        sa.Column("not_before", sa.Float(), nullable=True),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("changed_at", sa.Float(), nullable=False),
        sa.Column("outcome", Text, nullable=True),
        sa.Column("envelope", Text, nullable=True),
        sa.Column("spec", Text, nullable=False),
        sa.CheckConstraint(
            "phase = 'deleted' OR phase = COALESCE(CASE state WHEN 'RUNNING' THEN 'running' WHEN 'RUN_DONE' THEN 'running' WHEN 'JOB_FINISHED' THEN 'finished' WHEN 'PREPROCESSED' THEN 'runnable' WHEN 'CREATED' THEN 'waiting' WHEN 'AWAITING_PARENTS' THEN 'waiting' WHEN 'READY' THEN 'waiting' WHEN 'STAGED_IN' THEN 'waiting' WHEN 'RUN_ERROR' THEN 'running' WHEN 'RUN_TIMEOUT' THEN 'running' WHEN 'RESTART_READY' THEN 'runnable' WHEN 'POSTPROCESSED' THEN 'running' WHEN 'STAGED_OUT' THEN 'running' WHEN 'FAILED' THEN 'failed' WHEN 'CANCELLED' THEN 'cancelled' END, '')",
            name=op.f("ck_job_phase"),
        ),
        sa.CheckConstraint(
            "session IS NULL OR state IN ('PREPROCESSED', 'RESTART_READY', 'RUNNING')",
            name=op.f("ck_job_leased"),
        ),
        sa.CheckConstraint("waiting_parents >= 0", name=op.f("ck_job_parents")),
        sa.PrimaryKeyConstraint("n"),
        sa.UniqueConstraint("project", "id", name=op.f("uq_job_project_id")),
    )
    op.create_index(
        "ix_job_not_before",
        "job",
        ["not_before"],
        unique=False,
        **rows_where("not_before IS NOT NULL"),
    )
    op.create_index("ix_job_phase", "job", ["project", "phase", "n"], unique=False)
    op.create_index(
        "ix_job_session",
        "job",
        ["session"],
        unique=False,
        **rows_where("session IS NOT NULL"),
    )
    op.create_table(
        "project",
        sa.Column("n", Integer, nullable=False),
        sa.Column("id", Text, nullable=False),
        sa.Column("name", Text, nullable=False),
        sa.Column("next_seq", Integer, nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("n"),
        sa.UniqueConstraint("id", name=op.f("uq_project_id")),
        sa.UniqueConstraint("name", name=op.f("uq_project_name")),
    )
    op.create_table(
        "result",
        sa.Column("job", Integer, nullable=False),
        sa.Column("epoch", Integer, nullable=False),
        sa.Column("sha256", Text, nullable=False),
        sa.Column("media", Text, nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("job"),
    )
    op.create_table(
        "session",
        sa.Column("n", Integer, nullable=False),
        sa.Column("project", Integer, nullable=False),
        sa.Column("id", Text, nullable=False),
        sa.Column("site", Integer, nullable=False),
        sa.Column("batch_job", Integer, nullable=False),
        sa.Column("incarnation", Integer, nullable=False),
        sa.Column("state", Text, nullable=False),
        sa.Column("last_request", Integer, nullable=False),
        sa.Column("last_report", Integer, nullable=False),
        sa.Column("heard_at", sa.Float(), nullable=False),
        sa.Column("hard_end_at", sa.Float(), nullable=True),
        sa.Column("capacity", Text, nullable=True),
        sa.CheckConstraint("state IN ('live', 'silent', 'dead')", name=op.f("ck_session_state")),
        sa.PrimaryKeyConstraint("n"),
        sa.UniqueConstraint("batch_job", name=op.f("uq_session_batch_job")),
        sa.UniqueConstraint("project", "id", name=op.f("uq_session_project_id")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_session_open",
        "session",
        ["site"],
        unique=False,
        **rows_where("state <> 'dead'"),
    )
    op.create_table(
        "shape",
        sa.Column("n", Integer, nullable=False),
        sa.Column("project", Integer, nullable=False),
        sa.Column("hash", Text, nullable=False),
        sa.Column("body", Text, nullable=False),
        sa.Column("waiting", Integer, nullable=False),
        sa.CheckConstraint("waiting >= 0", name=op.f("ck_shape_waiting")),
        sa.PrimaryKeyConstraint("n"),
        sa.UniqueConstraint("project", "hash", name=op.f("uq_shape_project_hash")),
    )
    op.create_table(
        "site",
        sa.Column("n", Integer, nullable=False),
        sa.Column("project", Integer, nullable=False),
        sa.Column("id", Text, nullable=False),
        sa.Column("name", Text, nullable=False),
        sa.Column("agent", Text, nullable=True),
        sa.Column("agent_host", Text, server_default="", nullable=False),
        sa.Column("agent_seen_at", sa.Float(), nullable=True),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("n"),
        sa.UniqueConstraint("project", "id", name=op.f("uq_site_project_id")),
        sa.UniqueConstraint("project", "name", name=op.f("uq_site_project_name")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "submission",
        sa.Column("n", Integer, nullable=False),
        sa.Column("project", Integer, nullable=False),
        sa.Column("id", Text, nullable=False),
        sa.Column("statement", Text, nullable=False),
        sa.Column("sig", Text, nullable=False),
        sa.Column("not_after", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("n"),
        sa.UniqueConstraint("project", "id", name=op.f("uq_submission_project_id")),
    )
    op.create_table(
        "tag",
        sa.Column("project", Integer, nullable=False),
        sa.Column("k", Text, nullable=False),
        sa.Column("v", Text, nullable=False),
        sa.Column("job", Integer, nullable=False),
        sa.PrimaryKeyConstraint("project", "k", "v", "job"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_tag_job", "tag", ["job"], unique=False)
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
        sa.CheckConstraint("scope IN ('user', 'site', 'session')", name=op.f("ck_token_scope")),
        sa.PrimaryKeyConstraint("prefix"),
    )
    op.create_index("ix_token_session", "token", ["session"], unique=False)
    op.create_index(
        "ix_job_waiting",
        "job",
        ["shape", sa.text("priority DESC"), "n"],
        **rows_where("phase = 'runnable' AND session IS NULL AND not_before IS NULL"),
    )
    for statement in TRIGGER[op.get_bind().dialect.name]:
        op.execute(statement)
    op.execute("INSERT INTO hub (n, incarnation, commit_no, next_job) VALUES (1, 1, 0, 1)")
