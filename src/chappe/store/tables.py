"""The tables. `n` is an internal row number, `id` the UUID that the world knows.

SQL is the second line of defence: a CHECK allows only legal Events, a trigger only legal changes of a
Job's row, a CHECK leases only in states that may be leased (promise I7).
"""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa
from sqlalchemy import (
    CheckConstraint,
    Column,
    Float,
    Index,
    LargeBinary,
    Table,
)

from chappe.core.states import LEASED, PHASE, TRANSITIONS, State, legal_updates
from chappe.store import bus_tables, journal_tables, series_tables, simulation_tables
from chappe.store.dialect import Integer, Text
from chappe.store.schema import metadata, partial

__all__ = ["bus_tables", "journal_tables", "metadata", "series_tables", "simulation_tables"]

#: The states that most rows pass come first: these conditions are evaluated for every row written.
_HOT = [State.RUNNING, State.RUN_DONE, State.JOB_FINISHED, State.PREPROCESSED]
_STATES = [*_HOT, *(state for state in State if state not in _HOT)]


def _legal(old: str, new: str, pairs: Iterable[tuple[State | None, State]]) -> str:
    """SQL: whether (old, new) is one of `pairs`. A CASE, because a long IN list costs 4 µs a row."""
    cases = []
    for state in _STATES:
        olds = sorted({"" if a is None else str(a) for a, b in pairs if b is state})
        if olds:
            either = " OR ".join(f"COALESCE({old}, '') = '{a}'" for a in olds)
            cases.append(f"WHEN '{state}' THEN {either}")
    return f"CASE {new} {' '.join(cases)} ELSE false END"


STEPS = {(old, new) for old, news in TRANSITIONS.items() for new in news}
PHASE_OF_STATE = " ".join(f"WHEN '{state}' THEN '{PHASE[state]}'" for state in _STATES)
LEASABLE = ", ".join(f"'{state}'" for state in sorted(LEASED))

hub = Table(
    "hub",
    metadata,
    Column("n", Integer, primary_key=True),
    Column("incarnation", Integer, nullable=False),
    Column("commit_no", Integer, nullable=False),
    Column("next_job", Integer, nullable=False),
    Column("next_position", Integer, nullable=False, server_default="1"),
    Column("next_lease", Integer, nullable=False, server_default="1"),
    CheckConstraint("n = 1", name="one_row"),
)

project = Table(
    "project",
    metadata,
    Column("n", Integer, primary_key=True),
    Column("id", Text, nullable=False, unique=True),
    Column("name", Text, nullable=False, unique=True),
    Column("next_seq", Integer, nullable=False),
    Column("created_at", Float, nullable=False),
)

