"""What the pilot holds: every grant, from the reply that carried it to the Hub's verdict on its end.

    NEW ──► (FETCHING) ──► WAITING ──► PREPARING ──► HANDED ──► RUNNING ──► ENDED ──► settled
     not       its parents'  in line     claim being    the launcher          its report
     journaled results come              written        has it                waits

Up to PREPARING a grant may go back to the Hub (`returned`) or be dropped. Once its ledger claim is written
its attempt is used up: it is started, or its end is reported. Two rules fence every start:

- a grant is started only within 60 s of *sending* the last answered request that carried or renewed it. A
  pilot that was frozen finds its grants lapsed, and hands them back at its next contact;
- one Job is held once: a grant of a Job that still runs here under another epoch is refused.

No clock, no I/O: methods take what happened and the time (CLOCK_BOOTTIME seconds as `now`, seconds since
1970 as `at`), change the state, and say what is to be done.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from chappe.core import limits
from chappe.core.shapes import Capacity
from chappe.link.journal import End
from chappe.pilot.holding import Holding, Phase
from chappe.pilot.pacing import STALE_S, Estimate, prefetch
from chappe.pilot.placement import Line, Placement, Slot
from chappe.wire.sync import Grant, HeldJob, JobEpoch


class Holdings:
    """All that one Session holds on this node."""

    def __init__(self, placement: Placement) -> None:
        self.placement = placement
        self.estimate = Estimate()
        self._held: dict[str, Holding] = {}
        self._line: Line[Holding] = Line()
        self._returning: dict[str, JobEpoch] = {}
        self._takeover: dict[str, Holding] = {}
        self._reported: set[str] = set()
        self._order = 0
        self._renewed = (
            0,
            0.0,
        )  # all holdings up to this order were renewed by a request sent then
        self._ahead = 0  # holdings that have no slot yet, and what they will take
        self._ahead_cores = 0
        self._ahead_mem_bytes = 0
        self._stalled_at: float | None = None  # since when those that wait have waited in vain
        self._stalled = False

    def __len__(self) -> int:
        return len(self._held)

    def get(self, job: str, epoch: int) -> Holding | None:
        """The holding of this Job, if it is of this epoch."""
        h = self._held.get(job)
        return h if h is not None and h.epoch == epoch else None

    def all(self) -> Collection[Holding]:
        """Everything that is held."""
        return self._held.values()

    def runs(self, job: str, attempt: int) -> bool:
        """Whether this attempt may still write something."""
        h = self._held.get(job)
        return h is not None and h.attempt == attempt and Phase.HANDED <= h.phase <= Phase.RUNNING

    # --- what the Hub says

    def granted(
        self, grants: Iterable[Grant], sent_at: float, at: float
    ) -> tuple[list[Holding], list[End]]:
        """Take new grants of a reply whose request was sent at `sent_at`: those to write to the journal,
        and refusals. Repeated grants are passed over."""
        new: list[Holding] = []
        refusals: list[End] = []
        for grant in grants:
            old = self._held.get(grant.job)
            if old is not None and old.epoch >= grant.epoch:
                continue
            self._order += 1
            h = Holding(grant, sent_at, self._order)
            if old is not None and Phase.PREPARING <= old.phase <= Phase.RUNNING:
                message = f"it still runs here, granted under epoch {old.epoch}"
                refusals.append(h.refusal("replayed", message, at))
                continue
            if not self.placement.fits_ever(h.cores, h.mem_bytes):
                refusals.append(h.refusal("too_large", self._too_large(h), at))
                continue
            if old is not None:
                if old.phase is Phase.WAITING and old.claimed and old.attempt == h.attempt:
                    h.claim()  # the start is ours, and was not made
                self.drop(old)
            self._returning.pop(h.job, None)
            self._held[h.job] = h
            self._count(h, 1)
            if h.takeover_s is not None:
                self._takeover[h.job] = h
            new.append(h)
        return new, refusals

    def journaled(self, new: Iterable[Holding]) -> list[Holding]:
        """These are in the journal and may go on; returned are those whose parents must be asked for."""
        fetch = []
        for h in new:
            if h.phase is not Phase.NEW:
                continue
            if h.needs_parents and not h.parents_file:
                h.phase = Phase.FETCHING
                fetch.append(h)
            else:
                self._wait(h)
        return fetch

    def fetched(self, h: Holding, parents_file: str) -> None:
        """The parents of `h` are known."""
        if h.phase is Phase.FETCHING:
            h.parents_file = parents_file
            self._wait(h)

    def give_back(self, h: Holding) -> None:
        """Return a grant that has no claim."""
        if h.phase < Phase.HANDED and not h.claimed:
            self._returning[h.job] = JobEpoch(h.job, h.epoch)
            self.drop(h)

    def drop(self, h: Holding) -> None:
        """Hold `h` no more, without a report."""
        if h.phase < Phase.PREPARING:
            self._count(h, -1)
        self._leave(h)
        h.phase = Phase.ENDED
        h.spec = b""
        self._takeover.pop(h.job, None)
        if self._held.get(h.job) is h:
            del self._held[h.job]

    def give_back_unstarted(self) -> list[Holding]:
        """Return everything that has no claim and is not being prepared (drain, stale work). What has a
        claim and no process cannot go back: it is given to the caller, to report its end."""
        claimed = []
        for h in list(self._held.values()):
            if h.phase > Phase.WAITING:
                continue
            if h.claimed:
                claimed.append(h)
            else:
                self.give_back(h)
        return claimed

    def disowned(self, job: str, epoch: int) -> Holding | None:
        """The Hub does not know this holding. Without a process it is dropped (and given to the caller,
        for the journal); otherwise it runs on as an orphan."""
        h = self.get(job, epoch)
        if h is None:
            return None
        self._takeover.pop(job, None)
        if h.phase < Phase.PREPARING:
            self.drop(h)
            return h
        if h.phase is Phase.PREPARING:
            h.ending = "unknown"
        h.orphan = True
        return None

    def kill(self, job: str, epoch: int) -> tuple[bool, Holding | None]:
        """The Hub wants this ended: whether the launcher must be told; else the holding whose end is to be
        reported now, if there is one."""
        h = self.get(job, epoch)
        if h is None or h.phase is Phase.ENDED:
            return False, None
        if h.phase >= Phase.PREPARING:
            new, h.ending = not h.ending, h.ending or "cancelled"
            return new and h.phase >= Phase.HANDED, None
        if h.claimed:
            return False, h
        self.give_back(h)
        return False, None

    # --- what a request says

    def last_order(self) -> int:
        """Names all that is held now, for `renewed`."""
        return self._order

    def held(self) -> list[HeldJob]:
        """All that is held, except what the same request reports as over, and orphans."""
        reported = self._reported
        return [h.wire for h in self._held.values() if h.job not in reported and not h.orphan]

    def reporting(self, jobs: Iterable[str]) -> None:
        """The next request reports the ends of these; they are not in `held` any more."""
        self._reported = {job for job in jobs if job in self._held}

    @property
    def returns(self) -> int:
        """How many grants wait to be handed back."""
        return len(self._returning)

    def returning(self) -> list[JobEpoch]:
        """What the next request hands back."""
        return list(self._returning.values())

    def returned(self, given: Iterable[JobEpoch]) -> None:
        """The request that handed these back was answered."""
        for back in given:
            if self._returning.get(back.job) == back:
                del self._returning[back.job]

    def renewed(self, order: int, sent_at: float) -> dict[tuple[str, int], float]:
        """A request sent at `sent_at` was answered, and all up to `order` stood in it: new takeover
        deadlines of what the launcher has. Call it after `disowned`."""
        if sent_at >= self._renewed[1]:
            self._renewed = (order, sent_at)
        return {
            h.key: self.contact(h) + h.takeover_s
            for h in self._takeover.values()
            if h.takeover_s is not None and Phase.HANDED <= h.phase <= Phase.RUNNING
        }

    def contact(self, h: Holding) -> float:
        """When the last answered request that carried or renewed `h` was sent."""
        order, sent_at = self._renewed
        return max(h.sent_at, sent_at) if h.order <= order and not h.orphan else h.sent_at

    def start_by(self, h: Holding) -> float:
        """Until when `h` may be started."""
        return self.contact(h) + limits.START_WITHIN_S

    def capacity(self, left_s: float | None) -> Capacity:
        """What the Hub may grant: what is free and not spoken for, and two seconds of work beyond."""
        p = self.placement
        each = self._ahead_cores / self._ahead if self._ahead else 1.0
        wanted = 0 if self._stalled else prefetch(self._expected_s(), p.node_cores, each)
        return Capacity(
            cores=max(0, p.free_cores - self._ahead_cores),
            mem_bytes=max(0, p.free_mem_bytes - self._ahead_mem_bytes),
            node_cores=p.node_cores,
            node_mem_bytes=p.node_mem_bytes,
            prefetch=max(0, min(wanted, limits.HELD_PER_SESSION - len(self._held)) - self._ahead),
            left_s=left_s,
        )

    # --- starting

    def pick(self, now: float, most: int) -> list[Holding]:
        """Take those that can start now, in order, with their slots; lapsed grants go back."""
        picked: list[Holding] = []
        while len(picked) < most and (h := self._line.peek()) is not None:
            if h.phase is not Phase.WAITING:
                self._line.pop()  # dropped or returned since it joined
                continue
            if now > self.start_by(h):
                if h.claimed:
                    break  # it cannot go back; the next contact renews it
                self._line.pop()
                self.give_back(h)
                continue
            slot = self._room(h)
            if slot is None:
                self._stalled_at = now if self._stalled_at is None else self._stalled_at
                break
            self._line.pop()
            h.phase, h.slot = Phase.PREPARING, slot
            self._count(h, -1)
            picked.append(h)
        if picked or not self._line:
            self._stalled_at, self._stalled = None, False
        return picked

    def stale_at(self) -> float | None:
        """When those that wait will have waited too long; None when nobody waits in vain."""
        return None if self._stalled_at is None else self._stalled_at + STALE_S

    def return_stale(self, now: float) -> bool:
        """Hand back what could not begin for so long: another pilot may have room. Whether there was any."""
        if self._stalled_at is None or now < self._stalled_at + STALE_S:
            return False
        self._stalled_at, self._stalled = None, True
        self.give_back_unstarted()
        return bool(self._returning)

    def again(self, held: Sequence[Holding]) -> None:
        """These were picked and not started: they wait again, in this order, before their equals."""
        for h in reversed(held):
            self._leave(h)
            h.phase = Phase.WAITING
            self._count(h, 1)
            self._line.push_front(h)

    def started(self, job: str, epoch: int, at: float) -> Holding | None:
        """A process exists: its holding, or None when that was known, or is not ours."""
        h = self.get(job, epoch)
        if h is None or h.phase >= Phase.RUNNING:
            return None
        h.phase, h.started_at = Phase.RUNNING, at
        return h

    # --- ends

    def over(self, h: Holding, end: End) -> End:
        """`h` has ended, or will not begin; it is held until `settled`."""
        if h.phase < Phase.PREPARING:
            self._count(h, -1)
        self._leave(h)
        if h.phase is Phase.RUNNING and end.outcome.usage is not None:
            self.estimate.ended(end.outcome.usage.wall_s)
        h.phase = Phase.ENDED
        h.spec = b""
        h.claim()
        self._takeover.pop(h.job, None)
        self._stalled = False
        return end

    def settled(self, job: str, epoch: int) -> None:
        """The Hub gave its verdict on the end: it is held no more."""
        h = self.get(job, epoch)
        if h is not None and h.phase is Phase.ENDED:
            del self._held[job]
            self._reported.discard(job)

    # --- after a restart

    def adopt(
        self,
        h: Holding,
        phase: Phase,
        started_at: float | None = None,
        cpus: Collection[int] = (),
    ) -> None:
        """Take over a holding of the head before us that has begun; what runs takes its room."""
        self._order += 1
        h.order = self._order
        h.claim()
        if phase is Phase.RUNNING:
            h.slot = self.placement.occupy(h.cores, h.mem_bytes, cpus)
        h.phase, h.started_at = phase, started_at
        self._held[h.job] = h
        if h.takeover_s is not None:
            self._takeover[h.job] = h

    # --- inside

    def _expected_s(self) -> float | None:
        if self.estimate.known_s is not None:
            return self.estimate.known_s
        first = self._line.peek()
        return None if first is None else first.estimate_s

    def _room(self, h: Holding) -> Slot | None:
        slot = self.placement.take(h.cores, h.mem_bytes)
        if slot is not None:
            return slot
        expected = self.estimate.known_s
        if expected is not None and h.estimate_s is not None:
            expected = max(expected, h.estimate_s)
        return self.placement.share(h.cores, h.mem_bytes, expected)

    def _wait(self, h: Holding) -> None:
        h.phase = Phase.WAITING
        self._line.push(h)

    def _too_large(self, h: Holding) -> str:
        p = self.placement
        return (
            f"it needs {h.cores} cores and {h.mem_bytes} bytes of memory, "
            f"and this node has {p.node_cores} and {p.node_mem_bytes}"
        )

    def _leave(self, h: Holding) -> None:
        if h.slot is not None:
            self.placement.leave(h.slot)
            h.slot = None

    def _count(self, h: Holding, by: int) -> None:
        self._ahead += by
        self._ahead_cores += by * h.cores
        self._ahead_mem_bytes += by * h.mem_bytes
