"""What stays with the writer until there is work for it: one commit for create and grant, and no harm."""

from __future__ import annotations

from concurrent.futures import Future

import pytest

from chappe.core.errors import SessionDead
from chappe.core.jobs import Resources
from chappe.hub.routes.sync import says_something
from chappe.store import standing, sync
from chappe.store.principal import Principal
from chappe.store.standing import Command, Stay
from chappe.store.tx import Effects, Tx
from chappe.testing.store import PilotRig, StoreRig, cores
from chappe.wire.sync import SyncReply, SyncRequest

TIMEOUT_S = 60


class Poll:
    """A pilot's request that stays for work at its Site."""

    def __init__(self, pilot: PilotRig, fn: object = sync.acquire) -> None:
        self.pilot = pilot
        self.request = pilot.request(capacity=cores(1), wait_s=15.0)
        stay = Stay(pilot.principal.site_n, fn, says_something)  # type: ignore[arg-type]
        writer = pilot.rig.store.writer
        self.standing = writer.standing
        self.command: Command = writer.stand(stay, sync.sync, pilot.principal, self.request)
        answered(pilot.rig)

    @property
    def future(self) -> Future[SyncReply]:
        return self.command.future

    def grants(self) -> int:
        return len(self.future.result(TIMEOUT_S).grants)


@pytest.fixture
def pilot(rig: StoreRig) -> PilotRig:
    return rig.add_site("paris").add_pilot()


def answered(rig: StoreRig) -> None:
    """Return when all have been answered whom the last commit answers: the one who wrote is the first."""
    rig.do(lambda _tx: None)


def hints(rig: StoreRig) -> list[set[int]]:
    """The Sites of which each commit from now on says that there is work."""
    told: list[set[int]] = []

    def note(effects: Effects) -> None:
        told.append(set(effects.work))

    rig.store.writer.on_commit = note
    return told


def test_create_and_grant_share_a_commit(rig: StoreRig, pilot: PilotRig) -> None:
    poll = Poll(pilot)
    assert not poll.future.done()
    commits = rig.store.writer.stats.commits
    told = hints(rig)
    rig.submit(job := rig.spec(pilot.site))
    assert [grant.job for grant in poll.future.result(TIMEOUT_S).grants] == [job.id]
    assert rig.store.writer.stats.commits == commits + 1
    assert told == [set()]  # nobody else need look
    assert len(poll.standing) == 0
    reply = poll.future.result()
    assert reply.commit_no == rig.store.writer.catalog.commit_no


def test_who_leaves_has_the_last_answer_and_no_work(rig: StoreRig, pilot: PilotRig) -> None:
    poll = Poll(pilot)
    poll.standing.leave(poll.command)
    poll.standing.leave(poll.command)
    assert poll.grants() == 0
    rig.submit(job := rig.spec(pilot.site))
    assert rig.job(job.id).session is None
    assert len(poll.standing) == 0


def test_who_left_before_its_turn_is_answered_in_its_turn(rig: StoreRig, pilot: PilotRig) -> None:
    rig.submit(rig.spec(pilot.site))
    poll = Poll(pilot)
    poll.standing.leave(poll.command)
    assert poll.grants() == 1


def test_work_of_another_site_wakes_nobody(rig: StoreRig, pilot: PilotRig) -> None:
    poll = Poll(pilot)
    told = hints(rig)
    other = rig.add_site("oslo")
    rig.submit(rig.spec(other))
    assert not poll.future.done()
    # A poll at that Site that is on its way between two looks finds it by itself.
    assert told[-1] == set()
    assert len(other.add_pilot().sync(capacity=cores(1)).grants) == 1


def test_a_repeated_request_is_given_what_came_after_it(rig: StoreRig, pilot: PilotRig) -> None:
    poll = Poll(pilot)
    poll.standing.leave(poll.command)
    assert poll.grants() == 0
    rig.submit(rig.spec(pilot.site))
    stay = Stay(pilot.principal.site_n, sync.acquire, says_something)
    again = rig.store.writer.stand(stay, sync.sync, pilot.principal, poll.request)
    assert len(again.future.result(TIMEOUT_S).grants) == 1


def test_a_failure_of_what_stays_harms_no_create(rig: StoreRig, pilot: PilotRig) -> None:
    def fail(_tx: Tx, _p: Principal, _request: SyncRequest) -> SyncReply:
        raise ValueError("a bug")

    poll = Poll(pilot, fail)
    told = hints(rig)
    rig.submit(job := rig.spec(pilot.site))
    assert rig.job(job.id).state == "PREPROCESSED"
    assert not poll.future.done()
    assert told == [{pilot.principal.site_n}]  # as it looks by itself then
    poll.standing.leave(poll.command)
    assert poll.grants() == 0


def test_a_refusal_is_its_answer(rig: StoreRig, pilot: PilotRig) -> None:
    def refuse(_tx: Tx, _p: Principal, _request: SyncRequest) -> SyncReply:
        raise SessionDead("dead")

    poll = Poll(pilot, refuse)
    rig.submit(rig.spec(pilot.site))
    with pytest.raises(SessionDead):
        poll.future.result(TIMEOUT_S)
    assert len(poll.standing) == 0


def test_of_many_some_look_and_the_others_are_hinted(
    rig: StoreRig, pilot: PilotRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standing, "LOOKS", 2)
    polls = [Poll(pilot), *(Poll(pilot.site.add_pilot()) for _ in range(3))]
    told = hints(rig)
    rig.submit(*[rig.spec(pilot.site) for _ in range(3)])
    assert told == [{pilot.principal.site_n}]
    answered(rig)
    assert [poll.future.done() for poll in polls] == [True, True, False, False]
    rig.submit(rig.spec(pilot.site))
    assert [poll.grants() for poll in polls] == [1, 1, 1, 1]
    assert told[-1] == set()


def test_who_found_nothing_goes_behind_the_others(
    rig: StoreRig, pilot: PilotRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standing, "LOOKS", 1)
    first, second = Poll(pilot), Poll(pilot.site.add_pilot())
    large = rig.spec(pilot.site, resources=Resources(cores=2))
    rig.submit(large)  # fits neither
    rig.submit(rig.spec(pilot.site))
    answered(rig)
    assert (first.future.done(), second.future.done()) == (False, True)
    first.standing.leave(first.command)
