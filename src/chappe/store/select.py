"""Filters of Jobs as SQL. The one place where a statement is put together, from Core expressions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy import Select

from chappe.core import limits
from chappe.core.errors import Invalid, TooLarge
from chappe.core.ids import check_id
from chappe.core.states import FINAL_PHASES, Phase, State
from chappe.store.dialect import sql
from chappe.store.tables import batch_job, edge, job, session, site, tag
from chappe.store.tx import to_json
from chappe.wire.jobs import JobFilter

T = TypeVar("T")

VALUES = sql("SELECT value FROM texts(:filter_ids) v")
NUMBERS = sql("SELECT value FROM ints(:filter_ns) v")

OPEN = "open"
"""For a filter: any phase that is not final. A Job leaves this list only when it ends."""
OPEN_PHASES = tuple(str(phase) for phase in Phase if phase not in FINAL_PHASES)


def where(query: Select[tuple[T]], project: int, f: JobFilter) -> Select[tuple[T]]:
    """`query` over `job`, narrowed to a project's Jobs (never tombstones) that pass the filter."""
    return query.where(job.c.project == project, *conditions(project, f))


def conditions(project: int, f: JobFilter) -> list[sa.ColumnElement[bool]]:
    """What a row of the project's must fulfil. None of it is to lead a search: `store.listing` does that.

    Raises Invalid for a filter that is none.
    """
    found: list[sa.ColumnElement[bool]] = [job.c.phase != "deleted"]
    if f.ids is not None:
        found.append(job.c.id.in_(_values(_ids(f.ids))))
    if f.id_prefix is not None:
        found.append(_prefix(f.id_prefix))
    if f.phase is not None:
        phase = _one_of(f.phase, [*Phase, OPEN], "phase")
        found.append(job.c.phase.in_(OPEN_PHASES) if phase == OPEN else job.c.phase == phase)
    if f.state is not None:
        found.append(job.c.state == _one_of(f.state, [*State], "state"))
    if f.app is not None:
        found.append(job.c.app == f.app)
    if f.name is not None:
        found.append(job.c.name == f.name)
    if f.site is not None:
        named = sa.select(site.c.n).where(
            site.c.project == project, sa.or_(site.c.id == f.site, site.c.name == f.site)
        )
        found.append(job.c.site.in_(named))
    if f.parent is not None:
        parent = job.alias("parent")
        found.append(
            sa.select(edge.c.child)
            .join(parent, parent.c.n == edge.c.parent)
            .where(parent.c.project == project, parent.c.id == check_id(f.parent, "parent"))
            .where(edge.c.child == job.c.n)
            .exists()
        )
    if f.session is not None or f.batch_job is not None:
        found.append(job.c.session.in_(sessions_of(project, f)))
    if f.name_prefix is not None:
        found.append(_begins(job.c.name, f.name_prefix))
    if f.held is not None:
        held = sa.and_(job.c.held_at.is_not(None), job.c.phase.in_(OPEN_PHASES))
        found.append(held if f.held else sa.not_(held))
    if len(f.tags) > limits.TAGS_PER_JOB:
        raise TooLarge(f"at most {limits.TAGS_PER_JOB} tags in a filter", field="tags")
    for k, v in f.tags.items():
        tagged = sa.select(tag.c.job).where(tag.c.project == project, tag.c.k == k, tag.c.v == v)
        found.append(tagged.where(tag.c.job == job.c.n).exists())
    return found + _times(f)


def sessions_of(project: int, f: JobFilter) -> Select[tuple[int]]:
    """The row numbers of the Sessions (one, or none) that a filter names. Raises Invalid."""
    found = sa.select(session.c.n).where(session.c.project == project)
    if f.session is not None:
        found = found.where(session.c.id == check_id(f.session, "session"))
    if f.batch_job is not None:
        id = check_id(f.batch_job, "batch_job")
        of = sa.select(batch_job.c.n).where(batch_job.c.project == project, batch_job.c.id == id)
        found = found.where(session.c.batch_job.in_(of))
    return found


def _times(f: JobFilter) -> list[sa.ColumnElement[bool]]:
    found: list[sa.ColumnElement[bool]] = []
    if f.ended_since is not None or f.ended_until is not None:
        found.append(job.c.phase.in_([str(p) for p in FINAL_PHASES]))
    for column, since, until in (
        (job.c.created_at, f.created_since, f.created_until),
        (job.c.ended_at, f.ended_since, f.ended_until),
    ):
        if since is not None:
            found.append(column >= since)
        if until is not None:
            found.append(column < until)
    return found


def is_in(column: sa.Column[int], ns: Sequence[int]) -> sa.ColumnElement[bool]:
    """Whether a row number is among these."""
    return column.in_(NUMBERS.bindparams(filter_ns=to_json(ns)))


def _ids(ids: list[str]) -> list[str]:
    if len(ids) > limits.IDS_PER_FILTER:
        raise TooLarge(
            f"{len(ids)} ids in a filter, the limit is {limits.IDS_PER_FILTER}: "
            "use tags, or several requests",
            field="filter.ids",
        )
    return [check_id(id, "filter.ids") for id in ids]


def _values(ids: list[str]) -> sa.TextClause:
    """A set of any size as one parameter."""
    return VALUES.bindparams(filter_ids=to_json(ids))


def _prefix(prefix: str) -> sa.ColumnElement[bool]:
    """Ids that begin with `prefix`: a range, so that the unique index serves it."""
    if not 4 <= len(prefix) <= 36 or any(c not in "0123456789abcdef-" for c in prefix):
        raise Invalid("an id prefix is 4 to 36 hexadecimal characters", field="id_prefix")
    return sa.and_(job.c.id >= prefix, job.c.id < prefix + "g")


def _begins(column: sa.Column[str], prefix: str) -> sa.ColumnElement[bool]:
    """Texts that begin with `prefix`, as a range that an index serves; texts compare by code points."""
    if not prefix or len(prefix) > limits.NAME_CHARS:
        raise Invalid(
            f"a name's beginning is 1 to {limits.NAME_CHARS} characters", field="name_prefix"
        )
    end = after_all(prefix)
    return column >= prefix if end is None else sa.and_(column >= prefix, column < end)


def after_all(prefix: str) -> str | None:
    """The least text that is greater than every one that begins with `prefix`; None when none is."""
    for at in range(len(prefix) - 1, -1, -1):
        code = ord(prefix[at]) + 1
        if code <= 0x10FFFF:
            return prefix[:at] + chr(0xE000 if code == 0xD800 else code)
    return None


def _one_of(value: str, allowed: list[State] | list[Phase], field: str) -> str:
    if value not in [str(a) for a in allowed]:
        raise Invalid(
            f"{value[:40]!r} is none of {', '.join(str(a) for a in allowed)}", field=field
        )
    return value
