"""Migrations: they make what the tables say, once, or nothing at all."""

from __future__ import annotations

import os
import re
import sqlite3
import stat
import subprocess
import sys
import warnings
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from chappe.core.errors import Unavailable
from chappe.store import migrate, tables

#: Migrates, and dies at the n-th statement.
DIE = """
import os, signal, sys
from pathlib import Path
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from chappe.store import migrate
left = int(sys.argv[2])
@sa.event.listens_for(Engine, "after_cursor_execute")
def count(*_):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
migrate.migrate(Path(sys.argv[1]))
print(left)
"""


def schema(conn: sqlite3.Connection) -> dict[tuple[str, str], str]:
    """Everything that is defined, as SQLite keeps it, without differences of layout."""
    found = conn.execute(
        "SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL "
        "AND name NOT LIKE 'alembic%' AND name NOT LIKE 'sqlite_%'"
    )
    return {(kind, name): _canonical(sql) for kind, name, sql in found}


def _canonical(sql: str) -> str:
    """The parts of a definition in an order of their own: a column that was added later stands at the end,
    and the order of constraints means nothing."""
    one_line = re.sub(r"\s+", " ", sql).replace("( ", "(").replace(" )", ")").strip()
    head, _, body = one_line.partition("(")
    depth, parts = 0, [""]
    for character in body:
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return head + ",".join(sorted(part.strip(" )") for part in parts))


def test_a_fresh_schema_is_what_the_tables_say(memory: Path) -> None:
    path = memory / "hub.db"
    migrate.migrate(path)
    engine = sa.create_engine(f"sqlite:///{path}")

    def compares(_thing: object, name: str | None, *_: object) -> bool:
        # SQLite does not tell Alembic of DESC and of expressions; their text is compared below.
        return name not in ("ix_job_waiting", "ix_job_list")

    with warnings.catch_warnings(), engine.connect() as conn:
        warnings.filterwarnings("ignore", ".*expression-based index .?ix_job_list")
        context = MigrationContext.configure(conn, opts={"include_object": compares})
        assert compare_metadata(context, tables.metadata) == []
    engine.dispose()


def test_checks_indexes_and_the_trigger_are_what_the_tables_say(memory: Path) -> None:
    migrate.migrate(memory / "migrated.db")
    engine = sa.create_engine(f"sqlite:///{memory / 'made.db'}")
    tables.metadata.create_all(engine)
    with engine.begin() as conn:
        for trigger in (tables.LEGAL_TRIGGER, *tables.AUDIT_TRIGGERS):
            conn.exec_driver_sql(trigger)
    engine.dispose()
    with (
        closing(sqlite3.connect(memory / "migrated.db")) as migrated,
        closing(sqlite3.connect(memory / "made.db")) as made,
    ):
        ours, wanted = schema(migrated), schema(made)
    assert ours.keys() == wanted.keys()
    for key, sql in wanted.items():
        assert ours[key] == sql, key


def test_the_head_that_is_checked_for_is_the_newest(memory: Path) -> None:
    scripts = ScriptDirectory(str(Path(migrate.__file__).parent / "migrations"))
    assert scripts.get_heads() == [migrate.HEAD]
    assert migrate.current(memory / "hub.db") is None
    migrate.migrate(memory / "hub.db")
    assert migrate.current(memory / "hub.db") == migrate.HEAD


def test_an_older_hubs_tokens_become_those_of_its_first_user(memory: Path) -> None:
    path = memory / "hub.db"
    engine = sa.create_engine(f"sqlite:///{path}")
    config = Config()
    config.set_main_option("script_location", str(Path(migrate.__file__).parent / "migrations"))
    with engine.begin() as conn:
        config.attributes["connection"] = conn
        command.upgrade(config, "0001")
        for row in (
            "project (n, id, name, next_seq, created_at) VALUES (7, 'p', 'default', 1, 5.0)",
            "token VALUES ('a', 'h', 'user', 7, NULL, NULL, 'owner', 6.0, NULL, NULL)",
            "token VALUES ('b', 'h', 'site', 7, 1, NULL, 'site', 6.0, NULL, NULL)",
        ):
            conn.exec_driver_sql(f"INSERT INTO {row}")
    engine.dispose()
    migrate.migrate(path)
    with closing(sqlite3.connect(path)) as conn:
        accounts = conn.execute("SELECT n, name, admin, password, disabled_at FROM account")
        assert accounts.fetchall() == [(1, "admin", 1, None, None)]
        assert conn.execute("SELECT * FROM member").fetchall() == [(7, 1, "owner", 5.0)]
        tokens = conn.execute("SELECT prefix, account, role FROM token ORDER BY prefix")
        assert tokens.fetchall() == [("a", 1, None), ("b", None, None)]


