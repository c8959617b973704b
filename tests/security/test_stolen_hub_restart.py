"""Replays in the hard moments: after a pilot was killed, between its journal and its launcher, elsewhere."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from chappe.core.leases import Reason
from chappe.testing.hub import RunningHub
from tests.security.evil_hub import plain_order
from tests.security.victim import Victim, granted, job_of, not_again, works


@pytest.fixture
def restarted(
    tmp_path: Path, open_hub: RunningHub, request: pytest.FixtureRequest
) -> Iterator[Victim]:
    """A Site whose pilot may be made to die at a named point (once); its batch script starts another."""
    point = getattr(request, "param", "")
    env = f'\n[pilot.env]\nCHAPPE_CRASH_AT = "{point}"\nCHAPPE_CRASH_ONCE = "{tmp_path}/died"\n'
    made = Victim(tmp_path / "site", open_hub, tail=env)
    try:
        made.start()
        yield made
    finally:
        made.close()


def test_a_killed_pilot_remembers_what_ran(restarted: Victim) -> None:
    victim = restarted
    spec = victim.spec()
    submission = victim.sign(spec)
    job = victim.run(spec, submission)
    assert victim.hub.report(job).kind == "end"
    (session,) = victim.sessions()
    first = victim.pilot(session)
    os.kill(first, signal.SIGKILL)
    victim.hub.wait(lambda: victim.pilot(session) not in (0, first), "another head")
    not_again(victim, spec, submission, epoch=2)
    assert victim.runs(job) == 1
    works(victim)


# The first grant passes each of these points once, the replay dies there before it can be refused.
@pytest.mark.parametrize("restarted", ["pilot.after_grant_journal:2"], indirect=True)
@pytest.mark.parametrize("epoch", [1, 2])
def test_a_pilot_that_dies_over_a_replay_does_not_take_it_for_its_own(
    restarted: Victim, tmp_path: Path, epoch: int
) -> None:
    """The journal then holds a grant, and the ledger this Session's own claim for it, of the first time."""
    victim = restarted
    spec = victim.spec()
    submission = victim.sign(spec)
    job = victim.run(spec, submission)
    assert victim.hub.report(job).kind == "end"
    victim.hub.reports.clear()
    victim.run(spec, submission, epoch=epoch)
    victim.hub.wait((tmp_path / "died").exists, "the pilot dies")
    if epoch == 2:
        report = victim.hub.report(job, epoch)
        assert report.outcome is not None
        assert report.outcome.reason == Reason.LAUNCHER_LOST
    # Under its old epoch it is over in the journal as well, and nobody asks for it any more.
    works(victim)
    assert victim.runs(job) == 1
    assert not any(h.job == job for h in victim.hub.syncs[-1].held)


@pytest.mark.parametrize("restarted", ["pilot.after_claim"], indirect=True)
def test_an_honest_start_that_was_cut_short_is_made_once(restarted: Victim, tmp_path: Path) -> None:
    """The counterpart: the same pilot does find a claim that is of the grant in its journal."""
    victim = restarted
    spec = victim.spec()
    job = victim.run(spec, victim.sign(spec))
    victim.hub.wait((tmp_path / "died").exists, "the pilot dies")
    assert victim.hub.report(job).kind == "end"
    assert victim.runs(job) == 1


def test_another_session_of_the_site_does_not_run_it_again(restarted: Victim) -> None:
    victim = restarted
    (first,) = victim.sessions()
    spec, running = victim.spec(), victim.spec("slow")
    submission = victim.sign(spec, running)
    victim.hub.grant(granted(spec, submission), [submission], first)
    victim.hub.grant(granted(running, submission, idx=1), [submission], first)
    assert victim.hub.report(job_of(spec)).kind == "end"
    victim.hub.wait(lambda: victim.runs(job_of(running)), "the second job's start")
    victim.hub.order(plain_order())
    victim.hub.wait(lambda: {s.session for s in victim.hub.syncs} - {first}, "another pilot")
    (second,) = set(victim.sessions()) - {first}
    for again, idx in ((spec, 0), (running, 1)):
        victim.hub.grant(granted(again, submission, epoch=2, idx=idx), [submission], second)
        report = victim.hub.report(job_of(again), 2)
        assert (report.kind, report.reason) == ("refused", "started_before")
        assert victim.runs(job_of(again)) == 1
    works(victim, second)
