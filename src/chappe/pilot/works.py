"""Between the Hub's grants and the launcher's processes: journal, prepare, hand over, hear, report.

One batch at a time goes through the disk thread: what arrived, what ended, what the Hub has settled, and as
many starts as there is room for. While it is there, more comes in from both sides and makes the next batch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence

from structlog.types import FilteringBoundLogger

from chappe.core.leases import Reason
from chappe.link.cleanup import Cleanup
from chappe.link.clock import boottime, now
from chappe.link.journal import End
from chappe.pilot.acks import Acks
from chappe.pilot.aftermath import After, Judged
from chappe.pilot.crew import Crew
from chappe.pilot.desk import Arrival, Desk, Done, Work
from chappe.pilot.ends import doubtful, end_of, of_allocation, of_cancelled
from chappe.pilot.fetching import Fetching
from chappe.pilot.holding import Holding, Phase
from chappe.pilot.holdings import Holdings
from chappe.pilot.lanes import Lanes
from chappe.pilot.launch_wire import Ended, Events, Key, Started, Task
from chappe.pilot.launch_wire import Refused as NotStarted
from chappe.pilot.lifetime import Lifetime
from chappe.pilot.outbox import Outbox, Start
from chappe.pilot.outcomes import Failed, Order, Outcome, Postponed, Prepared, Refused
from chappe.pilot.parents import Disk, Parents
from chappe.pilot.uploads import Uploads

_BATCH = 256
_PAUSE_S = 5.0
_SETTLED_MOST = 1_000
_GATHER_S = 0.02
_SETTLED_WAIT_S = 1.0
_NOT_BEGUN = "it had not begun"
_DOUBT_S = 1.0
"""So long the end of ranks on several nodes waits for word that one of the nodes is lost."""


class Works:
    """Starts what is held and takes in how it ended. `due` is called when the Hub should hear something,
    `alarm` when a time may have changed at which something is due."""

    def __init__(
        self,
        *,
        holdings: Holdings,
        outbox: Outbox,
        lifetime: Lifetime,
        desk: Desk,
        keeper: Crew,
        uploads: Uploads,
        parents: Parents,
        disk: Disk,
        log: FilteringBoundLogger,
        due: Callable[[], None],
        alarm: Callable[[], None],
    ) -> None:
        self._holdings = holdings
        self._outbox = outbox
        self._lifetime = lifetime
        self._desk = desk
        self._keeper = keeper
        self._uploads = uploads
        self._disk = disk
        self._log = log
        self._due = due
        self._alarm = alarm
        self._todo = asyncio.Event()
        self._arrivals: list[Arrival] = []
        self._unwritten: dict[str, End] = {}
        self._judging: dict[Key, Ended] = {}
        self._doubted: set[Key] = set()
        self._unjudged: list[tuple[Holding, Ended, After]] = []
        self._going_on: list[Holding] = []
        self._cleanups: list[tuple[Key, Cleanup]] = []
        self._cleaning = 0
        self._settled: list[tuple[str, int]] = []
        self._forget: list[str] = []
        self._acks = Acks(keeper.ack)
        self._worked_at = 0.0
        self._later: asyncio.TimerHandle | None = None
        self._fetching = Fetching(holdings, parents, over=self.over, ready=self._todo.set, due=due)
        self._stale_at: float | None = None
        self._paused_until = 0.0
        self._lanes = Lanes(holdings, keeper)
        self.request_no = 0
        self.contact_made = False
        """Nothing starts before the Hub has answered this process once: what its predecessor held may
        have been taken away meanwhile."""

    @property
    def paused(self) -> bool:
        """Whether work would be of no use now: the Site's disk is full, or there is no launcher."""
        return boottime() < self._paused_until or not self._keeper.up

    @property
    def idle(self) -> bool:
        """Whether everything that ended is written and on its way."""
        return not (
            self._unwritten
            or len(self._uploads)
            or self._judging
            or self._cleaning
            or self._doubted
        )

    def todo(self) -> None:
        """Something may have become possible."""
        self._todo.set()

    def wake(self) -> None:
        """There is a launcher again, or a pause is over: start, and ask for more."""
        self._todo.set()
        self._due()

    async def run(self) -> None:
        """Work off batches for ever."""
        try:
            while True:
                await self._todo.wait()
                self._todo.clear()
                work = self._gather()
                if work is not None:
                    self._finish(work, await self._disk(self._desk.work, work))
        finally:
            self._fetching.cancel()
            self._uploads.cancel()
            self._lanes.cancel()
            self._acks.cancel()
            if self._later is not None:
                self._later.cancel()

    # --- from the Hub

    def arrive(self, arrival: Arrival) -> None:
        """Grants came."""
        self._arrivals.append(arrival)
        self._todo.set()

    def reported(self, end: End) -> None:
        """The Hub has its verdict on an end. What its Job is not to leave is removed before it is forgotten,
        so that a head after us does it if we cannot."""
        if end.cleanup is None:
            self.settled(end.job, end.epoch)
            return
        self._cleaning += 1
        self._cleanups.append(((end.job, end.epoch), end.cleanup))
        self._todo.set()

    def settled(self, job: str, epoch: int) -> None:
        """The Hub has its verdict on an end, or does not want the Job back: forget it. Its launcher keeps the
        end until that is written: a head after us must not take it for one that never began."""
        self._holdings.settled(job, epoch)
        self._settled.append((job, epoch))
        end = self._unwritten.get(job)
        if end is not None and end.epoch == epoch:
            del self._unwritten[job]
        self._todo.set()

    def resume(self, done: Done) -> None:
        """What the head before us held and did not start may wait again."""
        self._admit(done)
        self._todo.set()

    # --- from the launcher

    def hear(self, events: Events) -> None:
        """What happened to processes."""
        at = boottime()
        if events.refused:
            self._not_started(events.refused)
        for started in events.started:
            self._begun(started, at)
        for ended in events.ended:
            self.ended(ended, at)
        self._todo.set()
        if self._outbox:
            self._due()
        if self._holdings.placement.shared:
            self._lanes.watch()

    def ended(self, ended: Ended, at: float) -> None:
        """A run is over; `at` is now."""
        h = self._holdings.get(ended.job, ended.epoch)
        if h is None or h.phase is Phase.ENDED:
            self._keeper.ack([ended.key])
            return
        if h.slot is not None:
            h.slot.turned_at = at
        if self._lifetime.termed:
            ended = of_allocation(ended)
        if doubtful(h, ended) and ended.key not in self._doubted:
            # A rank's end may be heard of before that of its node, or a Job's before that of the allocation.
            self._doubted.add(ended.key)
            asyncio.get_running_loop().call_later(_DOUBT_S, self._settle_doubt, ended)
        elif h.after is None:
            self._acks.keep(ended.key)
            self.over(h, end_of(h, ended))
        elif ended.key not in self._judging:
            self._judging[ended.key] = ended
            self._unjudged.append((h, ended, h.after))
            self._todo.set()

    def _settle_doubt(self, ended: Ended) -> None:
        self.ended(ended, boottime())
        self._doubted.discard(ended.key)

    def judged(self, key: Key) -> bool:
        """Whether its end is known and being looked at."""
        return key in self._judging

    def lost(self, cause: str) -> None:
        """The launcher died, and nothing of what it had started is left."""
        at = now()
        own = self._holdings.placement.nodes[0].name
        lost = [
            h
            for h in self._holdings.all()
            if Phase.HANDED <= h.phase <= Phase.RUNNING
            and h.key not in self._judging
            and self._keeper.where(h.key) == own
        ]
        self._acks.drop(lambda key: self._keeper.where(key) == own)
        for h in lost:
            self.over(h, h.end(Reason.LAUNCHER_LOST, at, f"the launcher was lost: {cause}"))
        self._log.error("jobs.lost", jobs=len(lost), cause=cause)
        self._due()

    # --- ends

    def over(self, h: Holding, end: End) -> None:
        """`h` has ended, or will not begin."""
        if h.parents_file:
            self._forget.append(h.job)
        if self._lifetime.cancelled:
            end = of_cancelled(end)
        self.report(self._holdings.over(h, end))

    def report(self, end: End) -> None:
        """Write an end to the journal, and tell the Hub; its result first, if it has one."""
        self._unwritten[end.job] = end
        if end.result:
            self._uploads.add(end)
        else:
            self._outbox.add_end(end)
        self._todo.set()

    def kill(self, keys: Iterable[Key], grace_s: float) -> None:
        """The Hub cancelled these."""
        running = []
        for job, epoch in keys:
            tell, h = self._holdings.kill(job, epoch)
            if tell:
                running.append((job, epoch))
            elif h is not None:
                self.over(h, h.end(Reason.CANCELLED, now()))
        if running:
            self._keeper.kill(running, "cancelled", grace_s)
        self._due()

    def drain(self) -> None:
        """Hand back what has not begun."""
        going_on, self._going_on = self._going_on, []
        for h in [*self._holdings.give_back_unstarted(), *going_on]:
            self.over(h, h.end(Reason.ALLOCATION_END, now(), _NOT_BEGUN))
        self._log.info("drain", held=len(self._holdings))
        self._due()

    def end_running(self, grace_s: float) -> None:
        """The allocation is near its end: end what runs."""
        keys = []
        for h in self._holdings.all():
            if Phase.PREPARING <= h.phase <= Phase.RUNNING:
                h.ending = h.ending or "allocation_end"
                if h.phase is not Phase.PREPARING:
                    keys.append(h.key)
        if keys:
            self._keeper.kill(keys, "allocation_end", grace_s)
        self._log.info("jobs.end", jobs=len(keys))

    # --- batches

    def _gather(self) -> Work | None:
        starting = self.contact_made and not self.paused and not self._lifetime.draining
        at = boottime()
        left_s = self._lifetime.left_s(at)
        picked = self._holdings.pick(at, _BATCH, left_s) if starting else []
        if self._holdings.returns:
            self._due()
        stale_at = self._holdings.stale_at()
        if stale_at != self._stale_at:
            self._stale_at = stale_at
            self._alarm()
        urgent = bool(
            picked
            or self._arrivals
            or self._unjudged
            or self._cleanups
            or (self._going_on and starting)
            or len(self._settled) >= _SETTLED_MOST
        )
        soon = bool(self._unwritten or self._forget)
        if not (urgent or soon or self._settled):
            return None
        # Ends alone can wait a moment for others, for the launcher keeps them; verdicts longer.
        wait_s = self._worked_at + (_GATHER_S if soon else _SETTLED_WAIT_S) - at
        if not urgent and wait_s > 0.0:
            self._work_later(wait_s)
            return None
        self._worked_at = at
        work = Work(self.request_no, self._outbox.last_no)
        work.arrivals, self._arrivals = self._arrivals, []
        work.settled, self._settled = self._settled, []
        work.forget, self._forget = self._forget, []
        work.ends = list(self._unwritten.values())
        work.ended, self._unjudged = self._unjudged, []
        work.cleanups, self._cleanups = self._cleanups, []
        if starting and self._going_on:
            picked = [*(h for h in self._going_on if h.phase is Phase.PREPARING), *picked]
            self._going_on = []
        work.orders = [self._order(h) for h in picked]
        return work

    def _work_later(self, wait_s: float) -> None:
        loop = asyncio.get_running_loop()
        if self._later is not None:
            if self._later.when() <= loop.time() + wait_s:
                return
            self._later.cancel()
        self._later = loop.call_later(wait_s, self._work_now)

    def _work_now(self) -> None:
        self._later = None
        self._todo.set()

    def _order(self, h: Holding) -> Order:
        deadline = None if h.takeover_s is None else self._holdings.contact(h) + h.takeover_s
        return Order(h, self._holdings.start_by(h), deadline, self._lifetime.jobs_end_at)

    def _finish(self, work: Work, done: Done) -> None:
        for judged in done.judged:
            self._judged(judged)
        for key in done.cleaned:
            self._cleaning -= 1
            self.settled(*key)
        if done.failure:
            self._pause(f"the journal cannot be written: {done.failure}")
            self._settled = work.settled + self._settled
            self._forget = work.forget + self._forget
            for arrival in work.arrivals:
                self._give_back(arrival.new)
        else:
            self._written(work)
        self._admit(done)
        if work.orders or done.new:
            self._todo.set()
        if self._outbox:
            self._due()

    def _admit(self, done: Done) -> None:
        for h in done.unproven:
            if h.claimed:
                message = "its signature is not known any more"
                self.over(h, h.end(Reason.LAUNCHER_LOST, now(), message))
            else:
                self._give_back([h])
        for h in self._holdings.journaled(done.new):
            self._fetching.fetch(h)
        self._go_on(done.outcomes)

    def _written(self, work: Work) -> None:
        """This is in the journal: the launcher may forget the ends, at its leisure."""
        for end in work.ends:
            if self._unwritten.get(end.job) is end:
                del self._unwritten[end.job]
            self._acks.release((end.job, end.epoch))
        for key in work.settled:
            self._acks.release(key)
        self._acks.pace()

    def _give_back(self, held: Iterable[Holding]) -> None:
        for h in held:
            self._holdings.give_back(h)
            self._due()

    def _go_on(self, outcomes: Sequence[Outcome]) -> None:
        """Hand over what was prepared, report what was refused, keep what must wait."""
        tasks: list[Task] = []
        again: list[Holding] = []
        for outcome in outcomes:
            h = outcome.holding
            match outcome:
                case _ if h.phase is Phase.ENDED:
                    pass  # dropped while it was looked at
                case Prepared(_, task):
                    self._prepared(h, task, tasks, again)
                case Refused(_, code, message):
                    self.over(h, h.refusal(code, message, now()))
                case Failed(_, message, disk_full, reason):
                    self.over(h, h.end(reason, now(), message))
                    if disk_full:
                        self._pause(message)
                case Postponed(_, message):
                    self._pause(message)
                    again.append(h)
        for h in again:
            if h.ending and h.claimed:
                self.over(h, h.end(_reason(h.ending), now(), _NOT_BEGUN))
            elif h.ending:
                self._give_back([h])
        self._holdings.again([h for h in again if not h.ending])
        if tasks:
            self._keeper.start(tasks, [self._node(task) for task in tasks])

    def _node(self, task: Task) -> str:
        h = self._holdings.get(task.job, task.epoch)
        return (
            self._holdings.placement.nodes[0].name
            if h is None or h.slot is None
            else h.slot.node.name
        )

    def _prepared(self, h: Holding, task: Task, tasks: list[Task], again: list[Holding]) -> None:
        h.claim()
        if h.ending == "unknown":
            self._holdings.drop(h)
            self._settled.append(h.key)
        elif h.ending:
            self.over(h, h.end(_reason(h.ending), now(), _NOT_BEGUN))
        elif self._keeper.up:
            h.phase = Phase.HANDED
            tasks.append(task)
        else:
            again.append(h)

    def _begun(self, started: Started, at: float) -> None:
        h = self._holdings.started(started.job, started.epoch, started.at)
        if h is not None:
            if h.slot is not None:
                h.slot.turned_at = at
            self._outbox.add_start(Start(h.job, h.epoch, h.attempt, started.at))

    def _judged(self, judged: Judged) -> None:
        """A run with hooks or the like is over, or its preprocess hook is and its command may begin."""
        h = judged.holding
        ended = self._judging.pop(h.key)
        if h.phase is Phase.ENDED:
            self._keeper.ack([ended.key])
        elif judged.end is not None:
            self._acks.keep(ended.key)
            self.over(h, judged.end)
        elif h.ending or self._lifetime.draining:
            self._acks.keep(ended.key)
            reason = _reason(h.ending or "allocation_end")
            self.over(h, h.end(reason, now(), "its command had not begun"))
        else:
            # The launcher starts nothing under a key that it remembers.
            self._keeper.ack([ended.key])
            h.preprocessed, h.parameters, h.phase = True, judged.parameters, Phase.PREPARING
            self._going_on.append(h)
            self._todo.set()

    def _not_started(self, several: Sequence[NotStarted]) -> None:
        again = []
        for refused in several:
            h = self._holdings.get(refused.job, refused.epoch)
            if h is None or h.phase is not Phase.HANDED:
                continue
            if h.ending or self._lifetime.draining:
                reason = _reason(h.ending or "allocation_end")
                self.over(h, h.end(reason, now(), _NOT_BEGUN))
            else:
                again.append(h)
        self._holdings.again(again)

    def _pause(self, why: str) -> None:
        """Start nothing and ask for nothing for a while: the same would happen to the next one."""
        at = boottime()
        if at < self._paused_until:
            return
        self._paused_until = at + _PAUSE_S
        self._log.error("paused", why=why, pause_s=_PAUSE_S)
        asyncio.get_running_loop().call_later(_PAUSE_S + 0.1, self.wake)
        self._due()


def _reason(ending: str) -> Reason:
    """Why a holding that did not begin is over."""
    return Reason.CANCELLED if ending == "unknown" else Reason(ending)
