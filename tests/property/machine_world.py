"""The world outside the Hub: allocations, pilots, and what truly runs.

A `SimPilot` follows the protocol as a real one does, and keeps its own truth. `World.begin` is where a
Job's process would be started; it is there that *never twice at once* (I9) is judged, by what runs, not by
what anybody believes. There are two exceptions, and no others, that the promise itself makes:

- an operator ended the Session with `may_run_twice`: what its pilot holds or is still granted by a reply
  that is under way may overlap with later runs, until the pilot hears that it is over;
- an older copy of the database was put back: a lease that was given after the copy was made is unknown to
  the Hub, so what is run under it may overlap. A lease that the copy knows may not.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

import msgspec

from chappe.core import limits
from chappe.core.jobs import JobSpec
from chappe.core.leases import STARTED_BEFORE, Outcome, Reason
from chappe.core.shapes import Capacity
from chappe.testing.clock import FakeClock
from chappe.testing.store import PilotRig, cores
from chappe.wire.sync import HeldJob, JobEpoch, Report, SyncReply, SyncRequest

NODE_CORES = 4


class Phase(Enum):
    """What a pilot has made of a grant."""

    GRANTED = auto()
    RUNNING = auto()
    ENDED = auto()


class Brief:
    """Shown in a line, also by Hypothesis, which would print all that a dataclass holds."""

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))


@dataclass(eq=False, repr=False)
class Hold(Brief):
    """A grant in a pilot's hands. `contact`: when the last answered request that covered it was sent."""

    pilot: SimPilot
    job: str
    epoch: int
    attempt: int
    spec: JobSpec
    contact: float
    phase: Phase = Phase.GRANTED
    started_at: float | None = None
    orphan: bool = False
    may_overlap: bool = False

    def __repr__(self) -> str:
        return f"{self.phase.name} {self.job[-4:]} epoch {self.epoch} at {self.pilot.rig.id[-4:]}"


@dataclass(eq=False, repr=False)
class Sent(Brief):
    """A request on its way, and what the Hub answered when the answer is on its way too."""

    request: SyncRequest
    sent_at: float
    reply: SyncReply | None = None
    delivered: bool = False
    lost_past: bool = False

    def __repr__(self) -> str:
        r = self.request
        held = [(h.job[-4:], h.epoch, h.started) for h in r.held]
        reports = [(x.no, x.kind, x.job[-4:], x.epoch) for x in r.reports]
        return f"request {r.request_no} (answered {r.answered}) {held=} {reports=}"


