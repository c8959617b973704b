"""Figures of a period, against numbers that can be worked out by hand."""

from __future__ import annotations

import dataclasses
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from chappe.core.errors import Invalid, TooLarge
from chappe.core.jobs import AppRef, JobSpec, Resources
from chappe.sdk.stats import JobStats
from chappe.store import stats
from chappe.testing.store import TRUE, PilotRig, SiteRig, StoreRig, cores, held
from chappe.wire.sites import AppView
from chappe.wire.stats import Spread, Stats

OTHER = AppView("other", "1", "0" * 64, unsigned=True)


@pytest.fixture
def site(rig: StoreRig) -> SiteRig:
    return rig.add_site("paris", [TRUE, OTHER])


@pytest.fixture
def pilot(site: SiteRig) -> PilotRig:
    return site.add_pilot()


def ran(pilot: PilotRig, wait_s: float, run_s: float, exit: int = 0, **fields: Any) -> JobSpec:
    """A Job that waited and ran for so long."""
    rig = pilot.rig
    job = rig.spec(pilot.site, **fields)
    rig.submit(job)
    rig.clock.advance(wait_s)
    (grant,) = pilot.sync(capacity=cores(4)).grants
    pilot.sync(held=[held(grant)], reports=[pilot.start(grant)])
    rig.clock.advance(run_s)
    pilot.sync(reports=[pilot.end(grant, exit=exit)])
    return job


def figures(rig: StoreRig, since: float, until: float, *by: str) -> Stats:
    return rig.ask(stats.stats, rig.user, since, until, by, rig.clock())


def test_counts_times_and_core_hours(rig: StoreRig, pilot: PilotRig) -> None:
    began = rig.clock()
    for wait_s, run_s in ((10, 100), (20, 200), (30, 300)):
        ran(pilot, wait_s, run_s, resources=Resources(cores=2))
    ran(pilot, 5, 50, app=AppRef("other"), exit=3)
    never = rig.spec(pilot.site)
    rig.submit(never)
    rig.cancel(never)
    rig.clock.advance(1)
    found = figures(rig, began, rig.clock(), "site", "app")
    other, true = found.groups
    hours = (rig.clock() - began) / 3600
    assert (found.jobs, found.one_in) == (5, 1)
    assert (true.site, true.app) == (pilot.site.id, "true")
    assert (true.finished, true.failed, true.cancelled) == (3, 0, 1)
    assert true.per_hour == pytest.approx(4 / hours)
    assert true.wait == Spread(3, 20, 30, 30)
    assert true.run == Spread(3, 200, 300, 300)
    assert true.core_hours == pytest.approx(2 * 600 / 3600)
    assert (other.app, other.finished, other.failed) == ("other", 0, 1)
    assert other.run == Spread(1, 50, 50, 50)


def test_utilisation_is_what_was_used_of_what_pilots_offered(
    rig: StoreRig, site: SiteRig, pilot: PilotRig
) -> None:
    began = rig.clock()
    ran(pilot, 0, 900, resources=Resources(cores=4))
    rig.clock.advance(900)
    pilot.sync(capacity=cores(4))
    site.end(pilot)
    rig.clock.advance(1800)  # nobody offers anything
    (group,) = figures(rig, began, rig.clock(), "site").groups
    assert group.core_hours == pytest.approx(1.0)
    assert group.offered_core_hours == pytest.approx(2.0)
    assert group.utilisation == pytest.approx(0.5)
    (total,) = figures(rig, began, rig.clock()).groups
    assert (total.site, total.app) == (None, None)
    assert total.utilisation == pytest.approx(0.5)
    (by_app,) = figures(rig, began, rig.clock(), "app").groups
    assert (by_app.site, by_app.utilisation) == (None, None)


