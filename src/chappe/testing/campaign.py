"""A campaign in virtual time: Jobs come, allocations follow them by the real rule, and things fail at random.

The batch system gives nodes in order of asking, after a while; it may say nothing when it is called, whether
it took the job or not, and it kills allocations. The agent dies between any two of its steps: what it wrote
down stays. What may never happen is looked for all the time: see `wrong`.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

from chappe.core.elastic import DAY_S, Allocation, Ask, NodeSize, Policy, Situation, Stage, Waiting
from chappe.core.elasticity import decide
from chappe.core.waits import Waits
from chappe.store import sites
from chappe.testing.store import PilotRig, SiteRig, StoreRig
from chappe.testing.virtual import VirtualPilot, World
from chappe.wire.demand import PilotOffer
from chappe.wire.sites import NewBatchJob, NewSession

LOOK_S = 600.0
"""So often the agent looks although nothing happened."""


@dataclass
class _Batch:
    """A BatchJob in the agent's book, and what became of it in the batch system."""

    ask: Ask
    id: str
    asked_at: float
    pilot: PilotRig | None = None
    submitted: bool = False
    cancel: bool = False
    began_at: float | None = None
    ended_at: float | None = None
    virtual: VirtualPilot | None = None


@dataclass
class Faults:
    """How likely things fail: a submission that times out, a step after which the agent dies; and how long an
    allocation lives on average before it is killed (seconds)."""

    timeout: float = 0.0
    crash: float = 0.0
    life_s: float | None = None


@dataclass
class _Scheduler:
    """The batch system: so many nodes, by name of the job."""

    nodes: int
    taken: Counter[str] = field(default_factory=Counter)
    queue: list[tuple[float, _Batch]] = field(default_factory=list)
    free: int = 0


