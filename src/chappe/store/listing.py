"""Pages, counts and selections of Jobs: which rows pass a filter, newest first, always by an index.

Rows are read from one source (`store.sources`), and checked for the other conditions piece by piece: at most
so many for a page, so a page may be shorter than asked for, or empty, and still say where to go on.

Jobs are numbered in the order of their creation, so a range of times of creation is a range of numbers. What
is asked for by the time of its end comes in that order, last first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection

from chappe.core import limits
from chappe.core.errors import Invalid, TooLarge
from chappe.store import sources
from chappe.store.dialect import sql
from chappe.store.principal import Principal
from chappe.store.select import conditions, is_in
from chappe.store.sources import ALL, OF_CELL, Cell, cells_of, source_of
from chappe.store.tables import ENDED, job
from chappe.wire.bulk import JobCount
from chappe.wire.jobs import JobFilter

#: Rows that a page may look at, and a count.
SCAN_PAGE = 10_000
SCAN_COUNT = 100_000
#: Rows of one piece.
CHUNK = 4_000
_NEVER = 1e300

OF_ENDED = sql(f"""
    SELECT n, ended_at FROM job WHERE project = :project AND {ENDED} AND ended_at >= :since
    AND (ended_at, n) < (:at, :below) ORDER BY ended_at DESC, n DESC LIMIT :most""")

ID_OF = sql("SELECT id FROM job WHERE n = :n")
#: Also of a Job that was deleted meanwhile: pages go on behind it.
N_OF = sql("SELECT n FROM job WHERE project = :project AND id = :id")

#: The least number of a Job that was created at `time` or later, of whichever project: by bisection, since
#: times rise with the numbers.
NUMBER_AT = sql("""
    WITH RECURSIVE range(low, high) AS (
        SELECT CAST(0 AS bigint), (SELECT COALESCE(max(n), 0) + 1 FROM job)
        UNION ALL
        SELECT CASE WHEN (SELECT created_at FROM job WHERE n >= (low + high) / 2 ORDER BY n LIMIT 1)
                         < :time THEN (low + high) / 2 + 1 ELSE low END,
               CASE WHEN (SELECT created_at FROM job WHERE n >= (low + high) / 2 ORDER BY n LIMIT 1)
                         < :time THEN high ELSE (low + high) / 2 END
        FROM range WHERE low < high)
    SELECT max(low) FROM range""")


class Place(NamedTuple):
    """Where a page ended: under this time of an end (with a filter by that), and this row number."""

    at: float
    n: int


#: Before any page.
START = Place(_NEVER, ALL)


def cursor_at(conn: Connection, place: Place) -> str:
    """A place as a cursor. It names the Job there, because row numbers count the Jobs of others as well."""
    id = conn.execute(ID_OF, {"n": place.n}).scalar_one()
    return f"{id}" if place.at == _NEVER else f"{place.at!r}:{id}"


def place_of(conn: Connection, p: Principal, cursor: str | None) -> Place:
    """The place that a cursor stands for. Raises Invalid when it is none, or its Job was cut meanwhile."""
    if cursor is None:
        return START
    found = re.fullmatch(r"(?:([0-9.e+]{1,30}):)?([0-9a-f-]{36})", cursor, re.ASCII)
    n = None
    if found is not None:
        n = conn.execute(N_OF, {"project": p.project_n, "id": found[2]}).scalar()
    try:
        if found is not None and n is not None:
            return Place(_NEVER if found[1] is None else float(found[1]), n)
    except ValueError:
        pass
    raise Invalid(
        "the cursor is not one that a page of jobs ended with, or that job is not kept any more",
        field="cursor",
    )


Pieces = Iterator[tuple[list[Place], Place | None]]


def list_numbers(
    conn: Connection, p: Principal, f: JobFilter, limit: int, after: Place
) -> tuple[list[int], Place | None]:
    """Up to `limit` row numbers, newest first, and where the next page begins."""
    found: list[Place] = []
    then: Place | None = after
    for some, then in _passing(conn, p, f, after, limit, SCAN_PAGE):  # noqa: B007 - also used below
        found += some
        if len(found) >= limit:
            break
    if len(found) > limit or (len(found) == limit and then is not None):
        then = found[limit - 1]
    return [place.n for place in found[:limit]], then


def count_jobs(conn: Connection, p: Principal, f: JobFilter) -> JobCount:
    """How many match: exact for sites, apps and states, otherwise to 10 000."""
    conditions(p.project_n, f)  # refuses a filter that is none
    if OF_CELL.issuperset(_given(f)):
        return JobCount(sum(cell.jobs for cell in cells_of(conn, p, f)), True)
    count, most, over = 0, limits.COUNT_EXACT, False
    for some, then in _passing(conn, p, f, START, most + 1, SCAN_COUNT):
        count += len(some)
        over = then is None
        if count > most:
            return JobCount(most, False)
    return JobCount(count, over)


def matching(conn: Connection, p: Principal, f: JobFilter) -> list[int]:
    """Row numbers of all Jobs that match, oldest first, as parents are mostly older than children."""
    found: list[int] = []
    for some, _ in _passing(conn, p, f, START, CHUNK, None):
        found += [place.n for place in some]
        if len(found) > limits.SELECTION_JOBS:
            raise TooLarge(
                f"more than {limits.SELECTION_JOBS} jobs match: narrow the filter", field="filter"
            )
    return sorted(found)


def _passing(
    conn: Connection, p: Principal, f: JobFilter, after: Place, wanted: int, scan: int | None
) -> Pieces:
    """What passes, in pieces, each with where to go on (None at the end); no more than about `scan` rows are
    looked at."""
    conditions(p.project_n, f)
    cells = cells_of(conn, p, f)
    if f.ended_since is not None or f.ended_until is not None:
        return _by_end(conn, p, f, cells, after, wanted, scan)
    return _by_number(conn, p, f, cells, after.n, wanted, scan)


def _by_number(
    conn: Connection,
    p: Principal,
    f: JobFilter,
    cells: list[Cell],
    below: int,
    wanted: int,
    scan: int | None,
) -> Pieces:
    first, end = _created(conn, f)
    source = source_of(conn, p, f, cells)
    covered = source.covers.issuperset(_given(f))
    below, looked = min(below, end), 0
    most = wanted if covered else max(wanted, 500)
    while scan is None or looked < scan:
        most = min(most, CHUNK)
        read = source.read(below, most)
        ns = read if not read or read[-1] >= first else [n for n in read if n >= first]
        last = len(read) < most or len(ns) < len(read)
        looked += len(read)
        below = read[-1] if read else below
        good = ns if covered or not ns else [n for n, _ in _checked(conn, p, f, ns)]
        yield [Place(_NEVER, n) for n in good], None if last else Place(_NEVER, below)
        if last:
            return
        most *= 2


def _by_end(
    conn: Connection,
    p: Principal,
    f: JobFilter,
    cells: list[Cell],
    after: Place,
    wanted: int,
    scan: int | None,
) -> Pieces:
    source = source_of(conn, p, f, cells)
    if source.size <= sources.FEW:
        good = _checked(conn, p, f, source.read(ALL, sources.FEW))
        falling = sorted((Place(at, n) for n, at in good), reverse=True)
        yield [place for place in falling if place < after], None
        return
    looked, most = 0, max(wanted, 500)
    until = _NEVER if f.ended_until is None else f.ended_until
    at = min(after, Place(until, 0))  # what ended at `until` itself is not asked for
    params = {"project": p.project_n, "since": f.ended_since or 0.0}
    while scan is None or looked < scan:
        most = min(most, CHUNK)
        found = conn.execute(OF_ENDED, {**params, "at": at.at, "below": at.n, "most": most})
        read = [Place(row.ended_at, row.n) for row in found]
        last = len(read) < most
        looked += len(read)
        at = read[-1] if read else at
        if _given(f) - _ENDED:
            good_ns = {n for n, _ in _checked(conn, p, f, [place.n for place in read])}
            read = [place for place in read if place.n in good_ns]
        yield read, None if last else at
        if last:
            return
        most *= 2


def _checked(
    conn: Connection, p: Principal, f: JobFilter, ns: Sequence[int]
) -> list[tuple[int, float]]:
    """Of these rows those that pass, newest first, each with the time of its end."""
    query = sa.select(job.c.n, job.c.ended_at).where(
        is_in(job.c.n, ns), *conditions(p.project_n, f)
    )
    return [(n, at) for n, at in conn.execute(query.order_by(job.c.n.desc()))]


_ENDED = frozenset({"ended_since", "ended_until"})


def _given(f: JobFilter) -> frozenset[str]:
    """The conditions that a filter names."""
    return frozenset(n for n in f.__struct_fields__ if getattr(f, n) not in (None, {}))


# -- times of creation -----------------------------------------------------------------------------


def _created(conn: Connection, f: JobFilter) -> tuple[int, int]:
    """The row numbers (first, end) that were given between two times."""
    first, end = 0, ALL
    if f.created_since is not None:
        first = _number_at(conn, f.created_since)
    if f.created_until is not None:
        end = _number_at(conn, f.created_until)
    return first, end


def _number_at(conn: Connection, time: float) -> int:
    return int(conn.execute(NUMBER_AT, {"time": time}).scalar_one())
