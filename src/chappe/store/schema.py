"""What all tables share: their registry, and how their indexes are named and made."""

from __future__ import annotations

from sqlalchemy import Index, MetaData, TextClause

from chappe.store.dialect import rows_where

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)


def partial(name: str, *columns: str | TextClause, where: str) -> Index:
    """An index of those rows for which `where` holds."""
    return Index(name, *columns, **rows_where(where))
