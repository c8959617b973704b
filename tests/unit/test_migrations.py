"""Migrations: the schema they make is the one the code believes in, all of it or nothing."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from chappe.core.errors import Unavailable
from chappe.store import migrate
from chappe.store.tables import LEGAL_TRIGGER, metadata

KILLED = """
import os, signal, sys
from pathlib import Path
import sqlalchemy as sa
from chappe.store import migrate

seen = 0

@sa.event.listens_for(sa.Engine, "before_cursor_execute")
def count(conn, cursor, statement, parameters, context, executemany):
    global seen
    seen += 1
    if seen == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

migrate.migrate(Path(sys.argv[1]))
print(seen)
"""


def schema(path: Path) -> dict[str, str]:
    """The SQL of each table, index and trigger, whatever its white space."""
    with closing(sqlite3.connect(path)) as conn:
        rows = conn.execute("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL")
        return {name: " ".join(sql.split()) for name, sql in rows}


def test_a_fresh_database_has_the_schema_of_the_code(memory: Path) -> None:
    path = memory / "hub.db"
    migrate.migrate(path)
    engine = sa.create_engine(f"sqlite:///{path}", poolclass=sa.NullPool)
    with engine.connect() as conn:
        context = MigrationContext.configure(conn)
        assert compare_metadata(context, metadata) == []


def test_checks_triggers_and_orders_too(memory: Path) -> None:
    """Alembic compares columns and indices; checks, defaults, conditions and the trigger are text."""
    migrated, direct = memory / "a.db", memory / "b.db"
    migrate.migrate(migrated)
    engine = sa.create_engine(f"sqlite:///{direct}", poolclass=sa.NullPool)
    with engine.begin() as conn:
        metadata.create_all(conn)
        conn.exec_driver_sql(LEGAL_TRIGGER)
    by_code, by_migration = schema(direct), schema(migrated)
    assert by_migration.pop("alembic_version")
    assert by_migration.keys() == by_code.keys()
    for name, sql in by_code.items():
        assert _parts(by_migration[name]) == _parts(sql), name


def _parts(sql: str) -> list[str]:
    """The items of a statement: the order of a table's constraints does not matter."""
    return sorted(item.strip(" ()") for item in sql.replace('"', "").split(","))


def test_migrating_again_does_nothing(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = memory / "hub.db"
    migrate.migrate(path)
    before = path.read_bytes()
    monkeypatch.setitem(sys.modules, "alembic", None)  # it would not even be imported
    migrate.migrate(path)
    assert path.read_bytes() == before
    assert migrate.current(path) == migrate.HEAD


def test_the_head_is_the_last_of_the_scripts() -> None:
    config = Config()
    location = Path(migrate.__file__).parent / "migrations"
    config.set_main_option("script_location", str(location))
    scripts = ScriptDirectory.from_config(config)
    assert scripts.get_heads() == [migrate.HEAD]
    # Versions are compared as text.
    assert all(len(s.revision) == 4 and s.revision.isdecimal() for s in scripts.walk_revisions())


def test_a_migrated_file_is_nobody_elses_to_read(memory: Path) -> None:
    before = os.umask(0)
    try:
        migrate.migrate(memory / "hub.db")
    finally:
        os.umask(before)
    assert stat.S_IMODE((memory / "hub.db").stat().st_mode) == 0o600


def test_no_database_has_no_version(memory: Path) -> None:
    assert migrate.current(memory / "none.db") is None
    sqlite3.connect(memory / "empty.db").close()
    assert migrate.current(memory / "empty.db") is None


def test_a_later_version_is_refused_and_left_alone(memory: Path) -> None:
    path = memory / "hub.db"
    migrate.migrate(path)
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("UPDATE alembic_version SET version_num = '9999'")
        conn.commit()
    before = path.read_bytes()
    with pytest.raises(Unavailable, match=r"later version of Chappe \(schema 9999") as caught:
        migrate.migrate(path)
    assert (caught.value.code, caught.value.field) == ("schema", "db")
    assert path.read_bytes() == before


def test_what_is_no_database_is_refused_and_left_alone(memory: Path) -> None:
    path = memory / "hub.db"
    path.write_bytes(b"precious notes, not a database" * 100)
    with pytest.raises(Unavailable, match="restore a backup") as caught:
        migrate.migrate(path)
    assert caught.value.code == "schema"
    assert path.read_bytes() == b"precious notes, not a database" * 100


def run_killed(path: Path, at: int) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-c", KILLED, str(path), str(at)]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


def test_a_migration_that_is_killed_has_not_happened(memory: Path) -> None:
    """At the first statement, in the middle, and at the last before the commit."""
    whole = run_killed(memory / "whole.db", 0)
    assert whole.returncode == 0, whole.stderr
    last = int(whole.stdout)
    assert last > 20
    for at in (2, last // 2, last):
        path = memory / f"{at}.db"
        assert run_killed(path, at).returncode == -signal.SIGKILL
        assert migrate.current(path) is None
        assert schema(path) == {}
        migrate.migrate(path)
        assert schema(path) == schema(memory / "whole.db")
