"""The lease machine: a real store, simulated pilots, and a network that may do its worst.

Each step is one thing that may happen; after each, `Checker` reads the database and `World` has watched
what truly runs. At the end the faults stop, and every Job must come to its end in bounded time. The steps
are weighed here and not left to Hypothesis, which would choose the rare as often as the common: no Job
would live long enough to be in danger.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from chappe.core import faults
from chappe.core.errors import ChappeError, SessionDead
from chappe.core.jobs import Envelope, JobSpec, ParentPolicy, Resources, Retries, RetryOn
from chappe.core.leases import Outcome, Reason
from chappe.store import acts, edits, sites, sync
from chappe.wire.jobs import ActOnJobs, JobFilter
from chappe.wire.sites import EndSession
from chappe.wire.sync import Report
from tests.property.machine_base import MachineBase
from tests.property.machine_world import Phase, Sent, SimPilot

OUTCOMES = [
    Outcome(Reason.EXIT, exit=0),
    Outcome(Reason.EXIT, exit=0),
    Outcome(Reason.EXIT, exit=1, message="no"),
    Outcome(Reason.SIGNAL, signal=9),
    Outcome(Reason.TIMEOUT),
    Outcome(Reason.LAUNCHER_LOST),
    Outcome(Reason.START_FAILED),
]
ON = [(RetryOn.LOST,), (), (RetryOn.ERROR,), (RetryOn.ERROR, RetryOn.TIMEOUT, RetryOn.LOST)]


#: What happens how often on a calm day, and what moods change. Hypothesis likes the first and the last of a
#: list, so what makes Jobs move stands there.
CALM = {
    "starts": 5,
    "syncs": 6,
    "acts": 3,
    "submit": 2,
    "works": 2,
    "sends": 2,
    "late_answer": 1,
    "stale": 1,
    "time_passes": 2,
    "silence": 2,
    "pilot_fails": 1,
    "agent_syncs": 1,
    "new_pilot": 1,
    "hub": 1,
    "arrives": 4,
    "finishes": 4,
}
MOODS = {
    "bad network": {"syncs": 1, "works": 1, "sends": 6, "arrives": 9, "late_answer": 4, "stale": 4},
    "long silence": {"syncs": 2, "works": 0, "starts": 8, "time_passes": 6, "silence": 6},
    "deadly": {"pilot_fails": 4, "agent_syncs": 3, "new_pilot": 4},
    "fickle users": {"acts": 8},
    "trouble at the hub": {"hub": 5},
}


NEED_A_PILOT = ("syncs", "works", "sends", "pilot_fails", "silence")


class Discarded(ChappeError):
    """The Hub was killed before its commit. An error that the writer expects, so that it logs none."""


def _discard(point: str) -> None:
    if point == "hub.before_commit":
        raise Discarded("killed")


class LeaseMachine(MachineBase):
    """See the module."""

    #: What may happen and how often, when a test knows where to look.
    only: Mapping[str, int] = {}

    @initialize(data=st.data())
    def first(self, data: st.DataObject) -> None:
        self.weights = dict(self.only or CALM)
        if not self.only:
            moods = st.lists(st.sampled_from(list(MOODS)), unique=True)
            for mood in data.draw(moods, label="moods"):
                self.weights |= MOODS[mood]
        self.submit(data)
        self.submit(data)

    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        """One thing happens, of those that can."""
        can = {
            "acts": bool(self.jobs),
            "starts": bool(self._holds(Phase.GRANTED)),
            "finishes": bool(self._holds(Phase.RUNNING)),
            "arrives": bool(self._in_flight()),
            "late_answer": any(s.delivered for _, s in self._in_flight()),
            "new_pilot": len(self._speakers()) < 4,
        }
        spoken = bool(self._speakers())
        kinds = [
            kind
            for kind, weight in self.weights.items()
            if can.get(kind, spoken or kind not in NEED_A_PILOT)
            for _ in range(weight)
        ]
        with self._told_apart():
            getattr(self, data.draw(st.sampled_from(kinds), label="step"))(data)
            self.checker.check()

    # -- the user ----------------------------------------------------------------------------------

    def submit(self, data: st.DataObject) -> None:
        n = data.draw(st.integers(1, 4))
        specs: list[JobSpec] = []
        known = self.jobs[-6:]
        for _ in range(n):
            at = data.draw(
                st.sampled_from([self.sites, self.sites, self.sites[:1], self.sites[1:]])
            )
            among = [*known, *(s.id for s in specs)]
            parents = (
                data.draw(st.lists(st.sampled_from(among), unique=True, max_size=3))
                if among
                else []
            )
            specs.append(
                self.rig.spec(
                    *at,
                    parents=tuple(parents),
                    on_parent_failure=data.draw(st.sampled_from(ParentPolicy)),
                    resources=Resources(cores=data.draw(st.sampled_from([1, 1, 2, 4]))),
                    retries=Retries(
                        data.draw(st.integers(0, 2)),
                        data.draw(st.sampled_from(ON)),
                        data.draw(st.sampled_from([0.0, 0.0, 5.0, 100.0])),
                    ),
                    takeover_s=data.draw(st.sampled_from([None, None, 60.0, 90.0])),
                    not_before=data.draw(
                        st.sampled_from([None, None, None, self.world.clock() + 30.0])
                    ),
                )
            )
        priorities = [Envelope(priority=data.draw(st.integers(-1, 1))) for _ in specs]
        body = self.rig.request(*specs, envelopes=priorities)
        for _ in range(data.draw(st.integers(1, 2))):  # the reply to the first may be lost
            self.rig.create(body)
        for spec, new in zip(specs, body.jobs, strict=True):
            self.world.specs[spec.id] = bytes(new.spec)
            self.jobs.append(spec.id)

    def _some(self, data: st.DataObject) -> ActOnJobs:
        """Some Jobs, by ids or by filter."""
        if data.draw(st.integers(0, 3)):
            ids = data.draw(
                st.lists(st.sampled_from(self.jobs), unique=True, min_size=1, max_size=3)
            )
            return ActOnJobs(JobFilter(ids=ids))
        phase = data.draw(
            st.sampled_from(["failed", "waiting", "runnable", "running", "cancelled"])
        )
        return ActOnJobs(JobFilter(phase=phase))

    def acts(self, data: st.DataObject) -> None:
        """A user does something about Jobs, an allocation or a Session."""
        many = ["retry", "retry", "cancel", "cancel", "delete", "drain", "end", "hold", "release"]
        what = data.draw(st.sampled_from(many))
        pilots = self._speakers()
        if what == "cancel":
            self.rig.do(acts.cancel, self.rig.user, self._some(data))
        elif what == "retry":
            self._retry(data)
        elif what == "delete":
            self._delete(data)
        elif what in ("hold", "release"):
            self.rig.do(getattr(edits, what), self.rig.user, self._some(data))
        elif pilots:
            pilot = data.draw(st.sampled_from(pilots))
            try:
                self._drain(pilot) if what == "drain" else self._operator_ends(pilot)
            except ChappeError:
                assert self.world.restored  # it was made after the copy, and is unknown now

    def _retry(self, data: st.DataObject) -> None:
        self.checker.reopened = set(self.jobs)
        before = {r["id"]: r for r in self.rig.sql("SELECT * FROM job")}
        act = self._some(data)
        reply = self.rig.do(acts.retry, self.rig.user, act)
        for verdict in reply.verdicts:
            row = before[verdict.id]
            if verdict.code == "retried":
                assert row["state"] in ("FAILED", "CANCELLED")
                assert row["attempt"] < row["max_attempts"]
        if act.filter.ids is not None:
            assert len(reply.verdicts) == len(act.filter.ids)

    def _delete(self, data: st.DataObject) -> None:
        self.rig.do(acts.delete, self.rig.user, self._some(data))
        gone = {r["id"] for r in self.rig.sql("SELECT id FROM job WHERE phase = 'deleted'")}
        self.jobs = [j for j in self.jobs if j not in gone]

    def _drain(self, pilot: SimPilot) -> None:
        self.rig.do(sites.cancel_batch_job, self.rig.user, pilot.rig.batch_job)

    def _operator_ends(self, pilot: SimPilot) -> None:
        self.rig.do(sites.end_session, self.rig.user, pilot.rig.id, EndSession(True))
        pilot.may_overlap = True
        for hold in pilot.holds.values():
            hold.may_overlap = True

    # -- pilots ------------------------------------------------------------------------------------

    def new_pilot(self, data: st.DataObject) -> None:
        ends_in_s = data.draw(st.sampled_from([None, None, 100.0, 400.0]))
        self._add_pilot(data.draw(st.sampled_from(self.sites)), ends_in_s)

    def syncs(self, data: st.DataObject) -> None:
        pilot = data.draw(st.sampled_from(self._speakers()))
        self._exchange(pilot, prefetch=data.draw(st.integers(0, 2)))
        if data.draw(st.booleans()):
            self._start_all(pilot)

    def works(self, data: st.DataObject) -> None:
        """Fetch, start, report, end, report."""
        outcome = data.draw(st.sampled_from(OUTCOMES))
        pilot = data.draw(st.sampled_from(self._speakers()))
        for _ in range(2):
            self._exchange(pilot)
            if not pilot.speaks:
                return
            for hold in list(pilot.holds.values()):
                if hold.phase is Phase.GRANTED:
                    pilot.start(hold)
                elif hold.phase is Phase.RUNNING:
                    pilot.finish(hold, outcome)
        self._exchange(pilot)

    def starts(self, data: st.DataObject) -> None:
        hold = data.draw(st.sampled_from(self._holds(Phase.GRANTED)))
        hold.pilot.start(hold)

    def finishes(self, data: st.DataObject) -> None:
        hold = data.draw(st.sampled_from(self._holds(Phase.RUNNING)))
        outcome = data.draw(st.sampled_from(OUTCOMES))
        hold.pilot.finish(hold, outcome, quiet=data.draw(st.booleans()))

    def pilot_fails(self, data: st.DataObject) -> None:
        """A pilot gives a grant back or refuses it, is killed and restarted, or dies with its allocation."""
        pilot = data.draw(st.sampled_from(self._speakers()))
        what = data.draw(st.sampled_from(["crashes", "dies", "refuses", "returns"]))
        granted = [h for h in pilot.holds.values() if h.phase is Phase.GRANTED]
        if what == "crashes":
            pilot.crash()
        elif what == "dies":
            pilot.die()
        elif granted and what == "returns":
            pilot.give_back(granted[:1])
        elif granted:
            pilot.refuse(granted[0])

    # -- the network -------------------------------------------------------------------------------

    def sends(self, data: st.DataObject) -> None:
        """A request goes out. One that goes out beside it was given up, and may arrive all the same."""
        pilot = data.draw(st.sampled_from(self._speakers()))
        if len(pilot.in_flight) < 2:
            pilot.build(data.draw(st.integers(0, 3)), data.draw(st.integers(0, 2)))

    def _in_flight(self) -> list[tuple[SimPilot, Sent]]:
        return [(p, s) for p in self._speakers() for s in p.in_flight]

    def arrives(self, data: st.DataObject) -> None:
        """A request arrives, perhaps not for the first time. Its answer is read, lost, or late."""
        pilot, sent = data.draw(st.sampled_from(self._in_flight()))
        fate = data.draw(st.sampled_from(["read", "lost", "late"]))
        reply = self._deliver(pilot, sent)
        if reply is not None and fate == "read":
            pilot.read(sent, reply)
        elif fate == "lost":
            sent.reply = None

    def late_answer(self, data: st.DataObject) -> None:
        """An answer comes late: as it was given, or after the Hub had held the request and looked again."""
        pilot, sent = data.draw(st.sampled_from([x for x in self._in_flight() if x[1].delivered]))
        reply = sent.reply
        if data.draw(st.booleans()):
            try:
                reply = self.rig.do(sync.acquire, pilot.rig.principal, sent.request)
            except (SessionDead, LookupError):
                return
            hub = self.rig.sql("SELECT incarnation, commit_no FROM hub")[0]
            assert (reply.incarnation, reply.commit_no) <= tuple(hub), "shown what is not committed"
            if sent.request.reports:
                return  # the Hub would have answered these at once
        if reply is not None:
            pilot.read(sent, reply)

    def stale(self, data: st.DataObject) -> None:
        """Something old arrives: a request of before, or a report under an epoch that is over."""
        senders = [p for p in self.world.pilots if p.archive and p.known]
        frozen = [p for p in self._speakers() if p.past]
        if data.draw(st.booleans()) and frozen:
            self._stale_report(data, data.draw(st.sampled_from(frozen)))
        elif senders:
            self._stale_sync(data, data.draw(st.sampled_from(senders)))

    def _stale_sync(self, data: st.DataObject, pilot: SimPilot) -> None:
        """An old request arrives once more, whoever sent it, alive or not. Nobody reads the answer."""
        old = data.draw(st.sampled_from(pilot.archive))
        found = self.rig.sql("SELECT last_request FROM session WHERE id = ?", pilot.rig.id)
        if old in pilot.in_flight or not found:
            return
        if old.request.request_no > found[0]["last_request"]:
            return  # of a past that was lost, or it never arrived: to this Hub it may be news
        self._deliver(pilot, Sent(old.request, self.world.clock()))

    def _stale_report(self, data: st.DataObject, pilot: SimPilot) -> None:
        """A report under an epoch that is over, as from a pilot that was frozen."""
        job, epoch, attempt = data.draw(st.sampled_from(pilot.past))
        sent = pilot.build(0, 0)
        pilot.in_flight.remove(sent)
        before = self._facts(pilot)
        row = before["rows"].get(job)
        mine = row is not None and (row["session"], row["epoch"]) == (before["n"], epoch)
        if mine or pilot.outbox:
            return  # it is not over, to the Hub; or its number would overtake those of others
        kind = data.draw(st.sampled_from(["start", "end", "refused"]))
        pilot.rig.report_no += 1
        now = self.world.clock()
        ok = Outcome(Reason.EXIT, exit=0)
        forged = Report(pilot.rig.report_no, job, epoch, attempt + 5, kind, now, now, ok)
        sent.request = msgspec.structs.replace(
            sent.request, reports=[forged], capacity=None, returned=[]
        )
        if self._deliver(pilot, sent) is None or row is None:
            return
        after = self._facts(pilot)["rows"][job]
        if before["incarnation"] == before["hub"][0]:
            same = ("state", "attempt", "outcome", "phase")
            assert [after[c] for c in same] == [row[c] for c in same], "a stale report counted (I8)"

    # -- time and death ----------------------------------------------------------------------------

    def time_passes(self, data: st.DataObject) -> None:
        self.world.advance(data.draw(st.sampled_from([1.0, 10.0, 40.0, 65.0, 90.0, 130.0])))
        if data.draw(st.booleans()):
            self._timers()

    def silence(self, data: st.DataObject) -> None:
        """One pilot is cut off while the others work on: where two could come to run one Job."""
        speakers = self._speakers()
        busy = [p for p in speakers if any(h.phase is Phase.RUNNING for h in p.holds.values())]
        cut_off = data.draw(st.sampled_from(busy or speakers))
        for _ in range(data.draw(st.integers(2, 5))):
            self.world.advance(data.draw(st.sampled_from([35.0, 70.0, 40.0])))
            self._timers()
            for pilot in self._speakers():
                if pilot is not cut_off:
                    self._exchange(pilot)
                    self._start_all(pilot)

    def agent_syncs(self, data: st.DataObject) -> None:
        """The agent proves deaths; its undertaker may first report what the journals hold."""
        site = data.draw(st.sampled_from(self.sites))
        self._agent(site, undertaker=data.draw(st.booleans()))

    # -- the Hub -----------------------------------------------------------------------------------

    def hub(self, data: st.DataObject) -> None:
        """The Hub is restarted, killed, copied, or replaced by its copy."""
        what = data.draw(st.sampled_from(["restart", "restore", "kill", "backup"]))
        pilots = self._speakers()
        if what == "restart":
            self.rig.restart()
            self._reopened()
        elif what == "kill" and pilots:
            self._kill_hub(data.draw(st.sampled_from(pilots)))
        elif what == "restore" and self.copy is not None:
            self._restore(*self.copy, elsewhere=data.draw(st.booleans()))
        else:
            self.copy = (self.rig.backup(), list(self.jobs))

    def _kill_hub(self, pilot: SimPilot) -> None:
        """The Hub dies before the commit of a sync: nothing of it happened."""
        sent = pilot.in_flight[0] if pilot.in_flight else pilot.build(99, 1)
        before = self.rig.sql("SELECT * FROM job ORDER BY n")
        faults.arm(_discard)
        try:
            self.rig.do(sync.sync, pilot.rig.principal, sent.request)
        except (Discarded, SessionDead):
            pass
        except LookupError:
            pilot.known = False
        else:
            raise AssertionError("it was not killed")
        finally:
            faults.arm(None)
        self.rig.restart()
        self._reopened()
        assert [tuple(r) for r in self.rig.sql("SELECT * FROM job ORDER BY n")] == [
            tuple(r) for r in before
        ]

    def _restore(self, copy: bytes, jobs: list[str], *, elsewhere: bool) -> None:
        """An older copy is put back by hand. Without the mark that lies beside the database, the Hub learns
        that from the pilots, who speak at once, the one that saw most first."""
        self.rig.put_back(copy, elsewhere=elsewhere)
        self._reopened()
        self.world.restored = True
        self.checker.forget()
        there = {r["id"]: r for r in self.rig.sql("SELECT id, phase FROM job")}
        self.jobs = [j for j in jobs if j in there and there[j]["phase"] != "deleted"]
        leases = {
            (r["job"], r["session"], r["epoch"])
            for r in self.rig.sql(
                "SELECT j.id AS job, s.id AS session, j.epoch FROM job j JOIN session s "
                "ON s.n = j.session"
            )
        }
        for pilot in self.world.pilots:
            for hold in pilot.holds.values():
                # A lease that the copy does not know was given after it was made.
                if (hold.job, pilot.rig.id, hold.epoch) not in leases:
                    hold.may_overlap = True
            for sent in pilot.in_flight:
                sent.lost_past = True
        if elsewhere:
            for pilot in sorted(self._speakers(), key=lambda p: p.seen, reverse=True):
                self._exchange(pilot)
