"""Reads: filters, cursors, what a mistyped name is answered with, and who sees what."""

from __future__ import annotations

from typing import Any

import pytest

from chappe.core import limits
from chappe.core.access import Reach
from chappe.core.errors import Invalid, NotFound, TooLarge
from chappe.core.jobs import AppRef, Envelope, JobSpec, Resources
from chappe.store import acts, projects, queries, sync
from chappe.testing.store import TRUE, PilotRig, SiteRig, StoreRig, cores, held
from chappe.wire.jobs import ActOnJobs, JobFilter, JobPage
from chappe.wire.results import ResultUpload
from chappe.wire.sites import AppView
from chappe.wire.sync import Grant

FLAT = AppView("flat", "1", "0" * 64, unsigned=True, own_directory=False)


@pytest.fixture
def site(rig: StoreRig) -> SiteRig:
    return rig.add_site("paris", [TRUE, FLAT])


def listed(rig: StoreRig, limit: int = 100, cursor: str | None = None, **f: Any) -> JobPage:
    return rig.ask(queries.list_jobs, rig.user, JobFilter(**f), limit, cursor)


def ids(page: JobPage) -> list[str]:
    return [job.id for job in page.jobs]


# -- lists ------------------------------------------------------------------------------------------


def test_pages_go_from_new_to_old(rig: StoreRig, site: SiteRig) -> None:
    jobs = [rig.spec(site) for _ in range(7)]
    rig.submit(*jobs)
    got: list[str] = []
    cursor = None
    sizes = []
    while True:
        page = listed(rig, 3, cursor)
        got += ids(page)
        sizes.append(len(page.jobs))
        cursor = page.next
        # What is made meanwhile is not seen, and shifts nothing.
        rig.submit(rig.spec(site))
        if cursor is None:
            break
    assert sizes == [3, 3, 1]
    assert got == [job.id for job in reversed(jobs)]


@pytest.mark.parametrize("limit", [0, -1, limits.PAGE_MAX + 1])
def test_the_size_of_a_page(rig: StoreRig, limit: int) -> None:
    with pytest.raises(Invalid) as caught:
        listed(rig, limit)
    assert caught.value.field == "limit"


@pytest.mark.parametrize("cursor", ["", "x", "-1", "1.5", "1:2:3", ":1", "e:1", "9" * 19, "' OR 1"])
def test_cursors_that_are_none(rig: StoreRig, cursor: str) -> None:
    with pytest.raises(Invalid) as caught:
        listed(rig, cursor=cursor)
    assert caught.value.field == "cursor"


@pytest.fixture
def some(rig: StoreRig, site: SiteRig) -> dict[str, JobSpec]:
    """Jobs that differ in everything a filter looks at."""
    rome = rig.add_site("rome")
    parent = rig.spec(site, name="parent")
    jobs = {
        "parent": parent,
        "child": rig.spec(site, name="child", parents=(parent.id,)),
        "flat": rig.spec(site, app=AppRef("flat"), name="b"),
        "rome": rig.spec(rome, name="b"),
        "gone": rig.spec(site),
        "cancelled": rig.spec(site),
    }
    tags = [{"exp": "x"}, {"exp": "x", "k": "1"}, {"exp": "y"}, {}, {"exp": "x"}, {}]
    rig.submit(*jobs.values(), envelopes=[Envelope(t) for t in tags])
    rig.cancel(jobs["cancelled"], jobs["gone"])
    rig.delete(jobs["gone"])
    return jobs


@pytest.mark.parametrize(
    ("f", "wanted"),
    [
        ({}, "parent child flat rome cancelled"),
        ({"phase": "runnable"}, "parent flat rome"),
        ({"phase": "waiting"}, "child"),
        ({"state": "CANCELLED"}, "cancelled"),
        ({"state": "PREPROCESSED", "site": "paris"}, "parent flat"),
        ({"site": "rome"}, "rome"),
        ({"app": "flat"}, "flat"),
        ({"app": "none"}, ""),
        ({"name": "b"}, "flat rome"),
        ({"name": "b", "app": "flat"}, "flat"),
        ({"tags": {"exp": "x"}}, "parent child"),
        ({"tags": {"exp": "x", "k": "1"}}, "child"),
        ({"tags": {"exp": "'; DROP TABLE job; --"}}, ""),
        ({"ids": []}, ""),
    ],
    ids=str,
)
def test_filters(rig: StoreRig, some: dict[str, JobSpec], f: dict[str, Any], wanted: str) -> None:
    assert set(ids(listed(rig, **f))) == {some[name].id for name in wanted.split()}


def test_filters_by_id(rig: StoreRig, some: dict[str, JobSpec]) -> None:
    parent, child, gone = some["parent"], some["child"], some["gone"]
    assert ids(listed(rig, parent=parent.id)) == [child.id]
    assert ids(listed(rig, parent=child.id)) == []
    assert ids(listed(rig, ids=[parent.id, gone.id, rig.new_id()])) == [parent.id]
    assert ids(listed(rig, id_prefix=parent.id)) == [parent.id]
    assert len(ids(listed(rig, id_prefix=parent.id[:13]))) == 5
    assert ids(listed(rig, id_prefix="ffff")) == []