def test_a_site_that_only_offered_is_shown_with_nothing_used(
    rig: StoreRig, pilot: PilotRig
) -> None:
    began = rig.clock()
    pilot.sync(capacity=cores(4))
    rig.clock.advance(3600)
    (group,) = figures(rig, began, rig.clock(), "site").groups
    assert (group.finished, group.core_hours, group.utilisation) == (0, 0.0, 0.0)


def test_only_what_ended_in_the_period_counts(rig: StoreRig, pilot: PilotRig) -> None:
    ran(pilot, 0, 10)
    since = rig.clock() + 1
    ran(pilot, 0, 10)
    until = rig.clock() + 1
    rig.clock.advance(2)
    ran(pilot, 0, 10)
    rig.clock.advance(1)
    assert figures(rig, since, until).jobs == 1
    assert figures(rig, since - 20, until + 1e9).jobs == 3  # the future is not in it


def test_the_wait_of_a_second_attempt_begins_with_the_end_of_the_first(
    rig: StoreRig, site: SiteRig, pilot: PilotRig
) -> None:
    began = rig.clock()
    job = rig.spec(site)
    rig.submit(job)
    (grant,) = pilot.sync(capacity=cores(1)).grants
    pilot.sync(held=[held(grant)], reports=[pilot.start(grant)])
    rig.clock.advance(500)
    site.end(pilot)
    rig.clock.advance(7)
    second = site.add_pilot()
    (grant,) = second.sync(capacity=cores(1)).grants
    second.sync(held=[held(grant)], reports=[second.start(grant)])
    rig.clock.advance(3)
    second.sync(reports=[second.end(grant)])
    rig.clock.advance(1)
    (group,) = figures(rig, began, rig.clock()).groups
    assert (group.wait, group.run) == (Spread(1, 7, 7, 7), Spread(1, 3, 3, 3))


def test_a_long_period_is_sampled_and_says_so(
    rig: StoreRig, pilot: PilotRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = rig.clock()
    for _ in range(12):
        ran(pilot, 0, 10)
    rig.clock.advance(1)
    monkeypatch.setattr(stats, "SAMPLE", 4)
    found = figures(rig, began, rig.clock())
    assert (found.jobs, found.one_in) == (12, 3)
    assert found.groups[0].finished == 12
    assert found.groups[0].run == Spread(4, 10, 10, 10)
    monkeypatch.setattr(stats, "MOST", 11)
    with pytest.raises(TooLarge):
        figures(rig, began, rig.clock())


@pytest.mark.parametrize(
    ("since", "until", "by", "field"),
    [(10.0, 10.0, (), "since"), (10.0, 5.0, (), "since"), (0.0, 5.0, ("day",), "by")],
)
def test_what_cannot_be_asked(
    rig: StoreRig, since: float, until: float, by: tuple[str, ...], field: str
) -> None:
    with pytest.raises(Invalid) as caught:
        figures(rig, since, until, *by)
    assert caught.value.field == field


def test_another_projects_jobs_are_not_in_it(rig: StoreRig, pilot: PilotRig) -> None:
    ran(pilot, 0, 10)
    rig.clock.advance(1)
    other = dataclasses.replace(rig.user, project_n=99)
    found = rig.ask(stats.stats, other, 0.0, rig.clock(), ("site",), rig.clock())
    assert (found.jobs, found.groups) == (0, [])


def test_rows_and_frames(rig: StoreRig, pilot: PilotRig, monkeypatch: pytest.MonkeyPatch) -> None:
    ran(pilot, 4, 10)
    rig.clock.advance(1)
    found = JobStats(figures(rig, 1.0, rig.clock(), "site", "app"), {pilot.site.id: "paris"})
    (row,) = found.rows()
    assert (row["site"], row["app"], row["finished"]) == ("paris", "true", 1)
    assert (row["wait_median_s"], row["run_p99_s"], row["utilisation"]) == (4, 10, None)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(Invalid, match="pip install pandas"):
        found.to_pandas()
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=list))
    assert found.to_pandas() == [row]
