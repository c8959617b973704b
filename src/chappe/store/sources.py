"""Where a list of Jobs is read from: for each condition an index; of several, that with the fewest rows.

`counter` says which *cells* (site, app, state) have Jobs, and one index holds all that are not deleted by
(site, app, resting state). So a filter on these, or none at all, is a merge of a few ranges, whatever was
deleted and whoever else has Jobs, and what it finds is counted already. Jobs that run stand where they
rested last: they are few, for a Session holds them all, and passed over; those in a state of running alone
are read from the Sessions.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection

from chappe.core.errors import NotFound
from chappe.core.ids import check_id
from chappe.core.states import PHASE, RUNNABLE, Phase, State
from chappe.store.dialect import sql
from chappe.store.principal import Principal
from chappe.store.select import OPEN, OPEN_PHASES, after_all, sessions_of
from chappe.store.tx import to_json
from chappe.wire.jobs import JobFilter

#: A source with no more rows is read without a look at others; one with more than MANY is not counted out.
FEW = 2_000
MANY = 10_000
#: More than any row number.
ALL = 1 << 62
#: The conditions that cells answer.
OF_CELL = frozenset({"site", "app", "state", "phase"})

SITES_NAMED = sql("""
    SELECT n, name, (id = :site OR name = :site) AS wanted FROM site WHERE project = :project
    ORDER BY wanted DESC, name LIMIT 20""")

CELLS = sql("""
    SELECT site, app, state, count FROM counter WHERE project = :project AND count > 0""")

OF_CELLS = sql("""
    SELECT j.value FROM rows(:cells, site int, app text, resting text, resting_only int) c
    CROSS JOIN each(
        SELECT i.n FROM job i WHERE i.project = :project AND COALESCE(i.site, 0) = c.site
        AND COALESCE(i.app, '') = c.app AND i.resting = c.resting
        AND (c.resting_only = 0 OR i.state = c.resting)
        AND i.n < :below ORDER BY i.n DESC LIMIT :most
    )each j ORDER BY j.value DESC LIMIT :most""")

#: What runs, and what was granted.
OF_LEASED = sql("""
    SELECT n FROM job WHERE project = :project AND session IS NOT NULL AND n < :below
    ORDER BY n DESC LIMIT :most""")

OF_TAG = sql("""
    SELECT job FROM tag WHERE project = :project AND k = :k AND v = :v AND job < :below
    ORDER BY job DESC LIMIT :most""")

OF_PARENT = sql("""
    SELECT child FROM edge WHERE parent = :parent AND child < :below
    ORDER BY child DESC LIMIT :most""")

OF_NAME = sql("""
    SELECT n FROM job WHERE project = :project AND name = :name AND n < :below
    ORDER BY n DESC LIMIT :most""")

OF_SESSION = sql("""
    SELECT n FROM job WHERE project = :project AND session = :session AND n < :below
    ORDER BY n DESC LIMIT :most""")

OF_HELD = sql("""
    SELECT n FROM job WHERE project = :project AND held_at IS NOT NULL AND n < :below
    ORDER BY n DESC LIMIT :most""")

IDS = sql("""
    SELECT job.n FROM texts(:ids) v CROSS JOIN job ON job.project = :project AND job.id = v.value""")

ID_RANGE = sql("""
    SELECT n FROM job WHERE project = :project AND id >= :first AND id < :last AND n < :below
    ORDER BY n DESC LIMIT :most""")

NAME_RANGE = sql("""
    SELECT n FROM job WHERE project = :project AND name >= :first AND name < :last AND n < :below
    ORDER BY n DESC LIMIT :most""")

#: How many rows these hold, to a bound.
TAGGED = sql("""
    SELECT count(*) FROM (SELECT 1 FROM tag WHERE project = :project AND k = :k AND v = :v
                          LIMIT :most) found""")
CHILDREN = sql("SELECT count(*) FROM (SELECT 1 FROM edge WHERE parent = :parent LIMIT :most) found")
NAMED = sql("""
    SELECT count(*) FROM (SELECT 1 FROM job WHERE project = :project AND name = :name
                          LIMIT :most) found""")
LEASED = sql("""
    SELECT count(*) FROM (SELECT 1 FROM job WHERE project = :project AND session IS NOT NULL
                          LIMIT :most) found""")
IN_SESSION = sql("""
    SELECT count(*) FROM (SELECT 1 FROM job WHERE project = :project AND session = :session
                          LIMIT :most) found""")
HELD = sql("""
    SELECT count(*) FROM (SELECT 1 FROM job WHERE project = :project AND held_at IS NOT NULL
                          LIMIT :most) found""")
IDS_IN = sql("""
    SELECT count(*) FROM (SELECT 1 FROM job WHERE project = :project AND id >= :first
                          AND id < :last LIMIT :most) found""")
NAMES_IN = sql("""
    SELECT count(*) FROM (SELECT 1 FROM job WHERE project = :project AND name >= :first
                          AND name < :last LIMIT :most) found""")

PARENT_N = sql("SELECT n FROM job WHERE project = :project AND id = :id")


class Source(NamedTuple):
    """Where the rows come from: `read(below, most)` gives row numbers under `below`, falling. `size` is how
    many there are, as far as that was counted; `covers` are the conditions that they all fulfil."""

    read: Callable[[int, int], Sequence[int]]
    size: int
    covers: frozenset[str]


class Cell(NamedTuple):
    """Jobs of one App in one state at one Site; site 0 is none."""

    site: int
    app: str
    state: str
    jobs: int


def source_of(conn: Connection, p: Principal, f: JobFilter, cells: list[Cell]) -> Source:
    """The source with the fewest rows, as far as that is known cheaply."""
    base = _cell_source(conn, p, f, cells)
    if base.size <= FEW:
        return base
    best = base
    for make in (_by_ids, _by_session, _by_parent, _by_held, _by_name, _by_tags, _by_range):
        for source in make(conn, p, f):
            if source.size < best.size:
                best = source
        if best.size <= FEW:
            break
    return best


def cells_of(conn: Connection, p: Principal, f: JobFilter) -> list[Cell]:
    """The cells that pass the filter. NotFound for a Site that does not exist."""
    site = None if f.site is None else site_n(conn, p, f.site)
    phases = OPEN_PHASES if f.phase == OPEN else (f.phase,)
    found = (Cell(*row) for row in conn.execute(CELLS, {"project": p.project_n}))
    return [
        cell
        for cell in found
        if (site is None or cell.site == site)
        and (f.app is None or (cell.app == f.app != ""))
        and (f.state is None or cell.state == f.state)
        and (f.phase is None or PHASE[State(cell.state)] in phases)
    ]


def site_n(conn: Connection, p: Principal, site: str) -> int:
    """The row number of a Site. NotFound: a name mistyped must not look like a Site without Jobs."""
    known = conn.execute(SITES_NAMED, {"project": p.project_n, "site": site}).fetchall()
    for row in known:
        if row.wanted:
            return int(row.n)
    names = ", ".join(row.name for row in known) or "none"
    raise NotFound(f"there is no site {site[:60]!r} (there are: {names})", field="site")


def _cell_source(conn: Connection, p: Principal, f: JobFilter, cells: list[Cell]) -> Source:
    of_all = f.state is None and f.phase in (None, OPEN)
    if not of_all and all(PHASE[State(cell.state)] is Phase.RUNNING for cell in cells):
        return _counted(conn, OF_LEASED, LEASED, project=p.project_n)
    ranges = set()
    for site, app, state, _ in cells:
        runs = PHASE[State(state)] is Phase.RUNNING
        ranges |= {(site, app, resting) for resting in (RUNNABLE if runs else (state,))}
    keys = to_json([(*key, 0 if of_all else 1) for key in sorted(ranges)])
    size = sum(cell.jobs for cell in cells)
    return _keyset(conn, OF_CELLS, size, OF_CELL, project=p.project_n, cells=keys)


def _keyset(
    conn: Connection, statement: sa.TextClause, size: int, covers: frozenset[str], **params: Any
) -> Source:
    """Rows that an index gives in the order of their numbers."""

    def read(below: int, most: int) -> Sequence[int]:
        found = conn.execute(statement, {**params, "below": below, "most": most})
        return [row[0] for row in found]

    return Source(read, size, covers)


def _counted(
    conn: Connection,
    statement: sa.TextClause,
    count: sa.TextClause,
    covers: frozenset[str] = frozenset(),
    **params: Any,
) -> Source:
    """A keyset whose size is looked up, as far as it matters."""
    size = conn.execute(count, {**params, "most": MANY + 1}).scalar_one()
    return _keyset(conn, statement, size, covers, **params)


def _by_ids(conn: Connection, p: Principal, f: JobFilter) -> Iterator[Source]:
    if f.ids is not None:
        found = conn.execute(IDS, {"project": p.project_n, "ids": to_json(list(set(f.ids)))})
        falling = sorted((row[0] for row in found), reverse=True)

        def read(below: int, most: int) -> Sequence[int]:
            at = bisect_left(falling, 1 - below, key=lambda n: -n)
            return falling[at : at + most]

        yield Source(read, len(falling), frozenset())


def _by_parent(conn: Connection, p: Principal, f: JobFilter) -> Iterator[Source]:
    if f.parent is not None:
        id = check_id(f.parent, "parent")
        parent = conn.execute(PARENT_N, {"project": p.project_n, "id": id}).scalar()
        if parent is None:
            yield Source(lambda _below, _most: (), 0, frozenset())
        else:
            yield _counted(conn, OF_PARENT, CHILDREN, parent=parent)


def _by_session(conn: Connection, p: Principal, f: JobFilter) -> Iterator[Source]:
    if f.session is not None or f.batch_job is not None:
        # A Session holds so few that a page may sort them all.
        n = conn.execute(sessions_of(p.project_n, f)).scalar()
        covers = frozenset({"session", "batch_job"})
        if n is None:
            yield Source(lambda _below, _most: (), 0, covers)
        else:
            yield _counted(conn, OF_SESSION, IN_SESSION, covers, project=p.project_n, session=n)


def _by_name(conn: Connection, p: Principal, f: JobFilter) -> Iterator[Source]:
    if f.name is not None:
        yield _counted(conn, OF_NAME, NAMED, project=p.project_n, name=f.name)


def _by_held(conn: Connection, p: Principal, f: JobFilter) -> Iterator[Source]:
    if f.held:
        yield _counted(conn, OF_HELD, HELD, project=p.project_n)


def _by_tags(conn: Connection, p: Principal, f: JobFilter) -> Iterator[Source]:
    # Tombstones have no tags, so with one tag there is nothing left to look at.
    covers = frozenset({"tags"} if len(f.tags) == 1 else ())
    for k, v in f.tags.items():
        yield _counted(conn, OF_TAG, TAGGED, covers, project=p.project_n, k=k, v=v)


def _by_range(conn: Connection, p: Principal, f: JobFilter) -> Iterator[Source]:
    """Ranges that lie in another order: each read sorts the whole of it, so it must not be long."""
    ranges = []
    if f.id_prefix is not None:
        ranges.append((ID_RANGE, IDS_IN, f.id_prefix, f.id_prefix + "g"))
    if f.name_prefix is not None and (last := after_all(f.name_prefix)) is not None:
        ranges.append((NAME_RANGE, NAMES_IN, f.name_prefix, last))
    for statement, count, first, last in ranges:
        source = _counted(conn, statement, count, project=p.project_n, first=first, last=last)
        if source.size <= MANY:
            yield source