def test_an_older_hubs_jobs_rest_where_they_stand_and_ended_when_they_changed(memory: Path) -> None:
    path = memory / "hub.db"
    engine = sa.create_engine(f"sqlite:///{path}")
    config = Config()
    config.set_main_option("script_location", str(Path(migrate.__file__).parent / "migrations"))
    jobs = [
        ("AWAITING_PARENTS", "waiting", 0, "AWAITING_PARENTS", None),
        ("PREPROCESSED", "runnable", 0, "PREPROCESSED", None),
        ("RUNNING", "running", 1, "PREPROCESSED", None),
        ("RUNNING", "running", 2, "RESTART_READY", None),
        ("RESTART_READY", "runnable", 1, "RESTART_READY", None),
        ("JOB_FINISHED", "finished", 1, "JOB_FINISHED", 7.0),
        ("FAILED", "failed", 3, "FAILED", 7.0),
        ("CANCELLED", "cancelled", 0, "CANCELLED", 7.0),
        ("FAILED", "deleted", 1, None, 7.0),
    ]
    with engine.begin() as conn:
        config.attributes["connection"] = conn
        command.upgrade(config, "0004")
        for n, (state, phase, attempt, _, _) in enumerate(jobs, 1):
            conn.exec_driver_sql(
                "INSERT INTO job (n, project, id, state, phase, shape, priority, epoch, attempt, "
                "max_attempts, idx, name, waiting_parents, created_at, changed_at, spec) "
                "VALUES (?, 1, ?, ?, ?, 1, 0, 1, ?, 3, 0, '', 0, 5.0, 7.0, '{}')",
                (n, f"j{n}", state, phase, attempt),
            )
    engine.dispose()
    migrate.migrate(path)
    with closing(sqlite3.connect(path)) as conn:
        found = conn.execute("SELECT state, phase, attempt, resting, ended_at FROM job ORDER BY n")
        assert found.fetchall() == jobs


def test_a_new_hub_has_no_user_before_its_first_start(memory: Path) -> None:
    migrate.migrate(memory / "hub.db")
    with closing(sqlite3.connect(memory / "hub.db")) as conn:
        assert conn.execute("SELECT count(*) FROM account").fetchone() == (0,)


def test_migrating_again_does_nothing(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = memory / "hub.db"
    migrate.migrate(path)
    before = path.read_bytes()
    monkeypatch.setitem(
        sys.modules, "alembic", None
    )  # not even imported: it costs a start its time
    migrate.migrate(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("statement", [1, 4, 20, 30])
def test_killed_half_way_nothing_has_happened(memory: Path, statement: int) -> None:
    path = memory / "hub.db"
    died = subprocess.run(
        [sys.executable, "-I", "-c", DIE, str(path), str(statement)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert died.returncode == -9, died.stdout + died.stderr
    with closing(sqlite3.connect(path)) as conn:
        assert conn.execute("SELECT name FROM sqlite_master").fetchall() == []
    migrate.migrate(path)
    assert migrate.current(path) == migrate.HEAD


def test_killed_before_the_commit_nothing_has_happened(memory: Path) -> None:
    whole = [sys.executable, "-I", "-c", DIE, str(memory / "whole.db"), "0"]
    done = subprocess.run(whole, capture_output=True, text=True, check=True)
    last = -int(done.stdout)
    assert last > 30
    test_killed_half_way_nothing_has_happened(memory, last)


def test_the_file_is_for_its_owner_alone(memory: Path) -> None:
    umask = os.umask(0)
    try:
        migrate.migrate(memory / "hub.db")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((memory / "hub.db").stat().st_mode) == 0o600


def test_a_database_of_a_later_version_is_left_alone(memory: Path) -> None:
    path = memory / "hub.db"
    migrate.migrate(path)
    with closing(sqlite3.connect(path)) as conn, conn:
        conn.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(Unavailable, match="later version") as caught:
        migrate.migrate(path)
    assert caught.value.field == "db"


def test_what_is_no_database_is_left_alone(memory: Path) -> None:
    path = memory / "hub.db"
    path.write_bytes(b"a letter to my aunt\n" * 500)
    with pytest.raises(Unavailable, match="not a database"):
        migrate.migrate(path)
    assert path.read_bytes().startswith(b"a letter")
