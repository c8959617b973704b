"""The allocations that this Site asks for by itself: what waits, what is open, the rule, the book.

`core.elasticity` decides; here is gathered from what, and what it says is written down. A decision and the
BatchJobs that it wants are one entry into the book, before anything is done about them: killed at any moment,
the agent either has not decided, or finds what it wanted and goes on with that.

Who ends an idle allocation? Its own pilot, which knows first that nothing is left: it is told for how long to
wait (`Wanted.idle_s`). The agent only takes back what has not begun.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import structlog

from chappe.core import faults
from chappe.core.batchjobs import BatchJobIntent
from chappe.core.elastic import (
    Ask,
    Plan,
    PolicyKind,
    Situation,
    Window,
)
from chappe.core.elasticity import decide
from chappe.link.clock import boottime, new_id, now
from chappe.site.book import Batch, Book, CancelAsked, Entry, Wanted
from chappe.site.config import SiteConfig
from chappe.site.elastic_inputs import FOLLOWS, as_data, policy_of, situation, size_of, tells_size
from chappe.site.memory import Decided, NodeSeen, Told
from chappe.site.schedulers.base import Phase
from chappe.site.wakeup import Wakeups
from chappe.wire.demand import Decision, Demand

log = structlog.get_logger()

QUICK_DEATH_S = 60.0
FIRST_DELAY_S = 2.0
MOST_DELAY_S = 300.0


class Elastic:
    """Decides for the agent. Used from its one event loop."""

    def __init__(self, config: SiteConfig, book: Book, wakeups: Wakeups) -> None:
        self._config = config
        self._policy = policy_of(config)
        self._book = book
        self._wakeups = wakeups
        self._demand: Demand | None = None
        self._asked_for = 0
        self._surplus_at: dict[str, float] = {}
        self._quick_deaths = 0
        self._hold_until = 0.0
        self._again_at: float | None = None
        self._told: object = None
        self._windows: tuple[Window, ...] = ()

    # -- what the Hub says ---------------------------------------------------------------------

    @property
    def mark(self) -> str | None:
        """For the Hub: which demand is known; "" for none, None when nobody here wants to know."""
        if self._policy.kind not in FOLLOWS:
            return None
        return "" if self._demand is None else self._demand.mark

    @property
    def asked_for(self) -> int:
        """Which question an answer belongs to: that to an older one may not know of an end yet."""
        return self._asked_for

    def heard(self, demand: Demand | None, asked_for: int) -> bool:
        """What waits, as the Hub answered a question; whether that is news."""
        if demand is None or asked_for != self._asked_for:
            return False
        self._demand = demand
        self._see_node(demand)
        self._wakeups.windows.set()
        self._wakeups.batches.set()
        return True

    # -- what the scheduler says of free nodes --------------------------------------------------

    @property
    def wants_windows(self) -> bool:
        """Whether it matters now which nodes are free."""
        waits = self._demand is not None and bool(self._demand.waiting)
        return waits and self._policy.kind is PolicyKind.BACKFILL

    @property
    def queues(self) -> list[str]:
        """The queues that may be asked."""
        return [queue.name for queue in self._policy.queues]

    def see_windows(self, windows: Iterable[Window]) -> None:
        """Free nodes, as they are now."""
        self._windows = tuple(windows)
        self._wakeups.batches.set()

    # -- decisions and the Hub -----------------------------------------------------------------

    def untold(self) -> list[Decision]:
        """What the Hub does not know yet of what was decided."""
        return self._book.memory.untold[:50]

    def told(self, sent: list[Decision], decided: int | None) -> None:
        """The Hub has taken what was sent; one that takes no decisions says None."""
        if sent:
            self._book.add(Told(sent[-1].no if decided is None else decided))

    # -- what happens to allocations ----------------------------------------------------------

    def ended(self, batch: Batch, at: float) -> None:
        """An allocation is over. Pilots that die at once are not asked for as fast as they die."""
        # What waits may be more by what it held: what was known is out of date.
        self._demand = None
        self._asked_for += 1
        if not batch.wanted.kept:
            return
        in_peace = bool(batch.wanted.idle_s) and batch.phase is Phase.ENDED
        lived_s = at - batch.wanted.at
        quick = lived_s < QUICK_DEATH_S and not in_peace and not batch.cancel
        self._quick_deaths = self._quick_deaths + 1 if quick else 0
        if self._quick_deaths:
            delay = min(MOST_DELAY_S, FIRST_DELAY_S * 2 ** (self._quick_deaths - 1))
            self._hold_until = boottime() + delay
            log.info("waiting before the next pilot", in_s=delay, quick_deaths=self._quick_deaths)

    # -- deciding --------------------------------------------------------------------------------

    def look(self) -> None:
        """Decide, and write down what is wanted. Raises SpoolFull, OSError: then nothing was decided."""
        if self._policy.kind in FOLLOWS and self._demand is None:
            self._again_at = None
            return
        # What was made smaller leaves a gap that the next look fills; each look asks, so this ends.
        for _ in range(3):
            if not self._look_once():
                return

    def again_at(self) -> float | None:
        """When to `look` again although nothing happened (CLOCK_BOOTTIME)."""
        return self._again_at

    def _look_once(self) -> bool:
        at = now()
        seen = self._situation(at)
        plan = decide(self._policy, seen)
        self._surplus_at = {id: self._surplus_at.get(id, at) for id in plan.surplus}
        self._again_at = None if plan.again_at is None else boottime() + plan.again_at - at
        reasons = (plan.acts, [(u.code, u.shape) for u in plan.unmet])
        if not plan.acts and (reasons == self._told or not plan.unmet):
            self._told = reasons
            return False
        self._told = reasons
        self._write_down(plan, seen, at)
        return plan.acts

    def _write_down(self, plan: Plan, seen: Situation, at: float) -> None:
        wanted = [(ask, self._wanted(ask, at)) for ask in plan.asks]
        cancels = [c.id for c in plan.cancels] + [a.instead_of for a in plan.asks if a.instead_of]
        data = as_data(self._policy, seen, plan, [w.id for _, w in wanted])
        no = max(self._book.memory.last_no + 1, int(at * 1e6))
        entries: list[Entry] = [Decided(Decision(no, at, data))]
        entries += [w for _, w in wanted]
        entries += [CancelAsked(id, if_waiting=True) for id in cancels]
        self._book.add(*entries)
        faults.reach("agent.after_decision")
        for ask, batch in wanted:
            log.info("asking for an allocation", batch_job=batch.id, nodes=ask.nodes, why=ask.why)
        for cancel in plan.cancels:
            log.info("taking an allocation back", batch_job=cancel.id, why=cancel.why)
        self._wakeups.batches.set()
        self._wakeups.report.set()

    def _wanted(self, ask: Ask, at: float) -> Wanted:
        intent = BatchJobIntent(
            nodes=ask.nodes, wall_s=ask.wall_s, queue=ask.queue, account=ask.account
        )
        idle_s: float | None = self._policy.idle_s
        if ask.lasting:
            # What `[pilot]` says of idleness is about the pilots that it keeps.
            idle_s = 0.0 if self._policy.kind in FOLLOWS else None
        return Wanted(new_id(), intent, new_id(), True, at, idle_s, ask.instead_of)

    def _situation(self, at: float) -> Situation:
        hold_until = at + max(0.0, self._hold_until - boottime())
        seen = situation(self._config, self._book, self._demand, self._surplus_at, at)
        return msgspec.structs.replace(seen, windows=self._windows, hold_until=hold_until)

    def _see_node(self, demand: Demand) -> None:
        """Pilots with whole nodes tell what one has; the smallest counts: nothing is asked for in vain."""
        whole = {b.session for b in self._book.batches.values() if not b.wanted.intent.cores}
        sizes = [size_of(p) for p in demand.pilots if tells_size(p) and p.session in whole]
        if not sizes:
            return
        node = min(sizes, key=lambda s: (s.cores, s.mem_bytes, s.gpus))
        if node != self._book.memory.node:
            self._book.add(NodeSeen(node))
