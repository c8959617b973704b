"""What the writer keeps in memory: Sites, Apps, Shapes with their counts, leases, seqs.

It is a cache of rows, changed only on the writer's thread, and read anew from the store after any
rollback, so it can never differ from what is committed for longer than one transaction.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
from sqlalchemy import Connection

from chappe.core.parameters import Validator, compile_validator
from chappe.core.shapes import Shape
from chappe.store import unheard
from chappe.store.dialect import sql
from chappe.store.jobrow import COLUMNS, JobRow, to_row
from chappe.store.unheard import Unheard
from chappe.wire.sites import AppView

if TYPE_CHECKING:
    from chappe.store.simulations import Cache

NEWEST_AT = sql("SELECT created_at FROM job ORDER BY n DESC LIMIT 1")

HUB = sql("SELECT incarnation, commit_no, next_job, next_position, next_lease FROM hub")

LEASED = sql(f"SELECT {COLUMNS} FROM job WHERE session IS NOT NULL")


@dataclass(slots=True)
class SiteEntry:
    """A Site, its Apps, and the Shapes whose Jobs it may run."""

    n: int
    project: int
    id: str
    name: str
    apps: dict[str, AppEntry] = field(default_factory=dict)
    shapes: list[ShapeEntry] = field(default_factory=list)


@dataclass(slots=True, frozen=True)
class AppEntry:
    """An App as its Site published it, with its parameters' validator."""

    view: AppView
    validate: Validator


@dataclass(slots=True)
class ShapeEntry:
    """A Shape and how many of its Jobs could be granted now."""

    n: int
    project: int
    shape: Shape
    waiting: int


@dataclass(slots=True)
class Catalog:
    """All of it, by row number and by id."""

    incarnation: int
    commit_no: int
    next_job: int
    #: Of the bus: where the next message goes, and the number of the next lease.
    next_position: int
    next_lease: int
    #: When the newest Job was created: listings count on times that rise with the numbers.
    newest_at: float
    next_seq: dict[int, int]
    sites: dict[int, SiteEntry]
    site_by_id: dict[tuple[int, str], SiteEntry]
    shapes: dict[int, ShapeEntry]
    shape_by_key: dict[tuple[int, Shape], ShapeEntry]
    #: What each Session holds, by Job id: a sync of 4 000 held Jobs must not read 4 000 rows.
    leases: defaultdict[int, dict[str, JobRow]]
    #: Whom to hear after a restore, before anything is granted.
    unheard: Unheard
    #: How many there are, over all Sites, of things that the Hub counts: a setting, not of the store.
    shared: dict[str, int] = field(default_factory=dict)
    #: The next position in the journal of each project that has received since this was loaded.
    next_message: dict[int, int] = field(default_factory=dict)
    #: Row numbers of series: by project, simulation, job, name and producer.
    series: dict[tuple[int, str, str, str, int], int] = field(default_factory=dict)
    #: Simulations that were spoken of, once there are any (store.simulations).
    simulations: Cache | None = None

    def add_site(self, entry: SiteEntry) -> None:
        """Take a new Site up; Shapes may name it already, when it was deleted and comes back."""
        entry.shapes = [
            s
            for s in self.shapes.values()
            if s.project == entry.project and entry.id in s.shape.sites
        ]
        self.sites[entry.n] = entry
        self.site_by_id[entry.project, entry.id] = entry

    def remove_site(self, entry: SiteEntry) -> None:
        """Forget a deleted Site."""
        del self.sites[entry.n]
        del self.site_by_id[entry.project, entry.id]

    def add_shape(self, entry: ShapeEntry) -> None:
        """Take a new Shape up, at each of its Sites."""
        self.shapes[entry.n] = entry
        self.shape_by_key[entry.project, entry.shape] = entry
        for site_id in entry.shape.sites:
            site = self.site_by_id.get((entry.project, site_id))
            if site is not None:
                site.shapes.append(entry)


def app_entry(view: AppView) -> AppEntry:
    """Compile an App's validator once."""
    return AppEntry(view, compile_validator(view.parameters))


def load(conn: Connection) -> Catalog:
    """Read the whole cache: small tables, and of the Jobs only those that are leased."""
    hub = conn.execute(HUB).one()
    projects = conn.execute(sql("SELECT n, next_seq FROM project"))
    catalog = Catalog(
        hub[0],
        hub[1],
        hub[2],
        hub[3],
        hub[4],
        conn.execute(NEWEST_AT).scalar() or 0.0,
        {row[0]: row[1] for row in projects},
        {},
        {},
        {},
        {},
        defaultdict(dict),
        unheard.load(conn, hub[0]),
    )
    for row in conn.execute(sql("SELECT n, project, id, name FROM site")):
        catalog.add_site(SiteEntry(*row))
    for site_n, view in conn.execute(sql("SELECT site, view FROM app")):
        decoded = msgspec.json.decode(view, type=AppView)
        catalog.sites[site_n].apps[decoded.name] = app_entry(decoded)
    for n, project, body, waiting in conn.execute(
        sql("SELECT n, project, body, waiting FROM shape ORDER BY n")
    ):
        shape = msgspec.json.decode(body, type=Shape)
        catalog.add_shape(ShapeEntry(n, project, shape, waiting))
    for found in conn.execute(LEASED):
        leased = to_row(tuple(found))
        catalog.leases[found.session][leased.id] = leased
    return catalog