@pytest.mark.parametrize(
    ("f", "field"),
    [
        ({"phase": "RUNNING"}, "phase"),
        ({"state": "running"}, "state"),
        ({"id_prefix": "abc"}, "id_prefix"),
        ({"id_prefix": "ABCD"}, "id_prefix"),
        ({"id_prefix": "ab%_"}, "id_prefix"),
        ({"id_prefix": "a" * 37}, "id_prefix"),
        ({"ids": ["x"]}, "filter.ids"),
        ({"parent": "x"}, "parent"),
        ({"tags": {f"k{i}": "" for i in range(limits.TAGS_PER_JOB + 1)}}, "tags"),
    ],
    ids=lambda v: str(v)[:30],
)
def test_filters_that_are_refused(rig: StoreRig, f: dict[str, Any], field: str) -> None:
    with pytest.raises(Invalid) as caught:
        listed(rig, **f)
    assert caught.value.field == field


def test_100_000_ids_are_too_many(rig: StoreRig) -> None:
    many = [rig.new_id()] * 100_000
    with pytest.raises(TooLarge, match="100000 ids in a filter") as caught:
        listed(rig, ids=many)
    assert caught.value.field == "filter.ids"
    with pytest.raises(TooLarge):
        rig.do(acts.cancel, rig.user, ActOnJobs(JobFilter(ids=many)))
    assert listed(rig, ids=many[: limits.IDS_PER_FILTER]).jobs == []


def test_a_mistyped_site_is_not_an_empty_one(rig: StoreRig, site: SiteRig) -> None:
    assert listed(rig, site="paris").jobs == []
    assert listed(rig, site=site.id).jobs == []
    with pytest.raises(NotFound, match="there is no site 'pairs'"):
        listed(rig, site="pairs")
    with pytest.raises(NotFound):
        rig.ask(queries.list_apps, rig.user, "pairs")
    with pytest.raises(NotFound):
        rig.ask(queries.get_site, rig.user, "pairs", rig.clock())


# -- one job ----------------------------------------------------------------------------------------


def test_one_job_comes_with_its_spec_and_a_list_without(rig: StoreRig, site: SiteRig) -> None:
    job = rig.spec(site, workdir="w", resources=Resources(cores=2))
    rig.submit(job, signed=True)
    assert rig.job(job.id).spec == job
    (view,) = listed(rig).jobs
    assert view.spec is None
    assert (view.signed, view.workdir) == (True, "w")


def test_jobs_that_are_not_there(rig: StoreRig, site: SiteRig) -> None:
    job = rig.spec(site)
    rig.submit(job)
    for read in (queries.result, queries.signed):
        with pytest.raises(NotFound) as caught:
            rig.ask(read, rig.user, job.id)
        assert caught.value.code in ("no_result", "unsigned")
    rig.cancel(job)
    rig.delete(job)
    for id in (job.id, rig.new_id(), "x", ""):
        with pytest.raises(NotFound, match="there is no job"):
            rig.job(id)


def put(pilot: PilotRig, grant: Grant, sha: str) -> None:
    upload = ResultUpload(grant.job, grant.epoch, sha, "image/png", b"png")
    pilot.rig.do(sync.store_result, pilot.principal, upload)


def finished(pilot: PilotRig, sha: str | None = None) -> None:
    (grant,) = pilot.sync(capacity=cores(1)).grants
    if sha is not None:
        put(pilot, grant, sha)
    pilot.run(grant, **({} if sha is None else {"result_sha256": sha}))


def test_a_result_is_shown_when_its_job_has_finished(rig: StoreRig, site: SiteRig) -> None:
    job = rig.spec(site)
    rig.submit(job)
    pilot = site.add_pilot()
    (grant,) = pilot.sync(capacity=cores(1)).grants
    pilot.sync(held=[held(grant)], reports=[pilot.start(grant)])
    put(pilot, grant, "a" * 64)
    with pytest.raises(NotFound):
        rig.ask(queries.result, rig.user, job.id)
    pilot.sync(reports=[pilot.end(grant, result_sha256="a" * 64)])
    assert rig.ask(queries.result, rig.user, job.id) == ("image/png", "a" * 64, b"png")


def test_a_result_of_a_job_that_failed_is_what_it_raised_and_no_childs_business(
    rig: StoreRig, site: SiteRig
) -> None:
    job = rig.spec(site)
    rig.submit(job)
    pilot = site.add_pilot()
    (grant,) = pilot.sync(capacity=cores(1)).grants
    put(pilot, grant, "a" * 64)
    pilot.run(grant, exit=1, result_sha256="a" * 64)
    assert rig.job(job.id).state == "FAILED"
    assert rig.ask(queries.result, rig.user, job.id)[1] == "a" * 64
    child = rig.spec(site, parents=(job.id,), on_parent_failure="anyway")
    rig.submit(child)
    (parent,) = rig.ask(queries.parents, rig.user, child.id, None).parents
    assert (parent.result_sha256, parent.media) == (None, None)


