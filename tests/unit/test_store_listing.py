"""No documented filter reads through the whole table; bounds hold, and are told."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa

from chappe.core import limits
from chappe.core.errors import Invalid, NotFound
from chappe.core.jobs import Envelope
from chappe.store import acts, edits, listing, queries, select, sites, sources
from chappe.testing.store import SiteRig, StoreRig, cores
from chappe.wire.jobs import ActOnJobs, JobFilter
from chappe.wire.sites import EndSession

#: Every condition that docs/howto/work-with-many-jobs.md names, and some together.
DOCUMENTED: list[dict[str, Any]] = [
    {},
    {"site": "paris"},
    {"app": "true"},
    {"state": "CANCELLED"},
    {"phase": "cancelled"},
    {"phase": "open"},
    {"phase": "open", "tags": {"k": "v"}},
    {"site": "paris", "app": "true", "state": "PREPROCESSED"},
    {"name": "a"},
    {"name_prefix": "a"},
    {"tags": {"k": "v"}},
    {"tags": {"k": "v", "l": "w"}},
    {"held": True},
    {"created_since": 1.0, "created_until": 2e9},
    {"ended_since": 1.0},
    {"ended_until": 2e9},
    {"ended_since": 1.0, "phase": "cancelled", "site": "paris"},
    {"id_prefix": "01a3"},
    {"name": "a", "phase": "runnable", "tags": {"k": "v"}},
    {"session": "the pilot's"},
    {"batch_job": "the pilot's", "phase": "runnable"},
]
#: Tables of the size of the project's past. The others hold a few rows for each Site and App.
LARGE = re.compile(r"\b(job|i|tag|edge|event|parent)\b")
#: A search that fixes the project alone is a scan of all its Jobs.
PROJECT_ONLY = re.compile(r"\(project=\?\)")


@pytest.fixture
def site(rig: StoreRig) -> SiteRig:
    site = rig.add_site("paris")
    specs = [rig.spec(site, name="ab"[i % 2]) for i in range(40)]
    rig.submit(
        *specs, envelopes=[Envelope({"k": "v", "l": "w"} if i % 3 else {}) for i in range(40)]
    )
    rig.submit(*[rig.spec(site, parents=(specs[0].id,)) for _ in range(3)])
    rig.cancel(*specs[10:30])
    rig.do(edits.hold, rig.user, ActOnJobs(JobFilter(ids=[s.id for s in specs[:3]])))
    return site


def filter_of(site: SiteRig, where: dict[str, Any]) -> JobFilter:
    """These conditions; where one is about a pilot, there is one that was granted Jobs."""
    if where.keys() & {"session", "batch_job"}:
        pilot = site.add_pilot()
        assert pilot.sync(capacity=cores(3)).grants
        known = {"session": pilot.id, "batch_job": pilot.batch_job}
        where = {name: known.get(name, value) for name, value in where.items()}
    return JobFilter(**where)


@contextmanager
def statements(rig: StoreRig) -> Iterator[list[tuple[str, Any]]]:
    """What the readers execute."""
    seen: list[tuple[str, Any]] = []

    def saw(_conn: Any, _cursor: Any, text: str, params: Any, *_: Any) -> None:
        seen.append((text, params))

    engine = rig.store._readers
    sa.event.listen(engine, "before_cursor_execute", saw)
    try:
        yield seen
    finally:
        sa.event.remove(engine, "before_cursor_execute", saw)


def plans(rig: StoreRig, seen: list[tuple[str, Any]]) -> list[str]:
    """Each step of how SQLite executes them."""
    steps = []
    for text, params in seen:
        steps += [row["detail"] for row in rig.sql(f"EXPLAIN QUERY PLAN {text}", *params)]
    return steps


@pytest.mark.sqlite  # reads its plans
@pytest.mark.parametrize("few", [0, 10_000], ids=["large", "small"])
@pytest.mark.parametrize("where", DOCUMENTED, ids=str)
def test_no_documented_filter_reads_everything(
    rig: StoreRig,
    site: SiteRig,
    where: dict[str, Any],
    few: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sources, "FEW", few)  # 0: as if there were too many Jobs to begin with them
    f = filter_of(site, where)
    with statements(rig) as seen:
        page = rig.ask(queries.list_jobs, rig.user, f, 5, None)
        rig.ask(queries.list_jobs, rig.user, f, 5, page.next)
        rig.ask(listing.count_jobs, rig.user, f)
        rig.ask(listing.matching, rig.user, f)
    steps = plans(rig, seen)
    assert page.jobs
    assert [s for s in steps if s.startswith("SCAN") and LARGE.search(s)] == []
    searches = [s for s in steps if s.startswith("SEARCH") and LARGE.search(s)]
    assert searches
    assert [s for s in searches if PROJECT_ONLY.search(s) and "ix_job_held" not in s] == []


@pytest.mark.parametrize("where", DOCUMENTED, ids=str)
def test_each_documented_filter_can_do_without_reading_everything(
    rig: StoreRig, site: SiteRig, where: dict[str, Any]
) -> None:
    """PostgreSQL rightly reads a small table whole; told not to, it must find a way by indexes."""

    def explained(conn: sa.Connection) -> list[str]:
        if conn.dialect.name != "postgresql":
            return plans(rig, seen)
        conn.exec_driver_sql("SET LOCAL enable_seqscan = off")
        found: list[str] = []
        for text, params in seen:
            found += conn.exec_driver_sql(f"EXPLAIN {text}", params).scalars()
        return found

    f = filter_of(site, where)
    with statements(rig) as seen:
        rig.ask(queries.list_jobs, rig.user, f, 5, None)
        rig.ask(listing.matching, rig.user, f)
    steps = rig.ask(explained)
    assert steps
    assert [s for s in steps if re.search(r"Seq Scan on (job|tag|edge|event)\b", s)] == []


@pytest.mark.sqlite  # reads its plans
def test_a_filter_by_parent_searches(rig: StoreRig, site: SiteRig) -> None:
    (child,) = rig.ask(queries.list_jobs, rig.user, JobFilter(), 1, None).jobs
    ((parent,),) = rig.sql(
        "SELECT p.id FROM edge JOIN job p ON p.n = edge.parent JOIN job c ON c.n = edge.child "
        "WHERE c.id = ?",
        child.id,
    )
    test = {"parent": parent}
    with statements(rig) as seen:
        assert len(rig.ask(queries.list_jobs, rig.user, JobFilter(**test), 5, None).jobs) == 3
    assert [s for s in plans(rig, seen) if s.startswith("SCAN") and LARGE.search(s)] == []


@pytest.mark.sqlite  # reads its plans
def test_the_test_would_see_a_scan(rig: StoreRig, site: SiteRig) -> None:
    step = plans(rig, [("SELECT n FROM job WHERE changed_at > ?", (1,))])[0]
    assert step.startswith("SCAN")
    assert LARGE.search(step)
    step = plans(rig, [("SELECT n FROM job WHERE project = ? AND epoch = ?", (1, 1))])[0]
    assert PROJECT_ONLY.search(step)


def test_a_page_looks_at_a_bounded_number_of_rows_and_says_where_to_go_on(
    rig: StoreRig, site: SiteRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "SCAN_PAGE", 5)
    monkeypatch.setattr(listing, "CHUNK", 5)
    monkeypatch.setattr(sources, "FEW", 0)
    old = rig.ask(queries.list_jobs, rig.user, JobFilter(name="a", held=True), 10, None)
    pages, cursor = [old], old.next
    while cursor is not None:
        page = rig.ask(
            queries.list_jobs,
            rig.user,
            JobFilter(name="a", held=False, phase="runnable"),
            10,
            cursor,
        )
        pages.append(page)
        cursor = page.next
    f = JobFilter(name="a", held=False, phase="runnable")
    found, cursor, empty = 0, None, 0
    while True:
        page = rig.ask(queries.list_jobs, rig.user, f, 10, cursor)
        found += len(page.jobs)
        empty += not page.jobs
        cursor = page.next
        if cursor is None:
            break
    assert found == 8
    assert empty, "no page was cut short"


def test_a_job_stays_among_the_open_whatever_it_passes_through_between_two_pages(
    rig: StoreRig, site: SiteRig
) -> None:
    pilot = site.add_pilot()
    granted = {g.job for g in pilot.sync(capacity=cores(5)).grants}
    assert granted
    found: list[str] = []
    cursor = None
    while True:
        page = rig.ask(queries.list_jobs, rig.user, JobFilter(phase="open"), 4, cursor)
        found += [view.id for view in page.jobs]
        cursor = page.next
        if cursor is None:
            break
        rig.do(sites.end_session, rig.user, pilot.id, EndSession(may_run_twice=True))
    assert granted <= set(found)
    assert len(found) == len(set(found)) == 23


def test_counts_are_exact_to_a_bound(
    rig: StoreRig, site: SiteRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def count(**f: Any) -> tuple[int, bool]:
        counted = rig.ask(listing.count_jobs, rig.user, JobFilter(**f))
        return counted.count, counted.exact

    monkeypatch.setattr(limits, "COUNT_EXACT", 20)
    assert count(name="a") == (20, True)
    assert count(tags={"k": "v"}) == (20, False)
    assert count(site="paris") == (43, True)  # from the counters, whatever the number
    assert count() == (43, True)


def test_what_was_deleted_is_neither_shown_nor_looked_through(
    rig: StoreRig, site: SiteRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.do(acts.delete, rig.user, ActOnJobs(JobFilter(phase="cancelled")))
    monkeypatch.setattr(listing, "SCAN_PAGE", 23)
    page = rig.ask(queries.list_jobs, rig.user, JobFilter(), 100, None)
    assert (len(page.jobs), page.next) == (23, None)


def test_a_site_that_does_not_exist_is_named(rig: StoreRig, site: SiteRig) -> None:
    for read in (listing.count_jobs, listing.matching):
        with pytest.raises(NotFound, match="paris"):
            rig.ask(read, rig.user, JobFilter(site="nowhere"))


@pytest.mark.parametrize("bad", [{"state": "x"}, {"phase": "x"}, {"name_prefix": ""}])
def test_a_condition_that_is_none_is_refused_everywhere(
    rig: StoreRig, site: SiteRig, bad: dict[str, str]
) -> None:
    for read in (listing.count_jobs, listing.matching):
        with pytest.raises(Invalid):
            rig.ask(read, rig.user, JobFilter(**bad))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("prefix", "end"),
    [
        ("a", "b"),
        ("az", "a{"),
        ("\ud7ff", "\ue000"),
        ("a\U0010ffff", "b"),
        ("\U0010ffff", None),
        ("", None),
    ],
)
def test_where_a_prefix_ends(prefix: str, end: str | None) -> None:
    assert select.after_all(prefix) == end
