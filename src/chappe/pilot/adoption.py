"""How a restarted head takes over: it acts on what `recovery` makes of journal, snapshot and ledger."""

from __future__ import annotations

from math import inf

from structlog.types import FilteringBoundLogger

from chappe.link.clock import boottime, now
from chappe.link.journal import Recovered
from chappe.pilot import places
from chappe.pilot.crew import Crew
from chappe.pilot.desk import Desk
from chappe.pilot.holding import Holding, Phase
from chappe.pilot.holdings import Holdings
from chappe.pilot.launch_wire import Snapshot
from chappe.pilot.outbox import Outbox, Start
from chappe.pilot.parents import Disk
from chappe.pilot.prepare import Preparer
from chappe.pilot.recovery import plan, unclear
from chappe.pilot.works import Works
from chappe.wire.sync import Grant


class Adoption:
    """Puts what the head before us held into the hands of this one."""

    def __init__(
        self,
        *,
        holdings: Holdings,
        outbox: Outbox,
        works: Works,
        keeper: Crew,
        desk: Desk,
        preparer: Preparer,
        disk: Disk,
        log: FilteringBoundLogger,
    ) -> None:
        self._holdings = holdings
        self._outbox = outbox
        self._works = works
        self._keeper = keeper
        self._desk = desk
        self._preparer = preparer
        self._disk = disk
        self._log = log

    async def adopt(
        self,
        recovered: Recovered,
        snapshot: Snapshot | None,
        *,
        sure: bool = True,
        missing: bool = False,
    ) -> None:
        """Take over; `snapshot` is None when the launcher was gone. It is not `sure` when some of several
        launchers may be gone. Where nodes are `missing`, what nobody knows of may run there: it is kept until
        they are heard, or lost (`reunion`). Raises LedgerUnavailable."""
        asked = unclear(recovered, snapshot)
        claimed = await self._disk(self._claimed, asked, recovered.requests)
        made = plan(recovered, snapshot, claimed, sure=sure)
        for grant, end in made.over:
            if grant is not None:
                self._holdings.adopt(Holding(grant, -inf, 0), Phase.ENDED)
            self._works.report(end)
        for grant, run in made.running:
            h = await self._begun(grant)
            began_at = boottime() - max(0.0, now() - run.at)
            self._holdings.adopt(h, Phase.RUNNING, run.at, places.read(run), began_at)
            self._outbox.add_start(Start(h.job, h.epoch, h.attempt, run.at))
        ended = {e.key: e for e in snapshot.ended} if snapshot is not None else {}
        for grant in (*made.handed, *made.ended):
            h = await self._begun(grant)
            self._holdings.adopt(h, Phase.HANDED)
            if h.key in ended:
                self._works.ended(ended[h.key], boottime())
        for grant in made.lost:
            h = await self._begun(grant) if missing else Holding(grant, -inf, 0)
            self._holdings.adopt(h, Phase.HANDED)
        if missing:
            self._keeper.seek((grant.job, grant.epoch) for grant in made.lost)
        elif made.lost:
            self._works.lost("it ended with its head")
        if made.strays:
            self._keeper.ack(made.strays)
        await self._resume(made.startable, recovered, claimed)
        self._log.info(
            "adopted",
            running=len(made.running),
            ended=len(made.ended) + len(made.over),
            lost=0 if missing else len(made.lost),
            sought=len(made.lost) if missing else 0,
            startable=len(made.startable),
        )

    async def _begun(self, grant: Grant) -> Holding:
        h = Holding(grant, -inf, 0)
        await self._disk(self._preparer.recall, h)
        return h

    async def _resume(self, grants: list[Grant], recovered: Recovered, claimed: set[str]) -> None:
        """Let what never began wait again. It begins once the Hub has renewed it."""
        new, refusals = self._holdings.granted(grants, -inf, now())
        for refusal in refusals:
            self._works.report(refusal)
        for h in new:
            h.request_no = recovered.requests[h.job]
            if h.job in claimed:
                h.claim()
        done = await self._disk(self._desk.prove_again, new, list(recovered.submissions.values()))
        self._works.resume(done)

    def _claimed(self, grants: list[Grant], requests: dict[str, int]) -> set[str]:
        return {g.job for g in grants if self._preparer.claimed(g.job, g.attempt, requests[g.job])}
