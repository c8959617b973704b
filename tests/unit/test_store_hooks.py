"""What the Hub makes of hooks' reports, and whom it asks for logs."""

from __future__ import annotations

from typing import Any

import pytest

from chappe.core import limits
from chappe.core.hooks import HookName, HookReport
from chappe.core.states import State
from chappe.store import queries
from chappe.store.feed import EventFilter, page
from chappe.testing.store import PilotRig, SiteRig, StoreRig, cores


@pytest.fixture
def site(rig: StoreRig) -> SiteRig:
    return rig.add_site("paris")


@pytest.fixture
def pilot(site: SiteRig) -> PilotRig:
    return site.add_pilot()


def run(rig: StoreRig, pilot: PilotRig, hook: HookReport, exit: int = 0) -> Any:
    """A Job whose only attempt ended so; its view."""
    job = rig.spec(pilot.site)
    rig.submit(job)
    (grant,) = pilot.sync(capacity=cores(1)).grants
    pilot.run(grant, exit=exit, hook=hook)
    return rig.job(job.id)


def test_what_a_hook_wants_is_done_and_told(rig: StoreRig, pilot: PilotRig) -> None:
    report = HookReport(HookName.POSTPROCESS, data={"mean": 3}, message="fine")
    view = run(rig, pilot, report)
    assert (view.state, view.data) == ("JOB_FINISHED", {"mean": 3})
    assert view.outcome.hook == report
    head = rig.store.head(rig.user.project_n)
    events, _ = rig.ask(page, rig.user, 0, head, 100, EventFilter(jobs=(view.id,)))
    told = [e.new for e in events if e.kind == "job"]
    assert told[-3:] == ["RUN_DONE", "POSTPROCESSED", "JOB_FINISHED"]
    assert events[-1].kind == "job.updated"


def test_an_error_hook_restarts_whatever_the_retry_rule_says(
    rig: StoreRig, pilot: PilotRig
) -> None:
    view = run(rig, pilot, HookReport(HookName.ON_ERROR, State.RESTART_READY), exit=3)
    assert (view.state, view.attempt) == ("RESTART_READY", 1)
    again = pilot.sync(capacity=cores(1)).grants
    assert [g.attempt for g in again] == [2]


def test_data_that_would_grow_too_large_are_left_alone(rig: StoreRig, pilot: PilotRig) -> None:
    large = {"x": "y" * limits.DATA_BYTES}
    view = run(rig, pilot, HookReport(HookName.POSTPROCESS, data=large))
    assert (view.state, view.data) == ("JOB_FINISHED", {})
    useless = HookReport(HookName.ON_ERROR, State.JOB_FINISHED, problem="hung", data={"a": 1})
    view = run(rig, pilot, useless, exit=3)
    assert (view.state, view.data) == ("FAILED", {})


def test_logs_are_asked_of_whoever_is_heard(rig: StoreRig, site: SiteRig, pilot: PilotRig) -> None:
    def able(id: str) -> list[tuple[str, object]]:
        return rig.ask(queries.log_holders, rig.user, id, rig.clock())

    site.sync()
    pilot.sync()
    assert [kind for kind, _ in able(site.id)] == ["agent", "session"]
    assert able(site.id)[1] == ("session", pilot.id)
    rig.clock.advance(limits.SESSION_TTL_S + 1)
    assert [kind for kind, _ in able(site.id)] == ["session"]
    site.sync()
    site.end(pilot)
    assert [kind for kind, _ in able(site.id)] == ["agent"]
    rig.clock.advance(limits.SESSION_TTL_S + 1)
    assert able(site.id) == []
    assert able("no-such-site") == []
