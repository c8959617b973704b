"""Looks that have patience share a commit, and keep nobody waiting who has none."""

from __future__ import annotations

import pytest

from chappe.hub.routes.sync import says_something
from chappe.store import sync, writer
from chappe.store.standing import Command, Stay
from chappe.testing.store import PilotRig, StoreRig, cores

TIMEOUT_S = 60


def look(pilot: PilotRig) -> Command:
    """A pilot's idle poll."""
    stay = Stay(pilot.principal.site_n, sync.acquire, says_something)
    request = pilot.request(capacity=cores(1), wait_s=15.0)
    stand = pilot.rig.store.writer.stand
    return stand(stay, sync.sync, pilot.principal, request, patient=True)


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing happens because time passes."""
    monkeypatch.setattr(writer, "PATIENCE_S", 3_600.0)


@pytest.mark.usefixtures("endless")
def test_they_go_along_with_what_is_quick_in_one_commit(rig: StoreRig) -> None:
    site = rig.add_site("paris")
    pilots = [site.add_pilot() for _ in range(3)]
    commits = rig.store.writer.stats.commits
    looks = [look(pilot) for pilot in pilots]
    assert rig.store.writer.depth == 3
    rig.submit(*[rig.spec(site) for _ in range(3)])
    assert [len(c.future.result(TIMEOUT_S).grants) for c in looks] == [1, 1, 1]
    assert rig.store.writer.stats.commits == commits + 1


@pytest.mark.usefixtures("endless")
def test_who_leaves_is_answered_at_once(rig: StoreRig) -> None:
    pilot = rig.add_site("paris").add_pilot()
    mine, other = look(pilot), look(rig.add_site("oslo").add_pilot())
    rig.store.writer.leave(mine)
    assert mine.future.result(TIMEOUT_S).grants == []
    assert not other.future.done()
    rig.store.writer.leave(other)
    assert other.future.result(TIMEOUT_S).grants == []


@pytest.mark.usefixtures("endless")
def test_a_hub_that_stops_lets_nobody_wait(rig: StoreRig) -> None:
    command = look(rig.add_site("paris").add_pilot())
    rig.store.writer.stop()
    assert command.answer is not None


def test_alone_it_is_run_in_the_end(rig: StoreRig) -> None:
    pilot = rig.add_site("paris").add_pilot()
    rig.submit(rig.spec(pilot.site))
    assert len(look(pilot).future.result(TIMEOUT_S).grants) == 1
