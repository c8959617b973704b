"""Pilots in virtual time: the real store grants, the real `Holdings` place; no process is real, nor a clock.

    with StoreRig(path) as rig:
        world = World(rig)
        pilot = VirtualPilot(world, rig.add_site("s").add_pilot(), nodes=64, cores=16)
        world.truth[job.id] = 30.0          # how long it really takes
        world.run(until=3600.0)

Time goes from event to event, so an hour costs what happens in it. A pilot that is killed says nothing more,
and what it ran has stopped: that is known to the world alone, until somebody finds proof.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from chappe.core.jobs import Resources
from chappe.core.leases import Outcome, Reason
from chappe.pilot.holding import Holding
from chappe.pilot.holdings import Holdings
from chappe.pilot.placement import Placement
from chappe.testing.nodes import GIB, plain
from chappe.testing.store import PilotRig, SiteRig, StoreRig
from chappe.wire.sync import Grant, Report

HEARTBEAT_S = 900.0
"""So often a pilot speaks although it has nothing to say: more seldom than a real one, whose silence would be
noticed; nobody looks for that here."""


class Run(NamedTuple):
    """A Job really ran, on so many cores in all."""

    job: str
    began_at: float
    ended_at: float
    cores: int


class Kind(NamedTuple):
    """Jobs of a mixed workload: of so many cores on each of so many nodes, this share of them."""

    cores: int
    nodes: int
    share: float


def mixed(cores: int) -> tuple[Kind, ...]:
    """One core, four, a whole node of so many, and two of them."""
    return (Kind(1, 1, 0.55), Kind(4, 1, 0.3), Kind(cores, 1, 0.1), Kind(cores, 2, 0.05))


class World:
    """What is to happen when, and what did."""

    def __init__(self, rig: StoreRig) -> None:
        self.rig = rig
        self.began_at = rig.clock.now
        self.truth: dict[str, float] = {}
        self.runs: dict[str, list[Run]] = defaultdict(list)
        self.pilots: list[VirtualPilot] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    @property
    def now(self) -> float:
        """Seconds since 1970."""
        return self.rig.clock.now

    def submit(
        self, site: SiteRig, jobs: int, kinds: Sequence[Kind], rng: random.Random, **spec: Any
    ) -> list[str]:
        """Jobs of these kinds, whose times are log-normal about five minutes; their users expect them to
        take as long as they do, or up to half as much again."""
        specs = []
        for kind in rng.choices(kinds, [k.share for k in kinds], k=jobs):
            took_s = min(7_200.0, max(5.0, rng.lognormvariate(math.log(300), 0.8)))
            expected_s = took_s * rng.uniform(1.0, 1.5)
            resources = Resources(
                cores=kind.cores, nodes=kind.nodes, ranks=kind.nodes, estimate_s=expected_s
            )
            made = self.rig.spec(site, resources=resources, **spec)
            self.truth[made.id] = took_s
            specs.append(made)
        for at in range(0, jobs, 1_000):
            self.rig.submit(*specs[at : at + 1_000])
        self.wake()
        return [made.id for made in specs]

    def after(self, seconds: float, do: Callable[[], None]) -> None:
        """Let this happen later."""
        heapq.heappush(self._events, (self.now + max(0.0, seconds), next(self._numbers), do))

    def run(self, until: float, done: Callable[[], bool] = lambda: False) -> None:
        """Let time pass until so many seconds after the beginning, or until it is done."""
        end = self.began_at + until
        while self._events and self._events[0][0] <= end and not done():
            at, _, do = heapq.heappop(self._events)
            self.rig.clock.advance(max(0.0, at - self.now))
            do()

    def wake(self) -> None:
        """There is new work: the pilots' long polls are answered."""
        for pilot in self.pilots:
            pilot.soon()

    def busy(self) -> float:
        """Core-seconds of all that ran, or runs."""
        over = (run for runs in self.runs.values() for run in runs)
        past = sum(r.cores * (r.ended_at - r.began_at) for r in over)
        return past + sum(pilot.busy() for pilot in self.pilots)

    def waiting(self) -> int:
        """Jobs that could be granted now."""
        return sum(entry.waiting for entry in self.rig.store.writer.catalog.shapes.values())

    def overlaps(self) -> list[str]:
        """Jobs of which two runs were alive at once (promise I9)."""
        wrong = []
        for job, runs in self.runs.items():
            in_order = sorted(runs, key=lambda r: r.began_at)
            if any(a.ended_at > b.began_at for a, b in itertools.pairwise(in_order)):
                wrong.append(job)
        return wrong


