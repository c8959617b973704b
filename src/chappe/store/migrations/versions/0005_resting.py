"""Indexes that a start of a Job leaves alone, and the time of a Job's end."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

from chappe.store.dialect import Text

revision = "0005"
down_revision = "0004"

#: What runs was granted from one of two states: the first, unless it was tried before.
FILL = (
    """UPDATE job SET resting = CASE WHEN phase = 'deleted' THEN NULL
        WHEN state NOT IN ('RUNNING', 'RUN_DONE', 'RUN_ERROR', 'RUN_TIMEOUT', 'POSTPROCESSED', 'STAGED_OUT')
        THEN state WHEN attempt > 1 THEN 'RESTART_READY' ELSE 'PREPROCESSED' END""",
    """UPDATE job SET ended_at = changed_at
    WHERE phase IN ('finished', 'failed', 'cancelled', 'deleted')""",
)

WAITS = (
    "resting IN ('PREPROCESSED', 'RESTART_READY') AND session IS NULL AND not_before IS NULL "
    "AND held_at IS NULL"
)
INDEXES: tuple[tuple[str, Sequence[str | sa.TextClause], str], ...] = (
    ("ix_job_waiting", ["shape", sa.text("priority DESC"), "n"], WAITS),
    ("ix_job_session", ["project", "session"], "session IS NOT NULL"),
    (
        "ix_job_list",
        ["project", sa.text("COALESCE(site, 0)"), sa.text("COALESCE(app, '')"), "resting", "n"],
        "resting IS NOT NULL",
    ),
    (
        "ix_job_ended",
        ["project", "ended_at", "n"],
        "resting IN ('JOB_FINISHED', 'FAILED', 'CANCELLED')",
    ),
    ("ix_job_tombstone", ["ended_at"], "resting IS NULL"),
)


def upgrade() -> None:
    """Fill the new columns and make those indexes again."""
    for name, _, _ in INDEXES:
        op.drop_index(name, "job")
    op.add_column("job", sa.Column("resting", Text, nullable=True))
    op.add_column("job", sa.Column("ended_at", sa.Float(), nullable=True))
    for statement in FILL:
        op.execute(statement)
    if op.get_bind().dialect.name == "postgresql":
        # Room on each page for the versions of its rows: what starts is then written beside what it was.
        op.execute("ALTER TABLE job SET (fillfactor = 70)")
    for name, columns, where in INDEXES:
        predicate = sa.text(where)
        op.create_index(name, "job", columns, sqlite_where=predicate, postgresql_where=predicate)