def test_parents_as_a_pilot_needs_them(rig: StoreRig, site: SiteRig) -> None:
    own, flat, failed = rig.spec(site), rig.spec(site, app=AppRef("flat")), rig.spec(site)
    pilot = site.add_pilot()
    rig.submit(own)
    finished(pilot, "a" * 64)
    rig.submit(flat)
    finished(pilot)
    rig.submit(failed)
    rig.cancel(failed)
    order = (failed.id, flat.id, own.id)
    child = rig.spec(site, parents=order, on_parent_failure="anyway")
    rig.submit(child)
    page = rig.ask(queries.parents, rig.user, child.id, None)
    assert page.next is None
    assert [(p.id, p.state, p.workdir, p.result_sha256, p.media) for p in page.parents] == [
        (failed.id, "CANCELLED", f"jobs/{failed.id}", None, None),
        (flat.id, "JOB_FINISHED", f"jobs/{flat.id}", None, None),
        (own.id, "JOB_FINISHED", f"jobs/{own.id}/attempt-1", "a" * 64, "image/png"),
    ]
    assert page.parents[1].site_name == "paris"


def test_parents_come_in_pages(
    rig: StoreRig, site: SiteRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "PAGE_MAX", 2)
    parents = [rig.spec(site) for _ in range(5)]
    child = rig.spec(site, parents=tuple(p.id for p in parents))
    rig.submit(*parents, child)
    got: list[str] = []
    cursor = None
    while True:
        page = rig.ask(queries.parents, rig.user, child.id, cursor)
        got += [p.id for p in page.parents]
        cursor = page.next
        if cursor is None:
            break
    assert got == list(child.parents)


def test_a_pilot_finds_what_it_holds_and_the_parents_of_that(rig: StoreRig, site: SiteRig) -> None:
    parent, other = rig.spec(site), rig.spec(site)
    rig.submit(parent)
    pilot = site.add_pilot()
    finished(pilot)
    child = rig.spec(site, parents=(parent.id,))
    rig.submit(child)
    pilot.sync(capacity=cores(1))
    rig.submit(other)
    for job in (child, parent):
        assert rig.ask(queries.get_job, pilot.principal, job.id).id == job.id
    with pytest.raises(NotFound):
        rig.ask(queries.get_job, pilot.principal, other.id)
    stranger = rig.add_site("rome").add_pilot()
    for job in (child, parent, other):
        with pytest.raises(NotFound):
            rig.ask(queries.get_job, stranger.principal, job.id)


# -- counts and sites -------------------------------------------------------------------------------


def test_counts(rig: StoreRig, site: SiteRig, some: dict[str, JobSpec]) -> None:
    rome = rig.ask(queries.get_site, rig.user, "rome", rig.clock())
    counts = rig.ask(queries.counts, rig.user).counts
    assert set(counts) == {
        (site.id, "true", "PREPROCESSED", 1),
        (site.id, "true", "AWAITING_PARENTS", 1),
        (site.id, "true", "CANCELLED", 1),
        (site.id, "flat", "PREPROCESSED", 1),
        (rome.id, "true", "PREPROCESSED", 1),
    }
    assert (rome.waiting, rome.running) == (1, 0)


def test_a_site_lists_its_live_sessions(rig: StoreRig, site: SiteRig) -> None:
    ended, live = site.add_pilot(), site.add_pilot()
    site.end(ended)
    rig.submit(rig.spec(site), rig.spec(site))
    grants = live.sync(capacity=cores(2)).grants
    live.sync(held=[held(g) for g in grants], reports=[live.start(grants[0])], capacity=cores(2))
    (view,) = rig.ask(queries.list_sites, rig.user, rig.clock())
    (session,) = view.sessions
    assert (session.id, session.held, session.capacity) == (live.id, 2, cores(2))
    assert (view.waiting, view.running) == (1, 1)


def test_a_sites_token_sees_its_own_site_only(rig: StoreRig, site: SiteRig) -> None:
    rome = rig.add_site("rome")
    rome.add_pilot()
    mine, theirs = site.add_batch_job(), rome.add_batch_job()
    who = site.principal
    assert [s.name for s in rig.ask(queries.list_sites, who, rig.clock())] == ["paris"]
    assert rig.ask(lambda c: queries.list_sessions(c, who, all_=True)) == []
    assert [b.id for b in rig.ask(queries.list_batch_jobs, who, None, None)] == [mine]
    assert {a.site for a in rig.ask(queries.list_apps, who, None)} == {site.id}
    with pytest.raises(NotFound):
        rig.ask(queries.batch_job_view, who, theirs)
    everything = rig.ask(queries.list_batch_jobs, rig.user, None, None)
    assert {b.id for b in everything} >= {mine, theirs}
    requested = rig.ask(queries.list_batch_jobs, rig.user, "rome", "requested")
    assert [b.id for b in requested] == [theirs]


def test_the_one_project(rig: StoreRig) -> None:
    (project,) = rig.ask(projects.projects, rig.user, Reach.OWN).projects
    assert (project.id, project.name, project.role) == (rig.user.project_id, "default", "owner")