@dataclass(eq=False, repr=False)
class SimPilot(Brief):
    """A pilot that follows the protocol. `alive`: its allocation exists; `over`: it heard that it is dead."""

    rig: PilotRig
    world: World
    ends_at: float | None = None
    alive: bool = True
    over: bool = False
    known: bool = True
    draining: bool = False
    may_overlap: bool = False
    answered: int = 0
    seen: tuple[int, int] = (0, 0)
    holds: dict[str, Hold] = field(default_factory=dict)
    returning: list[JobEpoch] = field(default_factory=list)
    outbox: list[Report] = field(default_factory=list)
    in_flight: list[Sent] = field(default_factory=list)
    archive: list[Sent] = field(default_factory=list)
    past: list[tuple[str, int, int]] = field(default_factory=list)

    def __repr__(self) -> str:
        how = [w for w in ("alive", "over", "known", "draining") if getattr(self, w)]
        return f"pilot {self.rig.id[-4:]} ({', '.join(how)})"

    @property
    def speaks(self) -> bool:
        """Whether it may still talk to the Hub."""
        return self.alive and self.known and not self.over

    # -- what it says ------------------------------------------------------------------------------

    def build(self, reports: int, prefetch: int) -> Sent:
        """The next request, with at most so many reports."""
        now = self.world.clock()
        said = self.outbox[:reports]
        ends = {(r.job, r.epoch) for r in said if r.kind != "start"}
        request = self.rig.request(
            answered=self.answered,
            seen=self.seen,
            held=[
                HeldJob(h.job, h.epoch, h.started_at is not None)
                for h in self.holds.values()
                if (h.job, h.epoch) not in ends
            ],
            returned=list(self.returning),
            reports=said,
            capacity=None if self.draining else self._capacity(prefetch),
            hard_end_in_s=None if self.ends_at is None else max(self.ends_at - now, 0.0),
        )
        sent = Sent(request, now)
        self.in_flight.append(sent)
        self.archive.append(sent)
        return sent

    def _capacity(self, prefetch: int) -> Capacity:
        used = sum(
            h.spec.resources.cores for h in self.holds.values() if h.phase is not Phase.ENDED
        )
        free = max(NODE_CORES - used, 0)
        return msgspec.structs.replace(cores(NODE_CORES), cores=free, prefetch=prefetch)

    def say(self, hold: Hold, kind: str, outcome: Outcome | None = None, reason: str = "") -> None:
        """Put a report into the outbox."""
        self.rig.report_no += 1
        self.outbox.append(
            Report(
                self.rig.report_no,
                hold.job,
                hold.epoch,
                hold.attempt,
                kind,
                self.world.clock(),
                hold.started_at if kind == "end" else None,
                outcome,
                reason,
            )
        )

    # -- what it hears -----------------------------------------------------------------------------

    def read(self, sent: Sent, reply: SyncReply) -> None:
        """Take an answer in. One to an older request than was answered already comes too late."""
        if reply.request_no <= self.answered or not self.alive:
            return
        self.answered = reply.request_no
        self.seen = max(self.seen, (reply.incarnation, reply.commit_no))
        self.in_flight = [s for s in self.in_flight if s.request.request_no > self.answered]
        self.draining = self.draining or reply.drain
        self.returning = [r for r in self.returning if r not in sent.request.returned]
        unknown = {(u.job, u.epoch) for u in reply.unknown}
        for item in sent.request.held:
            hold = self.holds.get(item.job)
            if hold is None or hold.epoch != item.epoch:
                continue
            if (hold.job, hold.epoch) not in unknown:
                hold.contact = max(hold.contact, sent.sent_at)
            elif hold.phase is Phase.GRANTED:
                self._drop(hold)
            else:
                hold.orphan = True
        self._settle(reply)
        for kill in reply.kill:
            hold = self.holds.get(kill.job)
            if hold is not None and hold.epoch == kill.epoch:
                self._kill(hold)
        for grant in reply.grants:
            assert bytes(grant.spec) == self.world.specs[grant.job], "the spec is not what was sent"
            old = self.holds.get(grant.job)
            if old is not None and old.phase is Phase.GRANTED:
                self._drop(old)  # taken over unstarted, and given back to this very pilot
            elif old is not None:
                # Its end is not yet reported, or it runs under a lease that the Hub has forgotten.
                assert old.phase is Phase.ENDED or old.may_overlap, (
                    f"{old} is granted once more (I9)"
                )
                self.returning.append(JobEpoch(grant.job, grant.epoch))
                continue
            spec = msgspec.json.decode(grant.spec, type=JobSpec)
            hold = Hold(self, grant.job, grant.epoch, grant.attempt, spec, sent.sent_at)
            hold.may_overlap = self.may_overlap or sent.lost_past
            self.holds[grant.job] = hold
        if self.draining:
            self.give_back([h for h in self.holds.values() if h.phase is Phase.GRANTED])

    def _settle(self, reply: SyncReply) -> None:
        """Every verdict ends the report's life, and that of what it says is over."""
        verdicts = {v.no for v in reply.verdicts}
        for report in [r for r in self.outbox if r.no in verdicts]:
            self.outbox.remove(report)
            hold = self.holds.get(report.job)
            if hold is not None and hold.epoch == report.epoch and report.kind != "start":
                self._drop(hold)

    def _drop(self, hold: Hold) -> None:
        self.past.append((hold.job, hold.epoch, hold.attempt))
        del self.holds[hold.job]

    def give_back(self, holds: list[Hold]) -> None:
        """Return grants that were not started."""
        for hold in holds:
            self.returning.append(JobEpoch(hold.job, hold.epoch))
            self._drop(hold)

    def hears_that_it_is_dead(self) -> None:
        """409: kill what is held, and end."""
        self.over = True
        for hold in list(self.holds.values()):
            self.world.end(hold)
            self._drop(hold)

    # -- what it does ------------------------------------------------------------------------------

    def start(self, hold: Hold) -> None:
        """Start a grant, if its time is not over and its attempt was never claimed."""
        assert hold.phase is Phase.GRANTED
        if self.world.clock() > hold.contact + limits.START_WITHIN_S:
            self.give_back([hold])
            return
        claim = (self.rig.site.id, hold.job, hold.attempt)
        if claim in self.world.claims:
            assert self.world.restored, f"{hold}: attempt {hold.attempt} was granted twice"
            self.refuse(hold, STARTED_BEFORE)
            return
        self.world.claims.add(claim)
        self.world.begin(hold)
        hold.phase, hold.started_at = Phase.RUNNING, self.world.clock()
        self.say(hold, "start")

    def refuse(self, hold: Hold, reason: str = "untrusted_key") -> None:
        """Refuse a grant."""
        hold.phase = Phase.ENDED
        self.say(hold, "refused", reason=reason)

    def finish(self, hold: Hold, outcome: Outcome, *, quiet: bool = False) -> None:
        """A run ends. `quiet`: its start was not reported yet, and now never is."""
        assert hold.phase is Phase.RUNNING
        self.world.end(hold)
        hold.phase = Phase.ENDED
        if quiet:
            self.outbox = [
                r
                for r in self.outbox
                if (r.job, r.epoch, r.kind) != (hold.job, hold.epoch, "start")
            ]
        self.say(hold, "end", outcome)

    def _kill(self, hold: Hold) -> None:
        if hold.phase is Phase.GRANTED:
            self.give_back([hold])
        elif hold.phase is Phase.RUNNING:
            self.finish(hold, Outcome(Reason.CANCELLED))

    def keep_deadlines(self) -> None:
        """Kill what was without contact for its `takeover_s`; the launcher does, whatever the pilot does."""
        now = self.world.clock()
        for hold in list(self.holds.values()):
            patience = hold.spec.takeover_s
            if hold.phase is Phase.RUNNING and patience and now >= hold.contact + patience:
                self.finish(hold, Outcome(Reason.TAKEOVER))

    def crash(self) -> None:
        """The pilot dies and is restarted from its journal: only what was in flight is forgotten."""
        self.in_flight.clear()

    def die(self) -> None:
        """The allocation ends: nothing of it runs any more. The journal stays on the Site's disk."""
        self.alive = False
        self.in_flight.clear()
        for hold in self.holds.values():
            self.world.end(hold)


