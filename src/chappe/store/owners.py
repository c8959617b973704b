"""Whose messages come by a door: the projects and producers that a hub's configuration names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from sqlalchemy import Connection

from chappe.core.errors import Invalid
from chappe.store.dialect import sql
from chappe.store.journal import MAIN

#: How the project itself is called among its producers.
MAIN_NAME = "main"

PROJECT = sql("SELECT n FROM project WHERE name = :name")

PRODUCER = sql("""
    SELECT n FROM producer WHERE project = :project AND name = :name AND removed_at IS NULL""")


class Owner(NamedTuple):
    """Whose messages they are: row numbers of a project and of a producer in it (or MAIN)."""

    project: int
    producer: int


def owners(conn: Connection, names: Iterable[tuple[str, str]]) -> list[Owner]:
    """Those of (project, producer) by their names. Raises Invalid for what there is not."""
    return [owner(conn, project, producer) for project, producer in names]


def project(conn: Connection, name: str) -> int:
    """The row number of a project. Raises Invalid when there is none of this name."""
    n = conn.execute(PROJECT, {"name": name}).scalar()
    if n is None:
        raise Invalid(f"there is no project {name}", field="project")
    return int(n)


def owner(conn: Connection, in_project: str, producer: str) -> Owner:
    """The producer of this name in the project of that name. Raises Invalid when there is none."""
    n = project(conn, in_project)
    if producer == MAIN_NAME:
        return Owner(n, MAIN)
    row = conn.execute(PRODUCER, {"project": n, "name": producer}).first()
    if row is None:
        raise Invalid(
            f"the project {in_project} has no producer {producer}; make it with "
            f"`chappe producer add {producer}`",
            field="producer",
        )
    return Owner(n, int(row.n))