class Campaign:
    """A Site of so many nodes and its agent. `wrong` gathers what should never be."""

    def __init__(
        self,
        rig: StoreRig,
        policy: Policy,
        *,
        nodes: int,
        cores: int,
        seed: int,
        faults: Faults | None = None,
        wait_s: float = 60.0,
    ) -> None:
        self.world = World(rig)
        self.site: SiteRig = rig.add_site("campaign")
        self.policy = policy
        self.rng = random.Random(seed)  # noqa: S311 - a test's
        self.batches: list[_Batch] = []
        self.wrong: list[str] = []
        self.asked_after_s: list[float] = []
        self._rig = rig
        self._cores = cores
        self._faults = faults or Faults()
        self._wait_s = wait_s
        self._scheduler = _Scheduler(nodes, free=nodes)
        self._waits = Waits()
        self._surplus_at: dict[str, float] = {}
        self._look_due: float | None = None
        self.soon()
        self._tick()

    @property
    def open(self) -> list[_Batch]:
        """The BatchJobs that are not over."""
        return [b for b in self.batches if b.ended_at is None]

    def soon(self) -> None:
        """Something happened: the agent looks within a second, as its long poll lets it."""
        self._look_in(1.0)

    def _look_in(self, seconds: float) -> None:
        due = self.world.now + seconds
        if self._look_due is None or due < self._look_due:
            self._look_due = due
            self.world.after(seconds, self._look)

    def _tick(self) -> None:
        self.soon()
        self.world.after(LOOK_S, self._tick)

    # --- the agent

    def _look(self) -> None:
        if self._look_due is None or self.world.now < self._look_due:
            return
        self._look_due = None
        self._decide()
        for batch in self.open:
            self._advance(batch)
            if self.rng.random() < self._faults.crash:
                break  # the agent died; its successor goes on with what is in the book
        if any(b.pilot is None or not b.submitted for b in self.open):
            self.soon()
        self._check_policy()

    def _decide(self) -> None:
        plan = decide(self.policy, self._situation())
        now = self.world.now
        self._surplus_at = {id: self._surplus_at.get(id, now) for id in plan.surplus}
        if plan.again_at is not None:
            self._look_in(plan.again_at - now)
        taken_back = {c.id for c in plan.cancels} | {a.instead_of for a in plan.asks}
        for batch in self.open:
            batch.cancel = batch.cancel or batch.id in taken_back
        self.batches += [_Batch(ask, self._rig.new_id(), now) for ask in plan.asks]

    def _situation(self) -> Situation:
        found = self._rig.do(sites.show_demand, self._rig.user, self.site.id)
        offers = {p.session: p for p in found.pilots}
        now = self.world.now
        spent: Counter[str] = Counter()
        for b in self.batches:
            if b.ended_at is not None and b.began_at is not None and b.ended_at > now - DAY_S:
                spent[b.ask.account] += int(b.ask.nodes * (b.ended_at - b.began_at)) + 1
        return Situation(
            now,
            tuple(Waiting(w.shape, w.jobs) for w in found.waiting),
            tuple(self._allocation(b, offers) for b in self.open),
            NodeSize(self._cores, self._cores << 30),
            waits=self._waits,
            spent=dict(spent),
        )

    def _allocation(self, b: _Batch, offers: dict[str, PilotOffer]) -> Allocation:
        offer = None if b.pilot is None else offers.get(b.pilot.id)
        if b.cancel or (offer is not None and offer.closed):
            stage = Stage.CLOSED
        elif offer is not None:
            stage = Stage.ASKS
        else:
            stage = Stage.QUEUED if b.began_at is None else Stage.FRESH
        return Allocation(
            b.id,
            stage,
            b.ask.nodes,
            b.asked_at,
            b.ask.wall_s,
            b.began_at,
            b.ask.queue,
            b.ask.account,
            lasting=b.ask.lasting,
            surplus_at=self._surplus_at.get(b.id),
        )

    def _advance(self, batch: _Batch) -> None:
        """One step, as `site.steps` makes it: known to the Hub, submitted once, cancelled."""
        if batch.pilot is None:
            if batch.cancel:
                batch.ended_at = self.world.now
            if batch.cancel or self._awaits_another(batch):
                return
            made = self._rig.do(
                sites.create_batch_job, self.site.principal, NewBatchJob(batch.id, self.site.id)
            )
            new = NewSession(self._rig.new_id(), made.id)
            session = self._rig.do(sites.create_session, self.site.principal, new)
            batch.pilot = PilotRig(self.site, session.id, batch.id, session.token)
        elif not batch.submitted:
            # Whoever does not know whether it was taken asks for its name first.
            if not self._scheduler.taken[batch.id] and not batch.cancel:
                self._submit(batch)
            elif batch.cancel and not self._scheduler.taken[batch.id]:
                self._over(batch)
            else:
                batch.submitted = True
        elif batch.cancel and batch.began_at is None:
            self._scheduler.queue = [q for q in self._scheduler.queue if q[1] is not batch]
            self._over(batch)

    def _awaits_another(self, batch: _Batch) -> bool:
        return any(b.id == batch.ask.instead_of for b in self.open)

    def _submit(self, batch: _Batch) -> None:
        lost = self.rng.random() < self._faults.timeout
        if lost and self.rng.random() < 0.5:
            return  # neither taken nor answered
        self._scheduler.taken[batch.id] += 1
        if self._scheduler.taken[batch.id] > 1:
            self.wrong.append(f"{batch.id} was submitted twice")
        wait_s = self.rng.expovariate(1 / self._wait_s) if self._wait_s else 0.0
        self._scheduler.queue.append((self.world.now + wait_s, batch))
        self.world.after(wait_s, self._give_nodes)
        batch.submitted = not lost

    # --- the batch system

    def _give_nodes(self) -> None:
        scheduler, now = self._scheduler, self.world.now
        for entry in sorted(scheduler.queue, key=lambda q: q[0]):
            batch = entry[1]
            if entry[0] > now or batch.ask.nodes > scheduler.free or batch.pilot is None:
                continue
            scheduler.queue.remove(entry)
            scheduler.free -= batch.ask.nodes
            self._begin(batch, batch.pilot)

    def _begin(self, batch: _Batch, pilot: PilotRig) -> None:
        ask = batch.ask
        batch.began_at, batch.submitted = self.world.now, True
        waited_s = batch.began_at - batch.asked_at
        self._waits = self._waits.learned(ask.queue, ask.nodes, ask.wall_s, waited_s)
        batch.virtual = VirtualPilot(
            self.world,
            pilot,
            ask.nodes,
            self._cores,
            wall_s=ask.wall_s,
            idle_s=0.0 if ask.lasting else self.policy.idle_s,
            on_over=lambda: self._ended(batch),
        )
        if ask.wall_s is not None:
            self.world.after(ask.wall_s, lambda: self._kill(batch))
        if self._faults.life_s is not None:
            self.world.after(
                self.rng.expovariate(1 / self._faults.life_s), lambda: self._kill(batch)
            )

    def _kill(self, batch: _Batch) -> None:
        if batch.virtual is not None and batch.virtual.alive:
            batch.virtual.kill()
            self._ended(batch)

    def _ended(self, batch: _Batch) -> None:
        self._scheduler.free += batch.ask.nodes
        self._over(batch)
        self._give_nodes()

    def _over(self, batch: _Batch) -> None:
        """The batch system says that it is over: that is proof, and the Hub hears it."""
        batch.ended_at = self.world.now
        if batch.pilot is not None:
            self.site.end(batch.pilot)
        self.world.wake()
        self.soon()

    # --- what may never be

    def _check_policy(self) -> None:
        open_ = [b for b in self.open if not self._awaits_another(b)]
        policy, now = self.policy, self.world.now
        if len(open_) > policy.most:
            self.wrong.append(f"{len(open_)} allocations are open, of {policy.most}")
        if (nodes := sum(b.ask.nodes for b in open_)) > policy.nodes_most:
            self.wrong.append(f"{nodes} nodes are in use, of {policy.nodes_most}")
        if policy.day_node_s is not None and self.used_since(now - DAY_S) > policy.day_node_s:
            self.wrong.append(f"the budget was exceeded in the day before {now}")
        for b in open_:
            idle_at = None if b.virtual is None else b.virtual.idle_at
            if idle_at is not None and not b.ask.lasting and now - idle_at > policy.idle_s + 1:
                self.wrong.append(f"{b.id} has been idle since {idle_at}")

    def used_since(self, at: float) -> float:
        """Node-seconds that allocations really had since then."""
        used = 0.0
        for b in self.batches:
            if b.began_at is not None:
                until = self.world.now if b.ended_at is None else b.ended_at
                used += b.ask.nodes * max(0.0, until - max(at, b.began_at))
        return used
