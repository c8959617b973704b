"""The first schema."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

LEGAL_TRIGGER = """CREATE TRIGGER job_legal BEFORE UPDATE OF state ON job
WHEN OLD.state <> NEW.state AND NOT (CASE NEW.state WHEN 'RUNNING' THEN COALESCE(OLD.state, '') = 'PREPROCESSED' OR COALESCE(OLD.state, '') = 'RESTART_READY' WHEN 'RUN_DONE' THEN COALESCE(OLD.state, '') = 'PREPROCESSED' OR COALESCE(OLD.state, '') = 'RESTART_READY' OR COALESCE(OLD.state, '') = 'RUNNING' WHEN 'JOB_FINISHED' THEN COALESCE(OLD.state, '') = 'POSTPROCESSED' OR COALESCE(OLD.state, '') = 'PREPROCESSED' OR COALESCE(OLD.state, '') = 'RESTART_READY' OR COALESCE(OLD.state, '') = 'RUNNING' OR COALESCE(OLD.state, '') = 'RUN_DONE' OR COALESCE(OLD.state, '') = 'STAGED_OUT' WHEN 'PREPROCESSED' THEN COALESCE(OLD.state, '') = 'AWAITING_PARENTS' OR COALESCE(OLD.state, '') = 'CREATED' OR COALESCE(OLD.state, '') = 'READY' OR COALESCE(OLD.state, '') = 'STAGED_IN' WHEN 'AWAITING_PARENTS' THEN COALESCE(OLD.state, '') = 'CANCELLED' OR COALESCE(OLD.state, '') = 'CREATED' OR COALESCE(OLD.state, '') = 'FAILED' WHEN 'READY' THEN COALESCE(OLD.state, '') = 'AWAITING_PARENTS' OR COALESCE(OLD.state, '') = 'CREATED' WHEN 'STAGED_IN' THEN COALESCE(OLD.state, '') = 'READY' WHEN 'RUN_ERROR' THEN COALESCE(OLD.state, '') = 'PREPROCESSED' OR COALESCE(OLD.state, '') = 'RESTART_READY' OR COALESCE(OLD.state, '') = 'RUNNING' WHEN 'RUN_TIMEOUT' THEN COALESCE(OLD.state, '') = 'PREPROCESSED' OR COALESCE(OLD.state, '') = 'RESTART_READY' OR COALESCE(OLD.state, '') = 'RUNNING' WHEN 'RESTART_READY' THEN COALESCE(OLD.state, '') = 'CANCELLED' OR COALESCE(OLD.state, '') = 'FAILED' OR COALESCE(OLD.state, '') = 'PREPROCESSED' OR COALESCE(OLD.state, '') = 'RESTART_READY' OR COALESCE(OLD.state, '') = 'RUNNING' OR COALESCE(OLD.state, '') = 'RUN_ERROR' OR COALESCE(OLD.state, '') = 'RUN_TIMEOUT' WHEN 'POSTPROCESSED' THEN COALESCE(OLD.state, '') = 'PREPROCESSED' OR COALESCE(OLD.state, '') = 'RESTART_READY' OR COALESCE(OLD.state, '') = 'RUNNING' OR COALESCE(OLD.state, '') = 'RUN_DONE' WHEN 'STAGED_OUT' THEN COALESCE(OLD.state, '') = 'POSTPROCESSED' OR COALESCE(OLD.state, '') = 'PREPROCESSED' OR COALESCE(OLD.state, '') = 'RESTART_READY' OR COALESCE(OLD.state, '') = 'RUNNING' OR COALESCE(OLD.state, '') = 'RUN_DONE' WHEN 'FAILED' THEN COALESCE(OLD.state, '') = 'AWAITING_PARENTS' OR COALESCE(OLD.state, '') = 'CREATED' OR COALESCE(OLD.state, '') = 'POSTPROCESSED' OR COALESCE(OLD.state, '') = 'PREPROCESSED' OR COALESCE(OLD.state, '') = 'READY' OR COALESCE(OLD.state, '') = 'RESTART_READY' OR COALESCE(OLD.state, '') = 'RUNNING' OR COALESCE(OLD.state, '') = 'RUN_DONE' OR COALESCE(OLD.state, '') = 'RUN_ERROR' OR COALESCE(OLD.state, '') = 'RUN_TIMEOUT' OR COALESCE(OLD.state, '') = 'STAGED_IN' OR COALESCE(OLD.state, '') = 'STAGED_OUT' WHEN 'CANCELLED' THEN COALESCE(OLD.state, '') = 'AWAITING_PARENTS' OR COALESCE(OLD.state, '') = 'CREATED' OR COALESCE(OLD.state, '') = 'PREPROCESSED' OR COALESCE(OLD.state, '') = 'READY' OR COALESCE(OLD.state, '') = 'RESTART_READY' OR COALESCE(OLD.state, '') = 'RUNNING' OR COALESCE(OLD.state, '') = 'RUN_ERROR' OR COALESCE(OLD.state, '') = 'RUN_TIMEOUT' OR COALESCE(OLD.state, '') = 'STAGED_IN' ELSE 0 END)
BEGIN SELECT RAISE(ABORT, 'illegal change of state'); END"""


def upgrade() -> None:
    """Create all tables, and the trigger that guards the state machine."""
    op.create_table(
        "app",
        sa.Column("site", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("view", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("site", "name"),
    )
    op.create_table(
        "batch_job",
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("project", sa.Integer(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("site", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("intent", sa.Text(), nullable=False),
        sa.Column("scheduler_id", sa.Text(), nullable=True),
        sa.Column("message", sa.Text(), server_default="", nullable=False),
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
        sqlite_where=sa.text("state IN ('requested', 'submitted', 'running')"),
    )
    op.create_table(
        "counter",
        sa.Column("project", sa.Integer(), nullable=False),
        sa.Column("site", sa.Integer(), nullable=False),
        sa.Column("app", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("project", "site", "app", "state"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "edge",
        sa.Column("parent", sa.Integer(), nullable=False),
        sa.Column("child", sa.Integer(), nullable=False),
        sa.Column("pos", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("parent", "child"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_edge_child", "edge", ["child", "pos"], unique=False)
    op.create_table(
        "event",
        sa.Column("project", sa.Integer(), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("job", sa.Integer(), nullable=True),
        sa.Column("old", sa.Text(), nullable=True),
        sa.Column("new", sa.Text(), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("occurred_at", sa.Float(), nullable=False),
        sa.Column("received_at", sa.Float(), nullable=False),
        sa.Column("data", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "kind <> 'job' OR CASE new WHEN 'RUNNING' THEN COALESCE(old, '') = 'PREPROCESSED' OR COALESCE(old, '') = 'RESTART_READY' WHEN 'RUN_DONE' THEN COALESCE(old, '') = 'RUNNING' WHEN 'JOB_FINISHED' THEN COALESCE(old, '') = 'POSTPROCESSED' OR COALESCE(old, '') = 'RUN_DONE' OR COALESCE(old, '') = 'STAGED_OUT' WHEN 'PREPROCESSED' THEN COALESCE(old, '') = '' OR COALESCE(old, '') = 'AWAITING_PARENTS' OR COALESCE(old, '') = 'CREATED' OR COALESCE(old, '') = 'READY' OR COALESCE(old, '') = 'STAGED_IN' WHEN 'CREATED' THEN COALESCE(old, '') = '' WHEN 'AWAITING_PARENTS' THEN COALESCE(old, '') = '' OR COALESCE(old, '') = 'CANCELLED' OR COALESCE(old, '') = 'CREATED' OR COALESCE(old, '') = 'FAILED' WHEN 'READY' THEN COALESCE(old, '') = '' OR COALESCE(old, '') = 'AWAITING_PARENTS' OR COALESCE(old, '') = 'CREATED' WHEN 'STAGED_IN' THEN COALESCE(old, '') = 'READY' WHEN 'RUN_ERROR' THEN COALESCE(old, '') = 'RUNNING' WHEN 'RUN_TIMEOUT' THEN COALESCE(old, '') = 'RUNNING' WHEN 'RESTART_READY' THEN COALESCE(old, '') = 'CANCELLED' OR COALESCE(old, '') = 'FAILED' OR COALESCE(old, '') = 'RUN_ERROR' OR COALESCE(old, '') = 'RUN_TIMEOUT' WHEN 'POSTPROCESSED' THEN COALESCE(old, '') = 'RUN_DONE' WHEN 'STAGED_OUT' THEN COALESCE(old, '') = 'POSTPROCESSED' OR COALESCE(old, '') = 'RUN_DONE' WHEN 'FAILED' THEN COALESCE(old, '') = 'AWAITING_PARENTS' OR COALESCE(old, '') = 'CREATED' OR COALESCE(old, '') = 'POSTPROCESSED' OR COALESCE(old, '') = 'PREPROCESSED' OR COALESCE(old, '') = 'READY' OR COALESCE(old, '') = 'RESTART_READY' OR COALESCE(old, '') = 'RUN_DONE' OR COALESCE(old, '') = 'RUN_ERROR' OR COALESCE(old, '') = 'RUN_TIMEOUT' OR COALESCE(old, '') = 'STAGED_IN' OR COALESCE(old, '') = 'STAGED_OUT' WHEN 'CANCELLED' THEN COALESCE(old, '') = 'AWAITING_PARENTS' OR COALESCE(old, '') = 'CREATED' OR COALESCE(old, '') = 'PREPROCESSED' OR COALESCE(old, '') = 'READY' OR COALESCE(old, '') = 'RESTART_READY' OR COALESCE(old, '') = 'RUNNING' OR COALESCE(old, '') = 'RUN_ERROR' OR COALESCE(old, '') = 'RUN_TIMEOUT' OR COALESCE(old, '') = 'STAGED_IN' ELSE 0 END",
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
        sqlite_where=sa.text("job IS NOT NULL"),
    )
    op.create_table(
        "hub",
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("incarnation", sa.Integer(), nullable=False),
        sa.Column("commit_no", sa.Integer(), nullable=False),
        sa.Column("next_job", sa.Integer(), nullable=False),
        sa.CheckConstraint("n = 1", name=op.f("ck_hub_one_row")),
        sa.PrimaryKeyConstraint("n"),
    )
    op.create_table(
        "job",
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("project", sa.Integer(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("phase", sa.Text(), nullable=False),
        sa.Column("shape", sa.Integer(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("max_attempts", sa.Integer(), nullable=False),
        sa.Column("session", sa.Integer(), nullable=True),
        sa.Column("granted_request", sa.Integer(), nullable=True),
        sa.Column("site", sa.Integer(), nullable=True),
        sa.Column("submission", sa.Integer(), nullable=True),
        sa.Column("idx", sa.Integer(), nullable=False),
        sa.Column("app", sa.Text(), nullable=True),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("waiting_parents", sa.Integer(), nullable=False),
        sa.Column("policy", sa.Text(), nullable=True),
        sa.Column("retries", sa.Text(), nullable=True),
        sa.Column("takeover_s", sa.Float(), nullable=True),
        sa.Column("cancel_at", sa.Float(), nullable=True),
        sa.Column("not_before", sa.Float(), nullable=True),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("changed_at", sa.Float(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.Column("envelope", sa.Text(), nullable=True),
        sa.Column("spec", sa.Text(), nullable=False),
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
        sqlite_where=sa.text("not_before IS NOT NULL"),
    )
    op.create_index("ix_job_phase", "job", ["project", "phase", "n"], unique=False)
    op.create_index(
        "ix_job_session",
        "job",
        ["session"],
        unique=False,
        sqlite_where=sa.text("session IS NOT NULL"),
    )
    op.create_table(
        "project",
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("next_seq", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("n"),
        sa.UniqueConstraint("id", name=op.f("uq_project_id")),
        sa.UniqueConstraint("name", name=op.f("uq_project_name")),
    )
    op.create_table(
        "result",
        sa.Column("job", sa.Integer(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("media", sa.Text(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("job"),
    )
    op.create_table(
        "session",
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("project", sa.Integer(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("site", sa.Integer(), nullable=False),
        sa.Column("batch_job", sa.Integer(), nullable=False),
        sa.Column("incarnation", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("last_request", sa.Integer(), nullable=False),
        sa.Column("last_report", sa.Integer(), nullable=False),
        sa.Column("heard_at", sa.Float(), nullable=False),
        sa.Column("hard_end_at", sa.Float(), nullable=True),
        sa.Column("capacity", sa.Text(), nullable=True),
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
        sqlite_where=sa.text("state <> 'dead'"),
    )
    op.create_table(
        "shape",
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("project", sa.Integer(), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("waiting", sa.Integer(), nullable=False),
        sa.CheckConstraint("waiting >= 0", name=op.f("ck_shape_waiting")),
        sa.PrimaryKeyConstraint("n"),
        sa.UniqueConstraint("project", "hash", name=op.f("uq_shape_project_hash")),
    )
    op.create_table(
        "site",
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("project", sa.Integer(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("agent", sa.Text(), nullable=True),
        sa.Column("agent_host", sa.Text(), server_default="", nullable=False),
        sa.Column("agent_seen_at", sa.Float(), nullable=True),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("n"),
        sa.UniqueConstraint("project", "id", name=op.f("uq_site_project_id")),
        sa.UniqueConstraint("project", "name", name=op.f("uq_site_project_name")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "submission",
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("project", sa.Integer(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("statement", sa.Text(), nullable=False),
        sa.Column("sig", sa.Text(), nullable=False),
        sa.Column("not_after", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("n"),
        sa.UniqueConstraint("project", "id", name=op.f("uq_submission_project_id")),
    )
    op.create_table(
        "tag",
        sa.Column("project", sa.Integer(), nullable=False),
        sa.Column("k", sa.Text(), nullable=False),
        sa.Column("v", sa.Text(), nullable=False),
        sa.Column("job", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("project", "k", "v", "job"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_tag_job", "tag", ["job"], unique=False)
    op.create_table(
        "token",
        sa.Column("prefix", sa.Text(), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("project", sa.Integer(), nullable=False),
        sa.Column("site", sa.Integer(), nullable=True),
        sa.Column("session", sa.Integer(), nullable=True),
        sa.Column("note", sa.Text(), nullable=False),
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
        sqlite_where=sa.text("phase = 'runnable' AND session IS NULL AND not_before IS NULL"),
    )
    op.execute(LEGAL_TRIGGER)
    op.execute("INSERT INTO hub (n, incarnation, commit_no, next_job) VALUES (1, 1, 0, 1)")
