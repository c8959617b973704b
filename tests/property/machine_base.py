"""What the lease machine stands on: delivering requests, judging answers, and coming to rest."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypothesis.stateful import RuleBasedStateMachine

from chappe.core import faults
from chappe.core.errors import SessionDead
from chappe.core.leases import Outcome, Reason
from chappe.core.limits import KILL_TIME_S
from chappe.core.states import FINAL, RUNNABLE, State
from chappe.store import edits, sync, upkeep
from chappe.testing.place import Place
from chappe.testing.store import SiteRig, StoreRig
from chappe.wire.jobs import ActOnJobs, JobFilter
from chappe.wire.sync import SyncReply, SyncRequest
from tests.property.machine_check import Checker
from tests.property.machine_world import Hold, Phase, Sent, SimPilot, World

TTL_S = 60.0
#: The disk is not what is tested here, and waiting for it would be most of the time.
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108


class MachineBase(RuleBasedStateMachine):
    """A store, two Sites with a pilot each, and the world they live in. No rules yet."""

    @staticmethod
    def place(directory: Path) -> Path | Place:
        """Where the store of one example is."""
        return directory / "hub.db"

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory(dir=MEMORY)
        self.rig = StoreRig(self.place(Path(self.directory.name)))
        self.world = World(self.rig.clock)
        self.checker = Checker(self.rig)
        self.sites = [self.rig.add_site("paris"), self.rig.add_site("toulouse")]
        self.jobs: list[str] = []
        self.heard: dict[int, float] = {}
        self.failed = False
        self.copy: tuple[bytes, list[str]] | None = None
        for site in (*self.sites, self.sites[0]):
            self._add_pilot(site, None)

    def teardown(self) -> None:
        """The faults stop: all must end well."""
        try:
            if not self.failed:
                self._come_to_rest()
        finally:
            faults.arm(None)
            self.rig.close()
            self.rig.place.leave()
            self.directory.cleanup()

    @contextlib.contextmanager
    def _told_apart(self) -> Iterator[None]:
        """Hypothesis calls `teardown` also after a failure, which must not be hidden by what follows."""
        self.failed = True
        yield
        self.failed = False

    def _add_pilot(self, site: SiteRig, ends_in_s: float | None) -> SimPilot:
        ends_at = None if ends_in_s is None else self.world.clock() + ends_in_s
        pilot = SimPilot(site.add_pilot(), self.world, ends_at)
        self.world.pilots.append(pilot)
        return pilot

    def _speakers(self) -> list[SimPilot]:
        return [p for p in self.world.pilots if p.speaks]

    def _holds(self, *phases: Phase) -> list[Hold]:
        return [
            h
            for p in self.world.pilots
            if p.alive and not p.over
            for h in p.holds.values()
            if h.phase in phases
        ]

    def _deliver(self, pilot: SimPilot, sent: Sent) -> SyncReply | None:
        """The Hub handles a request; None when it says that the Session is dead."""
        before = self._facts(pilot)
        try:
            reply = self.rig.do(sync.sync, pilot.rig.principal, sent.request)
        except SessionDead:
            assert before["state"] == "dead"
            pilot.hears_that_it_is_dead()
            return None
        except LookupError:
            # A restored Hub does not know the Session: 401 for ever. What runs there runs on, unheard.
            pilot.known = False
            return None
        assert before["state"] != "dead", "a dead Session was served (I8)"
        self.heard[before["n"]] = self.world.clock()
        self._judge(pilot, sent, reply, before)
        sent.delivered, sent.reply = True, reply
        return reply

    def _facts(self, pilot: SimPilot) -> dict[str, Any]:
        """What the rows say just before a request is handled."""
        found = self.rig.sql("SELECT * FROM session WHERE id = ?", pilot.rig.id)
        session: dict[str, Any] = dict(found[0]) if found else {"n": 0, "state": "unknown"}
        hub = self.rig.sql("SELECT incarnation, commit_no FROM hub")[0]
        session["hub"] = (hub["incarnation"], hub["commit_no"])
        session["rows"] = {
            r["id"]: dict(r) for r in self.rig.sql("SELECT * FROM job WHERE phase <> 'deleted'")
        }
        return session

    def _judge(self, pilot: SimPilot, sent: Sent, reply: SyncReply, before: dict[str, Any]) -> None:
        """Whether the answer is the one that the rules of reports and repeats demand."""
        request = sent.request
        assert reply.request_no == request.request_no
        after = self._facts(pilot)
        assert (reply.incarnation, reply.commit_no) <= after["hub"], "shown what is not committed"
        if request.seen > before["hub"]:
            assert after["hub"][0] > before["hub"][0], "an older copy did not notice what it is"
            return
        assert after["hub"][0] == before["hub"][0], "a new incarnation without need"
        if request.request_no <= before["last_request"]:
            self._judge_repeat(request, before, after, reply)
            return
        assert [v.no for v in reply.verdicts] == [r.no for r in request.reports]
        if before["incarnation"] != before["hub"][0]:
            return  # it reconciles: what is held overrides the rows
        for report, verdict in zip(request.reports, reply.verdicts, strict=True):
            row = before["rows"].get(report.job)
            mine = row is not None and (row["session"], row["epoch"]) == (
                before["n"],
                report.epoch,
            )
            if report.no <= before["last_report"]:
                assert verdict.verdict == "duplicate"
            elif not mine:
                assert verdict.verdict == "stale_lease", f"{report} was {verdict.verdict} (I8)"
            elif report.kind == "start" and row is not None and row["state"] == "RUNNING":
                assert verdict.verdict == "duplicate"
            else:
                assert verdict.verdict == "applied", f"{report} was {verdict.verdict}"

    def _judge_repeat(
        self, request: SyncRequest, before: dict[str, Any], after: dict[str, Any], reply: SyncReply
    ) -> None:
        no = request.request_no
        assert after["hub"] == before["hub"], "a repeated request was written"
        applied = [r.no for r in request.reports if r.no <= before["last_report"]]
        assert [(v.no, v.verdict) for v in reply.verdicts] == [(n, "duplicate") for n in applied]
        granted = {(g.job, g.epoch) for g in reply.grants}
        rows = before["rows"].values()
        expected = {
            (r["id"], r["epoch"])
            for r in rows
            if r["session"] == before["n"]
            and r["granted_request"] == no
            and State(r["state"]) in RUNNABLE
        }
        assert granted == (expected if no == before["last_request"] else set())

    def _exchange(self, pilot: SimPilot, reports: int = 99, prefetch: int = 1) -> None:
        """A whole sync, as it goes when nothing goes wrong."""
        sent = pilot.in_flight[0] if pilot.in_flight else pilot.build(reports, prefetch)
        reply = self._deliver(pilot, sent)
        if reply is not None:
            pilot.read(sent, reply)

    def _start_all(self, pilot: SimPilot) -> None:
        if pilot.speaks:
            for hold in list(pilot.holds.values()):
                if hold.phase is Phase.GRANTED:
                    pilot.start(hold)

    def _timers(self) -> None:
        """What the Hub does on its own."""
        now = self.world.clock()
        ends = self.rig.ask(upkeep.open_sessions)
        for n in ends:
            self.heard.setdefault(n, now)
        ago = {n: now - at for n, at in self.heard.items()}
        self.rig.do(upkeep.silence, [n for n, s in ago.items() if s > TTL_S])
        over = [n for n, at in ends.items() if at is not None and at + KILL_TIME_S <= now]
        self.rig.do(upkeep.allocations_over, over)
        self.rig.do(upkeep.takeovers, ago)
        self.rig.do(upkeep.release_due)

    def _reopened(self) -> None:
        self.heard = {}

    # -- the agents ---------------------------------------------------------------------------------

    def _agent(self, site: SiteRig, *, undertaker: bool) -> None:
        mine = [p for p in self.world.pilots if p.rig.site is site]
        for pilot in mine:
            if not pilot.alive and pilot.known and not pilot.over and undertaker:
                self._undertake(pilot)
        open_ = {order.id for order in site.sync().orders}
        for pilot in mine:
            if not pilot.alive and pilot.rig.batch_job in open_:
                site.end(pilot.rig)

    def _undertake(self, pilot: SimPilot) -> None:
        for hold in list(pilot.holds.values()):
            if hold.phase is Phase.RUNNING:
                hold.phase = Phase.ENDED
                pilot.say(hold, "end", Outcome(Reason.ALLOCATION_END))
            elif hold.phase is Phase.GRANTED:
                pilot.give_back([hold])
        pilot.draining, pilot.ends_at = True, None
        pilot.alive = True
        sent = pilot.build(99, 0)
        reply = self._deliver(pilot, sent)
        if reply is not None:
            pilot.read(sent, reply)
        pilot.alive = False

    # -- the end -----------------------------------------------------------------------------------

    def _come_to_rest(self) -> None:
        """Faults stop and everybody behaves: all Jobs come to their end, in bounded time."""
        self.rig.do(edits.release, self.rig.user, ActOnJobs(JobFilter()))
        for _ in range(60):
            if all(State(s["state"]) in FINAL for s in self._live_rows()):
                return
            for pilot in self.world.pilots:
                if pilot.alive and not pilot.speaks:
                    pilot.die()  # with its pilot ends the allocation
            for site in self.sites:
                self._agent(site, undertaker=True)
                here = [p for p in self._speakers() if p.rig.site is site and not p.draining]
                if not here:
                    self._add_pilot(site, None)
            for pilot in self._speakers():
                self._behave(pilot)
            self.world.advance(30.0)
            self._timers()
            self.checker.check()
        left = [tuple(r) for r in self._live_rows() if State(r["state"]) not in FINAL]
        raise AssertionError(f"these never end (I10): {left}; {self.world}")

    def _behave(self, pilot: SimPilot) -> None:
        for _ in range(3):
            self._exchange(pilot)
            if not pilot.speaks:
                return
            self._start_all(pilot)
            for hold in list(pilot.holds.values()):
                if hold.phase is Phase.RUNNING:
                    pilot.finish(hold, Outcome(Reason.EXIT, exit=0))
        if pilot.draining and not pilot.holds:
            pilot.die()

    def _live_rows(self) -> list[Any]:
        return self.rig.sql(
            "SELECT id, state, session, epoch, not_before, waiting_parents, cancel_at FROM job "
            "WHERE phase <> 'deleted'"
        )
