"""A reference: the rows that the Hub wrote, written again by bare sqlite3.

Same schema (tables, indexes, checks, triggers), same journal mode, full sync, one transaction for each
1 000 Jobs; no checks of ours, no signatures, no HTTP. What is copied is the Hub's own database.
"""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from chappe.store.migrate import migrate

BATCH = 1_000
_TABLES = {"job": "n", "event": "seq", "submission": "n"}

Marks = dict[str, int]


def marks(database: Path) -> Marks:
    """How far each table has got: rows beyond are those that are written from now on."""
    with closing(_reader(database)) as conn:
        return {
            table: conn.execute(f"SELECT COALESCE(max({key}), 0) FROM {table}").fetchone()[0]  # noqa: S608
            for table, key in _TABLES.items()
        }


def jobs_per_s(database: Path, after: Marks, scratch: Path) -> float:
    """Jobs per second at which the rows beyond `after` go into a new database at `scratch`."""
    with closing(_reader(database)) as conn:
        rows = {
            table: conn.execute(
                f"SELECT * FROM {table} WHERE {key} > ? ORDER BY {key}",  # noqa: S608
                (after[table],),
            ).fetchall()
            for table, key in _TABLES.items()
        }
    jobs = len(rows["job"])
    batches = -(-jobs // BATCH)
    parts = [
        {table: _part(found, i, batches) for table, found in rows.items()} for i in range(batches)
    ]
    migrate(scratch)
    with closing(sqlite3.connect(scratch, isolation_level=None)) as conn:
        conn.execute("PRAGMA journal_mode = WAL")
        conn.execute("PRAGMA synchronous = FULL")
        began = time.perf_counter()
        for part in parts:
            conn.execute("BEGIN IMMEDIATE")
            for table, some in part.items():
                if some:
                    marks_ = ", ".join("?" * len(some[0]))
                    conn.executemany(f"INSERT INTO {table} VALUES ({marks_})", some)  # noqa: S608
            conn.execute("UPDATE project SET next_seq = next_seq + ?", (len(part["event"]),))
            conn.execute("COMMIT")
        return jobs / (time.perf_counter() - began)


def _reader(database: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{database}?mode=ro", uri=True)


def _part(rows: list[Any], i: int, of: int) -> list[Any]:
    size = -(-len(rows) // of)
    return rows[i * size : (i + 1) * size]
