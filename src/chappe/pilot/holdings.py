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

from collections.abc import Collection, Iterable, Mapping, Sequence
from math import inf

from chappe.core import limits
from chappe.core.shapes import Capacity, NodeRoom
from chappe.link.journal import End
from chappe.pilot.holding import Holding, Phase
from chappe.pilot.nodes import Need
from chappe.pilot.pacing import STALE_S, Estimate, prefetch
from chappe.pilot.placement import Line, Place, Placement, Slot
from chappe.wire.sync import Grant, HeldJob, JobEpoch

KEEP_S = 300.0
"""So long room is gathered for a Job when nobody can say how long it will take."""

KEEP_NONE_S = 30.0
"""After that, so long other pilots have the chance to take it."""

_BEHIND_MOST = 256
_NO_ROOM = (NodeRoom(1, 0, 0),)


class Holdings:
    """All that one Session holds on this node."""

    def __init__(self, placement: Placement, named: Mapping[str, int] | None = None) -> None:
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
        self._kept: Holding | None = None  # the first in line, for which room is gathered
        self._kept_at = 0.0
        self._keep_none_until = 0.0
        self._named = dict(named or {})

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
            h = self._classed(Holding(grant, sent_at, self._order))
            if old is not None and Phase.PREPARING <= old.phase <= Phase.RUNNING:
                message = f"it still runs here, granted under epoch {old.epoch}"
                refusals.append(h.refusal("replayed", message, at))
                continue
            if not self.placement.fits_ever(h.need):
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
        self._let_go(h)
        h.phase = Phase.ENDED
        h.spec = b""
        self._takeover.pop(h.job, None)
        if self._held.get(h.job) is h:
            del self._held[h.job]

    def give_back_unstarted(self, spare: Holding | None = None) -> list[Holding]:
        """Return everything that has no claim and is not being prepared (drain, stale work), except
        `spare`. What has a claim and no process cannot go back: the caller gets it, to report its end."""
        claimed = []
        for h in list(self._held.values()):
            if h.phase > Phase.WAITING or h is spare:
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
    def backlog(self) -> bool:
        """Whether more is at hand than can run now."""
        return bool(self._line)

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

    def capacity(self, left_s: float | None, now: float = 0.0) -> Capacity:
        """What the Hub may grant: what is free and not spoken for, and one second of work beyond. While
        room is gathered for a large Job, what of it others may use meanwhile."""
        p = self.placement
        ahead, cores, mem = self._ahead, self._ahead_cores, self._ahead_mem_bytes
        if self._kept is not None:
            need = self._kept.need
            ahead -= 1
            cores -= need.cores * need.nodes
            mem -= need.mem_bytes * need.nodes
        each = cores / ahead if ahead else 1.0
        unhurried = self._stalled or self._kept is not None
        wanted = 0 if unhurried else prefetch(self._expected_s(), p.node_cores * len(p.nodes), each)
        plain = self._kept is None and len(p.nodes) == 1 and not p.node_gpus and p.urgent is None
        return Capacity(
            cores=max(0, p.free_cores - cores),
            mem_bytes=max(0, p.free_mem_bytes - mem),
            node_cores=p.node_cores,
            node_mem_bytes=p.node_mem_bytes,
            prefetch=max(0, min(wanted, limits.HELD_PER_SESSION - len(self._held)) - ahead),
            gpus=p.node_gpus,
            left_s=left_s,
            nodes=len(p.nodes),
            rooms=() if plain else p.rooms(now, cores, mem) or _NO_ROOM,
            reserve=self._kept is None and now >= self._keep_none_until,
            named=self._named,
            tags=p.tags,
            urgent=None if p.urgent is None else p.urgent.priority,
            urgent_cores=0 if p.urgent is None else min(p.urgent.cores, p.node_cores - 1),
        )

    # --- starting

    def pick(self, now: float, most: int, left_s: float | None = None) -> list[Holding]:
        """Take those that can start now, in order, with their slots; lapsed grants go back, and so does
        what cannot end in the `left_s` that the allocation has."""
        picked: list[Holding] = []
        while len(picked) < most and (h := self._line.peek()) is not None:
            if h.phase is not Phase.WAITING:
                self._line.pop()  # dropped or returned since it joined
                continue
            if self._lapsed(h, now, left_s):
                if h.claimed:
                    break  # it cannot go back; the next contact renews it
                self._line.pop()
                self.give_back(h)
                continue
            slot = self._room(h, now, first=True)
            if slot is None:
                self._stalled_at = now if self._stalled_at is None else self._stalled_at
                self._gather(h, now)
                if self._kept is not None:
                    picked += self._pick_behind(now, most - len(picked), left_s)
                break
            self._line.pop()
            picked.append(self._begin(h, slot))
        if picked or not self._line:
            self._stalled_at, self._stalled = None, False
        return picked

    def _pick_behind(self, now: float, most: int, left_s: float | None) -> list[Holding]:
        """Those behind the first that do not keep it waiting."""
        picked: list[Holding] = []
        in_vain: set[tuple[Need, float | None]] = set()
        for h in self._line.behind(_BEHIND_MOST):
            kind = (h.need, h.time_s)
            if len(picked) == most:
                break
            if h.phase is not Phase.WAITING or kind in in_vain or self._lapsed(h, now, left_s):
                continue
            slot = self._room(h, now, first=False)
            if slot is None:
                in_vain.add(kind)
                continue
            self._line.remove(h)
            picked.append(self._begin(h, slot))
        return picked

    def _begin(self, h: Holding, slot: Slot) -> Holding:
        self._let_go(h)
        h.phase, h.slot = Phase.PREPARING, slot
        self._count(h, -1)
        return h

    def _lapsed(self, h: Holding, now: float, left_s: float | None) -> bool:
        if now > self.start_by(h):
            return True
        return left_s is not None and h.least_s > left_s and not h.claimed

    def _gather(self, h: Holding, now: float) -> None:
        """Gather room for the first in line. With nothing free there is nothing to gather: then the
        order is strict, and it may find room with another pilot."""
        if self._kept is not h:
            if self._kept is not None:
                self._let_go(self._kept)
            if self.placement.begun(h.need) and now >= self._keep_none_until:
                self.placement.reserve(h.need, now)
                self._kept, self._kept_at = h, now
        elif self.placement.reservation is None:
            self.placement.reserve(h.need, now)  # a node of it was lost

    def _let_go(self, h: Holding) -> None:
        if self._kept is h:
            self._kept = None
            self.placement.unreserve()

    def stale_at(self) -> float | None:
        """When those that wait will have waited too long; None when nobody waits in vain."""
        times = []
        if self._stalled_at is not None:
            times.append(self._stalled_at + STALE_S)
        if self._kept is not None:
            times.append(self._kept_at + KEEP_S)
        return min(times, default=None)

    def return_stale(self, now: float) -> bool:
        """Hand back what could not begin for so long: another pilot may have room. Whether there was any.

        The Job for which room is gathered stays for longer, and for as long as its time is known."""
        if self._kept is not None and now >= self._kept_at + KEEP_S:
            kept, self._kept_at = self._kept, now
            reservation = self.placement.reservation
            if reservation is None or reservation.begins_at(now) == inf:
                self._keep_none_until = now + KEEP_NONE_S
                self.give_back(kept)
                return True
        if self._stalled_at is None or now < self._stalled_at + STALE_S:
            return False
        self._stalled_at, self._stalled = None, True
        before = len(self._returning)
        self.give_back_unstarted(self._kept)
        return len(self._returning) > before

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
        self._let_go(h)
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

    def take_room(self, h: Holding, places: Sequence[Place], began_at: float | None = None) -> None:
        """Count the room of what was found running at `places` since `began_at` (CLOCK_BOOTTIME)."""
        ends_at = limit_at = inf
        if began_at is not None:
            ends_at = began_at + (inf if h.time_s is None else h.time_s)
            limit_at = began_at + h.limit_s
        h.slot = self.placement.occupy(h.need, places, ends_at, limit_at)

    def adopt(
        self,
        h: Holding,
        phase: Phase,
        started_at: float | None = None,
        places: Sequence[Place] = (),
        began_at: float | None = None,
    ) -> None:
        """Take over a holding of the head before us that has begun; what runs takes its room, at `places`
        as far as they are known, since `began_at` (CLOCK_BOOTTIME)."""
        self._order += 1
        h.order = self._order
        self._classed(h)
        h.claim()
        if phase is Phase.RUNNING:
            self.take_room(h, places, began_at)
        h.phase, h.started_at = phase, started_at
        self._held[h.job] = h
        if h.takeover_s is not None:
            self._takeover[h.job] = h

    # --- inside

    def _classed(self, h: Holding) -> Holding:
        """The same, urgent if its priority says so."""
        urgent = self.placement.urgent
        if urgent is not None and h.priority >= urgent.priority:
            h.need = h.need._replace(urgent=True)
        return h

    def _expected_s(self) -> float | None:
        if self.estimate.known_s is not None:
            return self.estimate.known_s
        first = self._line.peek()
        return None if first is None else first.estimate_s

    def _room(self, h: Holding, now: float, *, first: bool) -> Slot | None:
        time_s = inf if h.time_s is None else h.time_s
        slot = self.placement.take(h.need, now, time_s, h.limit_s, first=first)
        if slot is not None:
            return slot
        expected = self.estimate.known_s
        if expected is not None and h.estimate_s is not None:
            expected = max(expected, h.estimate_s)
        return self.placement.share(h.need, expected, h.limit_s)

    def _wait(self, h: Holding) -> None:
        h.phase = Phase.WAITING
        self._line.push(h)

    def _too_large(self, h: Holding) -> str:
        p = self.placement
        return (
            f"it needs {h.need.nodes} nodes of {h.need.cores} cores, {h.need.gpus / 100:g} GPUs and "
            f"{h.need.mem_bytes} bytes of memory, and there are {len(p.nodes)} of {p.node_cores}, "
            f"{p.node_gpus} and {p.node_mem_bytes}"
        )

    def _leave(self, h: Holding) -> None:
        if h.slot is not None:
            self.placement.leave(h.slot)
            h.slot = None

    def _count(self, h: Holding, by: int) -> None:
        self._ahead += by
        self._ahead_cores += by * h.need.cores * h.need.nodes
        self._ahead_mem_bytes += by * h.need.mem_bytes * h.need.nodes
