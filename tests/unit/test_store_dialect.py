"""One text for both databases: what each is told."""

from __future__ import annotations

import re

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from chappe.store.dialect import sql

POSTGRESQL: sa.Dialect = postgresql.psycopg.dialect()  # type: ignore[no-untyped-call]

SETS = sql("""
    SELECT a.value, b.value, c.value, d.n, d.app FROM ints(:ns) a, texts(:ids) b, pairs(:by_n) c,
    rows(:rows, n int, app text) d""")


def test_sets_come_as_json_in_sqlite() -> None:
    engine = sa.create_engine("sqlite://")
    with engine.connect() as conn:
        found = conn.execute(
            SETS, {"ns": "[7]", "ids": '["x"]', "by_n": '{"3": "y"}', "rows": "[[1, null]]"}
        ).fetchall()
    engine.dispose()
    assert found == [(7, "x", "y", 1, None)]


def test_postgresql_is_told_the_types() -> None:
    text = " ".join(str(SETS.compile(dialect=POSTGRESQL)).split())
    assert "CAST(value AS bigint) AS value FROM json_array_elements_text" in text
    assert "json_each_text(CAST(%(by_n)s AS json)) c" in text
    assert "CAST(value->>0 AS bigint) AS n, CAST(value->>1 AS text) AS app" in text
    assert "json_each(" not in text


def test_a_field_of_json_and_the_order_of_a_join() -> None:
    statement = sql("SELECT 1 FROM a CROSS JOIN b ON a.n = b.n AND a.x = b.outcome ->> 'sha'")
    lite = str(statement.compile(dialect=sqlite.dialect()))
    post = str(statement.compile(dialect=POSTGRESQL))
    assert lite == statement.text
    assert post == (
        "SELECT 1 FROM a CROSS JOIN LATERAL (SELECT * FROM b b WHERE a.n = b.n "
        'AND a.x = substring(b.outcome from \'"sha":"([^"\\\\]*)"\') OFFSET 0) b'
    )


def test_a_part_of_an_expression_keeps_its_parameters() -> None:
    ids = sql("SELECT value FROM texts(:wanted) v").bindparams(wanted='["a"]')
    query = sa.select(sa.column("id", sa.Text)).where(sa.column("id", sa.Text).in_(ids))
    compiled = query.compile(dialect=POSTGRESQL)
    assert compiled.params == {"wanted": '["a"]'}
    assert re.search(r"id IN \(SELECT value FROM \(SELECT .*\) v\)$", str(compiled))


@pytest.mark.parametrize("text", ["SELECT points(:x) v", "SELECT rows, ints FROM t", "SELECT 1"])
def test_what_is_none_of_the_sets_is_left_alone(text: str) -> None:
    assert str(sql(text).compile(dialect=sqlite.dialect())).replace("?", ":x") == text
