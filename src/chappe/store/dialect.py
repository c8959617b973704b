"""One text for each statement, and what the two databases want to hear differently.

A set of any size is one parameter, JSON by `tx.to_json`, and a statement takes it as a table:

    ints(:ns) v                    a list of numbers:  v.value, in the order of v.key
    texts(:ids) v                  a list of texts:    v.value, in the order of v.key
    pairs(:rows) v                 an object:          v.key (text: CAST it), v.value (text)
    rows(:rows, n int, app text) v a list of lists:    v.n, v.app   (int, float or text)

and for each row of what stands before it

    CROSS JOIN each(SELECT n …)each v   the numbers that the query finds: v.value

SQLite reads them by json_each; PostgreSQL by its own functions, with the types said. Three more things
are written once: `column ->> 'field'`, a plain text of a column that holds JSON as we write it;
`CROSS JOIN t ON …`, by which both keep the order written, whatever they know of the tables' sizes; and
CAST(:x AS bigint), needed wherever `:x IS NULL` is asked, since PostgreSQL must know a parameter's type.

A statement is expanded when SQLAlchemy compiles it, once for each database, so it costs nothing later.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from sqlalchemy import TextClause
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler

_TABLE = re.compile(r"\b(ints|texts|pairs|rows)\((:\w+)((?:,\s*\w+ \w+)*)\)\s+(\w+)")
#: `CROSS JOIN table alias ON condition`, where the condition ends with the text or before the next clause.
_ORDERED = re.compile(
    r"CROSS JOIN (\w+)(?: (?!ON\b)(\w+))? ON\s+(.+?)"
    r"(?=\s+(?:CROSS JOIN|LEFT JOIN|JOIN|WHERE|GROUP BY|ORDER BY|LIMIT)\b|\s*$)",
    re.DOTALL,
)
_FIELD = re.compile(r"([\w.]+)\s*->>\s*'(\w+)'")
_TYPES = {"int": "bigint", "float": "double precision", "text": "text"}


class Statement(TextClause):
    """A statement, or a part of one, in the text for both databases."""

    inherit_cache = True


def sql(text: str) -> TextClause:
    """A named statement: `sqlalchemy.text`, with the tables above."""
    return Statement(text)


@compiles(Statement, "sqlite")
def _for_sqlite(statement: Statement, compiler: SQLCompiler, **more: Any) -> str:
    return _compiled(sqlite(statement.text), statement, compiler, more)


@compiles(Statement, "postgresql")
def _for_postgresql(statement: Statement, compiler: SQLCompiler, **more: Any) -> str:
    return _compiled(postgresql(statement.text), statement, compiler, more)


def _compiled(text: str, origin: Statement, compiler: SQLCompiler, more: dict[str, Any]) -> str:
    expanded = Statement(text)
    expanded._bindparams = origin._bindparams
    return str(compiler.visit_textclause(expanded, **more))  # type: ignore[no-untyped-call]


def sqlite(text: str) -> str:
    """The text for SQLite."""
    text = text.replace(" each(", " json_each((SELECT json_group_array(n) FROM (")
    text = text.replace(")each ", "))) ")
    return _expand(text, _sqlite_rows, dict.fromkeys(("ints", "texts", "pairs"), "json_each({})"))


def postgresql(text: str) -> str:
    """The text for PostgreSQL."""
    text = text.replace(" each(", " LATERAL (SELECT n AS value FROM (").replace(
        ")each ", ") found) "
    )
    # A subquery with OFFSET 0 is run for each row of what stands before it; so the order is kept.
    text = _ORDERED.sub(_for_each, text)
    # PostgreSQL's json refuses all of a text in which one string holds a NUL, as the end of a log may.
    text = _FIELD.sub(r"""substring(\1 from '"\2":"([^"\\\\]*)"')""", text)
    each = (
        "(SELECT ordinality AS key, CAST(value AS {type}) AS value"
        " FROM json_array_elements_text(CAST({{}} AS json)) WITH ORDINALITY)"
    )
    return _expand(
        text,
        _postgresql_rows,
        {
            "ints": each.format(type="bigint"),
            "texts": each.format(type="text"),
            "pairs": "json_each_text(CAST({} AS json))",
        },
    )


#: Whole numbers of 64 bits. (SQLite keeps its own name for them: only an INTEGER can be its row number.)
Integer = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
#: Texts, compared byte by byte as SQLite does, whatever language the server speaks.
Text = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def rows_where(condition: str) -> dict[str, Any]:
    """What makes an Index one of only the rows that meet `condition`, on both."""
    return {f"{name}_where": sa.text(condition) for name in ("sqlite", "postgresql")}


def _for_each(found: re.Match[str]) -> str:
    table, alias, condition = found.groups()
    name = alias or table
    return f"CROSS JOIN LATERAL (SELECT * FROM {table} {name} WHERE {condition} OFFSET 0) {name}"


_Columns = list[tuple[str, str]]


def _expand(text: str, rows: Callable[[str, _Columns], str], lists: dict[str, str]) -> str:
    def table(found: re.Match[str]) -> str:
        kind, param, columns, alias = found.groups()
        if kind != "rows":
            return f"{lists[kind].format(param)} {alias}"
        typed = [tuple(column.split()) for column in columns.split(",")[1:]]
        return f"{rows(param, [(name, _TYPES[type]) for name, type in typed])} {alias}"

    return _TABLE.sub(table, text)


def _sqlite_rows(param: str, columns: _Columns) -> str:
    fields = ", ".join(f"value->>{i} AS {name}" for i, (name, _) in enumerate(columns))
    return f"(SELECT {fields} FROM json_each({param}))"


def _postgresql_rows(param: str, columns: _Columns) -> str:
    fields = ", ".join(
        f"CAST(value->>{i} AS {type}) AS {name}" for i, (name, type) in enumerate(columns)
    )
    return f"(SELECT {fields} FROM json_array_elements(CAST({param} AS json)))"