class World:
    """All pilots, what runs, and what was claimed in the Sites' ledgers."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.pilots: list[SimPilot] = []
        self.specs: dict[str, bytes] = {}
        self.claims: set[tuple[str, str, int]] = set()
        self.runs: dict[str, list[Hold]] = {}
        self.restored = False

    def __repr__(self) -> str:
        return "; ".join(f"{p}: {list(p.holds.values())}, {p.in_flight}" for p in self.pilots)

    def begin(self, hold: Hold) -> None:
        """A process of the Job begins. This is where I9 is judged."""
        runs = self.runs.setdefault(hold.job, [])
        others = [run for run in runs if not run.may_overlap]
        assert hold.may_overlap or not others, (
            f"{hold.job} runs twice at once (I9): epoch {hold.epoch} at {hold.pilot.rig.id} beside "
            + ", ".join(f"epoch {run.epoch} at {run.pilot.rig.id}" for run in others)
        )
        runs.append(hold)

    def end(self, hold: Hold) -> None:
        """The process is gone. May be repeated."""
        runs = self.runs.get(hold.job, [])
        if hold in runs:
            runs.remove(hold)

    def advance(self, seconds: float) -> None:
        """Let time pass, and end what it ends. The Hub does nothing meanwhile."""
        self.clock.advance(seconds)
        for pilot in self.pilots:
            if pilot.alive and pilot.ends_at is not None and self.clock() >= pilot.ends_at:
                pilot.die()
            elif pilot.alive:
                pilot.keep_deadlines()