class VirtualPilot:
    """A Session whose nodes and Jobs exist in virtual time only. `on_over` hears of its end by itself."""

    def __init__(
        self,
        world: World,
        rig: PilotRig,
        nodes: int,
        cores: int,
        *,
        wall_s: float | None = None,
        idle_s: float = 0.0,
        on_over: Callable[[], None] = lambda: None,
    ) -> None:
        self._world = world
        self._rig = rig
        self._ends_at = None if wall_s is None else world.now + wall_s
        self._idle_s = idle_s
        self._on_over = on_over
        made = [plain(range(cores), cores * GIB, name=f"n{k}") for k in range(nodes)]
        self.holdings = Holdings(Placement(made))
        self._running: dict[tuple[str, int], tuple[Holding, Grant, float]] = {}
        self._grants: dict[tuple[str, int], Grant] = {}
        self._reports: list[Report] = []
        self._due: float | None = None
        self.idle_at: float | None = world.now
        self.alive = True
        world.pilots.append(self)
        self.soon()

    def soon(self) -> None:
        """Speak to the Hub, together with what happens in the same half second."""
        self._wake_in(0.5)

    def kill(self) -> None:
        """The allocation is gone, with all that ran in it."""
        self._die()

    # --- inside

    def _wake_in(self, seconds: float) -> None:
        at = self._world.now + seconds
        if self.alive and (self._due is None or at < self._due):
            self._due = at
            self._world.after(seconds, self._speak)

    def _speak(self) -> None:
        if not self.alive or self._due is None or self._world.now < self._due:
            return
        self._due = None
        self._sync()
        if self._begin():
            self.soon()
        self._look_idle()
        stale_at = self.holdings.stale_at()
        self._wake_in(HEARTBEAT_S if stale_at is None else max(0.01, stale_at - self._world.now))

    def _sync(self) -> None:
        h, now = self.holdings, self._world.now
        h.return_stale(now)
        reports, self._reports = self._reports, []
        ends = [r for r in reports if r.kind == "end"]
        h.reporting([r.job for r in ends])
        back, order = h.returning(), h.last_order()
        left_s = None if self._ends_at is None else max(0.0, self._ends_at - now)
        reply = self._rig.sync(
            held=h.held(), returned=back, reports=reports, capacity=h.capacity(left_s, now)
        )
        h.returned(back)
        for end in ends:
            h.settled(end.job, end.epoch)
        for gone in reply.unknown:
            h.disowned(gone.job, gone.epoch)
        new, _ = h.granted(reply.grants, now, now)
        self._grants |= {(g.job, g.epoch): g for g in reply.grants}
        h.journaled(new)
        h.renewed(order, now)

    def _begin(self) -> bool:
        now = self._world.now
        left_s = None if self._ends_at is None else max(0.0, self._ends_at - now)
        picked = self.holdings.pick(now, 100_000, left_s)
        for h in picked:
            h.claim()
            self.holdings.started(h.job, h.epoch, now)
            grant = self._grants.pop(h.key)
            self._running[h.key] = (h, grant, now)
            self._reports.append(self._rig.start(grant))
            self._world.after(self._world.truth[h.job], partial(self._ended, h.key))
        return bool(picked)

    def _ended(self, key: tuple[str, int]) -> None:
        found = self._running.pop(key, None)
        if not self.alive or found is None:
            return
        h, grant, began_at = found
        self._ran(h, began_at)
        now = self._world.now
        outcome = Outcome(reason=Reason.EXIT, exit=0)
        self.holdings.over(h, h.end(Reason.EXIT, now))
        self._reports.append(self._rig.report(grant, "end", started_at=began_at, outcome=outcome))
        self._begin()
        self.soon()

    def _ran(self, h: Holding, began_at: float) -> None:
        cores = h.need.cores * h.need.nodes
        self._world.runs[h.job].append(Run(h.job, began_at, self._world.now, cores))

    def busy(self) -> float:
        """Core-seconds of what runs now."""
        now = self._world.now
        return sum(h.need.cores * h.need.nodes * (now - at) for h, _, at in self._running.values())

    def _look_idle(self) -> None:
        busy = bool(self._running) or len(self.holdings) > 0
        if busy:
            self.idle_at = None
            return
        if self.idle_at is None:
            self.idle_at = self._world.now
        if self._idle_s and not self._reports:
            left_s = self.idle_at + self._idle_s - self._world.now
            if left_s <= 0:
                self._die()
                self._on_over()
            else:
                self._wake_in(left_s)

    def _die(self) -> None:
        self.alive = False
        for h, _, began_at in self._running.values():
            self._ran(h, began_at)
        self._running.clear()
        self._world.pilots.remove(self)