#: A user of the hub. `password` is a scrypt hash, NULL until one is set. `invite` is the sha256 of the one
#: invitation that is open, if any.
account = Table(
    "account",
    metadata,
    Column("n", Integer, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("password", Text),
    Column("admin", Integer, nullable=False),
    Column("invite", Text, unique=True),
    Column("invite_until", Float),
    Column("disabled_at", Float),
    Column("created_at", Float, nullable=False),
)

member = Table(
    "member",
    metadata,
    Column("project", Integer, primary_key=True),
    Column("account", Integer, primary_key=True),
    Column("role", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    CheckConstraint("role IN ('viewer', 'operator', 'owner')", name="role"),
    Index("ix_member_account", "account"),
)

#: Administrative acts: appended, never changed (AUDIT_TRIGGERS). `no` counts per project, so that it tells
#: nothing of others; project 0 is the hub itself.
audit = Table(
    "audit",
    metadata,
    Column("n", Integer, primary_key=True),
    Column("project", Integer, nullable=False),
    Column("no", Integer, nullable=False),
    Column("at", Float, nullable=False),
    Column("actor", Text, nullable=False),
    Column("token", Text, nullable=False),
    Column("address", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("details", Text),
    sa.UniqueConstraint("project", "no"),
    sqlite_autoincrement=True,
)

#: A user's token belongs to an account, with its role in the project; a service token has its own `role`.
token = Table(
    "token",
    metadata,
    Column("prefix", Text, primary_key=True),
    Column("hash", Text, nullable=False),
    Column("scope", Text, nullable=False),
    Column("project", Integer, nullable=False),
    Column("site", Integer),
    Column("session", Integer),
    Column("note", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float),
    Column("revoked_at", Float),
    Column("account", Integer),
    Column("role", Text),
    Column("producer", Integer),
    CheckConstraint("scope IN ('user', 'site', 'session', 'producer')", name="scope"),
    Index("ix_token_session", "session"),
    Index("ix_token_account", "account"),
)

site = Table(
    "site",
    metadata,
    Column("n", Integer, primary_key=True),
    Column("project", Integer, nullable=False),
    Column("id", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("agent", Text),
    Column("agent_host", Text, nullable=False, server_default=""),
    Column("agent_seen_at", Float),
    Column("created_at", Float, nullable=False),
    Column("key", Text, nullable=False, server_default=""),
    Column("decided", Integer, nullable=False, server_default="0"),
    sa.UniqueConstraint("project", "id"),
    sa.UniqueConstraint("project", "name"),
    sqlite_autoincrement=True,
)

app = Table(
    "app",
    metadata,
    Column("site", Integer, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("view", Text, nullable=False),
)

submission = Table(
    "submission",
    metadata,
    Column("n", Integer, primary_key=True),
    Column("project", Integer, nullable=False),
    Column("id", Text, nullable=False),
    Column("statement", Text, nullable=False),
    Column("sig", Text, nullable=False),
    Column("not_after", Float, nullable=False),
    sa.UniqueConstraint("project", "id"),
)

#: `waiting` counts the Jobs of a Shape that could be granted now. A Shape names its Sites, so this one
#: number is the count at each of them, and a grant lowers it everywhere.
shape = Table(
    "shape",
    metadata,
    Column("n", Integer, primary_key=True),
    Column("project", Integer, nullable=False),
    Column("hash", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("waiting", Integer, nullable=False),
    sa.UniqueConstraint("project", "hash"),
    CheckConstraint("waiting >= 0", name="waiting"),
)


#: Whether a Job has ended, whatever the way: what `ended_since` looks through.
ENDED = "resting IN ('JOB_FINISHED', 'FAILED', 'CANCELLED')"

#: Whether a Job can be granted at this moment: the predicate of the index that acquire walks. (What runs has
#: a Session.)
WAITS = (
    "resting IN ('PREPROCESSED', 'RESTART_READY') AND session IS NULL AND not_before IS NULL "
    "AND held_at IS NULL"
)

# No index holds, nor any predicate asks for, what changes when a Job starts: its state, phase, attempt and
# changed_at. Each index that did would be rewritten at each start, and PostgreSQL would rewrite all of them.

job = Table(
    "job",
    metadata,
    Column("n", Integer, primary_key=True),
    Column("project", Integer, nullable=False),
    Column("id", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("phase", Text, nullable=False),
    Column("shape", Integer, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("max_attempts", Integer, nullable=False),
    Column("session", Integer),
    Column("granted_request", Integer),
    Column("site", Integer),
    Column("submission", Integer),
    Column("idx", Integer, nullable=False),
    Column("app", Text),
    Column("name", Text, nullable=False),
    Column("waiting_parents", Integer, nullable=False),
    Column("policy", Text),
    Column("retries", Text),
    Column("takeover_s", Float),
    Column("cancel_at", Float),
    Column("not_before", Float),
    Column("created_at", Float, nullable=False),
    Column("changed_at", Float, nullable=False),
    Column("outcome", Text),
    Column("envelope", Text),
    Column("spec", Text, nullable=False),
    Column("held_at", Float),
    Column("updated_at", Float),
    # The state in which it last did not run: that of a Job that runs is the one it was started from. None
    # for a tombstone.
    Column("resting", Text),
    # When it ended, or was deleted.
    Column("ended_at", Float),
    sa.UniqueConstraint("project", "id"),
    CheckConstraint(
        f"phase = 'deleted' OR phase = COALESCE(CASE state {PHASE_OF_STATE} END, '')", name="phase"
    ),
    CheckConstraint(f"session IS NULL OR state IN ({LEASABLE})", name="leased"),
    CheckConstraint("waiting_parents >= 0", name="parents"),
    partial("ix_job_waiting", "shape", sa.text("priority DESC"), "n", where=WAITS),
    partial("ix_job_session", "project", "session", where="session IS NOT NULL"),
    partial(
        "ix_job_list",
        "project",
        sa.text("COALESCE(site, 0)"),
        sa.text("COALESCE(app, '')"),
        "resting",
        "n",
        where="resting IS NOT NULL",
    ),
    # Tombstones are left in, so that nothing ever rewrites it.
    Index("ix_job_name", "project", "name", "n"),
    partial("ix_job_ended", "project", "ended_at", "n", where=ENDED),
    partial("ix_job_held", "project", "n", where="held_at IS NOT NULL"),
    partial("ix_job_tombstone", "ended_at", where="resting IS NULL"),
    partial("ix_job_not_before", "not_before", where="not_before IS NOT NULL"),
)

edge = Table(
    "edge",
    metadata,
    Column("parent", Integer, primary_key=True),
    Column("child", Integer, primary_key=True),
    Column("pos", Integer, nullable=False),
    Index("ix_edge_child", "child", "pos"),
    sqlite_with_rowid=False,
)

tag = Table(
    "tag",
    metadata,
    Column("project", Integer, primary_key=True),
    Column("k", Text, primary_key=True),
    Column("v", Text, primary_key=True),
    Column("job", Integer, primary_key=True),
    Index("ix_tag_job", "job"),
    sqlite_with_rowid=False,
)

result = Table(
    "result",
    metadata,
    Column("job", Integer, primary_key=True),
    Column("epoch", Integer, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("media", Text, nullable=False),
    Column("body", LargeBinary, nullable=False),
)

batch_job = Table(
    "batch_job",
    metadata,
    Column("n", Integer, primary_key=True),
    Column("project", Integer, nullable=False),
    Column("id", Text, nullable=False),
    Column("site", Integer, nullable=False),
    Column("state", Text, nullable=False),
    Column("intent", Text, nullable=False),
    Column("scheduler_id", Text),
    Column("message", Text, nullable=False, server_default=""),
    Column("cancel_at", Float),
    Column("created_at", Float, nullable=False),
    sa.UniqueConstraint("project", "id"),
    CheckConstraint(
        "state IN ('requested', 'submitted', 'running', 'ended', 'failed', 'cancelled')",
        name="state",
    ),
    partial("ix_batch_job_open", "site", where="state IN ('requested', 'submitted', 'running')"),
    sqlite_autoincrement=True,
)

session = Table(
    "session",
    metadata,
    Column("n", Integer, primary_key=True),
    Column("project", Integer, nullable=False),
    Column("id", Text, nullable=False),
    Column("site", Integer, nullable=False),
    Column("batch_job", Integer, nullable=False, unique=True),
    Column("incarnation", Integer, nullable=False),
    Column("state", Text, nullable=False),
    Column("last_request", Integer, nullable=False),
    Column("last_report", Integer, nullable=False),
    Column("heard_at", Float, nullable=False),
    Column("hard_end_at", Float),
    Column("capacity", Text),
    Column("created_at", Float),
    Column("cores", Integer),
    sa.UniqueConstraint("project", "id"),
    CheckConstraint("state IN ('live', 'silent', 'dead')", name="state"),
    partial("ix_session_open", "site", where="state <> 'dead'"),
    sqlite_autoincrement=True,
)

event = Table(
    "event",
    metadata,
    Column("project", Integer, primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("job", Integer),
    Column("old", Text),
    Column("new", Text),
    Column("attempt", Integer, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("occurred_at", Float, nullable=False),
    Column("received_at", Float, nullable=False),
    Column("data", Text),
    CheckConstraint(f"kind <> 'job' OR {_legal('old', 'new', STEPS)}", name="legal"),
    partial("ix_event_job", "job", "seq", where="job IS NOT NULL"),
    sqlite_with_rowid=False,
)

counter = Table(
    "counter",
    metadata,
    Column("project", Integer, primary_key=True),
    Column("site", Integer, primary_key=True),
    Column("app", Text, primary_key=True),
    Column("state", Text, primary_key=True),
    Column("count", Integer, nullable=False),
    sqlite_with_rowid=False,
)

#: What matched a filter at one moment: the row numbers are in `selection_chunk`, some to a row.
selection = Table(
    "selection",
    metadata,
    Column("n", Integer, primary_key=True),
    Column("project", Integer, nullable=False),
    Column("id", Text, nullable=False),
    Column("filter", Text, nullable=False),
    Column("count", Integer, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    sa.UniqueConstraint("project", "id"),
    Index("ix_selection_expires_at", "expires_at"),
    sqlite_autoincrement=True,
)

selection_chunk = Table(
    "selection_chunk",
    metadata,
    Column("selection", Integer, primary_key=True),
    Column("pos", Integer, primary_key=True),
    Column("jobs", Text, nullable=False),
)

#: An act on a selection, and how far it has come: `pos` is the chunk that is next.
act = Table(
    "act",
    metadata,
    Column("n", Integer, primary_key=True),
    Column("project", Integer, nullable=False),
    Column("id", Text, nullable=False),
    Column("selection", Integer, nullable=False),
    Column("selection_id", Text, nullable=False),
    Column("verb", Text, nullable=False),
    Column("change", Text),
    Column("state", Text, nullable=False),
    Column("message", Text, nullable=False, server_default=""),
    Column("total", Integer, nullable=False),
    Column("done", Integer, nullable=False),
    Column("pos", Integer, nullable=False),
    Column("counts", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("ended_at", Float),
    sa.UniqueConstraint("project", "id"),
    CheckConstraint("state IN ('running', 'done', 'stopped', 'failed')", name="state"),
    partial("ix_act_open", "selection", where="ended_at IS NULL"),
    sqlite_autoincrement=True,
)

#: Jobs whose parents have ended, and that the next commands decide (store.changes).
unsettled = Table(
    "unsettled",
    metadata,
    Column("job", Integer, primary_key=True, autoincrement=False),
)

#: The legal changes of a row, once more in SQL. Written for SQLite; PostgreSQL's are in the migrations.
_ILLEGAL = (
    f"""OLD.state <> NEW.state AND NOT ({_legal("OLD.state", "NEW.state", legal_updates())})"""
)
LEGAL_TRIGGER = f"""
CREATE TRIGGER job_legal BEFORE UPDATE OF state ON job
WHEN {_ILLEGAL}
BEGIN SELECT RAISE(ABORT, 'illegal change of state'); END
"""

#: An audit row stays as it was written, also for whoever finds a way to run other statements.
AUDIT_TRIGGERS = tuple(
    f"CREATE TRIGGER audit_no_{act.lower()} BEFORE {act} ON audit "
    "BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END"
    for act in ("UPDATE", "DELETE")
)
