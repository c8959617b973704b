"""BatchJobs: from a wish to an allocation, submitted once (promise I12).

A BatchJob is wanted (by the Hub's order, or by ourselves to keep `[pilot] keep` pilots alive), registered
(the Hub knows it and gave its Session a token; session.json is written), intended (written down before the
scheduler is called), and submitted. A crash between the last two leaves the only question that matters: did
the scheduler get it? It is asked for our name first, and the job is submitted again only if it knows none.
Nothing here touches a running pilot, except when the Hub orders a cancel.
"""

from __future__ import annotations

from collections.abc import Iterable

import structlog

from chappe.core import faults
from chappe.core.errors import ChappeError, Conflict, Gone, Invalid, NotFound
from chappe.link.clock import boottime, new_id, now
from chappe.link.http import NO_RETRY, HubClient
from chappe.site import sessions
from chappe.site.book import (
    Accepted,
    Batch,
    Book,
    Buried,
    CancelAsked,
    Forgotten,
    Intended,
    Registered,
    Said,
    Submitted,
    Wanted,
)
from chappe.site.command import Ran, run
from chappe.site.config import SiteConfig
from chappe.site.paths import SitePaths
from chappe.site.schedulers.base import OVER, BatchState, Phase, Scheduler, SubmitRefused
from chappe.site.wakeup import Wakeups, wait_for
from chappe.wire.sites import (
    BatchJobIntent,
    BatchJobOrder,
    BatchJobReport,
    BatchJobView,
    NewBatchJob,
    NewSession,
    NewSessionReply,
)

log = structlog.get_logger()

NAME = "chappe-{id}"
QUICK_DEATH_S = 60.0
FIRST_DELAY_S = 2.0
MOST_DELAY_S = 300.0
CANCEL_AGAIN_S = 60.0
SUBMIT_TRIES = 5
FINAL = frozenset(str(phase) for phase in OVER)


class BatchJobs:
    """The BatchJobs of this Site, and the loop that brings each of them one step further."""

    def __init__(
        self,
        paths: SitePaths,
        config: SiteConfig,
        scheduler: Scheduler,
        hub: HubClient,
        book: Book,
        wakeups: Wakeups,
    ) -> None:
        self._paths = paths
        self._config = config
        self._scheduler = scheduler
        self._hub = hub
        self._book = book
        self._wakeups = wakeups
        self._delay: dict[str, float] = {}
        self._not_before: dict[str, float] = {}
        self._tries: dict[str, int] = {}
        self._silent: set[str] = set()
        self._quick_deaths = 0
        self._keep_after = 0.0

    # -- what the other loops ask and tell -----------------------------------------------------------

    def known(self) -> list[str]:
        """The BatchJobs that were taken up."""
        return list(self._book.batches)

    def watched(self) -> dict[str, Batch]:
        """What to ask the scheduler about, by its ids."""
        return {
            b.scheduler_id: b
            for b in self._book.batches.values()
            if b.watched and b.scheduler_id is not None
        }

    def dead(self) -> list[Batch]:
        """Those that ended and whose pilots' last words are not passed on yet."""
        return [b for b in self._book.batches.values() if b.over and not b.buried]

    def reports(self) -> list[BatchJobReport]:
        """What the Hub has not taken note of yet."""
        return [
            BatchJobReport(b.id, b.state, b.scheduler_id, b.message)
            for b in self._book.batches.values()
            if b.state != b.accepted
        ]

    def take(self, orders: Iterable[BatchJobOrder]) -> bool:
        """Take up the Hub's orders; whether any was new. Raises SpoolFull, OSError."""
        news = False
        for order in orders:
            batch = self._book.batches.get(order.id)
            if batch is None and order.cancel:
                # Never taken up, so never submitted: it is over before it began.
                self._book.add(
                    Wanted(order.id, order.intent, new_id(), kept=False, at=now()),
                    CancelAsked(order.id),
                )
            elif batch is None:
                self._book.add(Wanted(order.id, order.intent, new_id(), kept=False, at=now()))
            elif order.cancel and not batch.cancel:
                self._book.add(CancelAsked(order.id))
            else:
                continue
            news = True
            log.info("order taken", batch_job=order.id, cancel=order.cancel)
            self._wakeups.batches.set()
        return news

    def heard_silent(self, session_ids: Iterable[str]) -> bool:
        """Sessions that the Hub does not hear; whether there is reason to ask the scheduler now."""
        before, self._silent = self._silent, set(session_ids)
        return bool(self._silent - before)

    def adopt(self, views: Iterable[BatchJobView]) -> None:
        """Take up what the Hub says was submitted and the book does not know (it was lost)."""
        for view in views:
            if view.id in self._book.batches or view.session is None or view.state in FINAL:
                continue
            log.warning("adopting a batch job that the book does not know", batch_job=view.id)
            self._book.add(
                Wanted(view.id, view.intent, view.session, kept=False, at=view.created_at),
                Registered(view.id),
                Intended(view.id),
                *([Submitted(view.id, view.scheduler_id)] if view.scheduler_id else []),
            )
            self._wakeups.batches.set()
            self._wakeups.watch.set()

    def accepted(self, reports: Iterable[BatchJobReport]) -> None:
        """The Hub has taken these reports: forget what is over."""
        for report in reports:
            if report.id in self._book.batches:
                self._book.add(Accepted(report.id, report.state))
                if report.state in FINAL:
                    self._book.add(Forgotten(report.id))
                    for memory in (self._delay, self._not_before, self._tries):
                        memory.pop(report.id, None)

    def said(self, states: dict[str, BatchState]) -> bool:
        """What the scheduler says, by its ids; whether anything changed. Unknown is no news."""
        changed = False
        for scheduler_id, batch in self.watched().items():
            state = states.get(scheduler_id)
            if state is None or state.phase in (Phase.UNKNOWN, batch.phase):
                continue
            changed = True
            self._end_or_go_on(batch, state.phase, state.message)
        return changed

    def buried(self, batch: Batch) -> None:
        """The dead pilot's word is passed on."""
        self._book.add(Buried(batch.id))
        sessions.close(self._paths, batch.session)
        self._wakeups.report.set()

    # -- the loop ------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Bring each BatchJob a step further, and keep as many pilots as the configuration says."""
        while True:
            self._keep()
            for batch in list(self._book.batches.values()):
                if boottime() >= self._not_before.get(batch.id, 0.0):
                    await self._advance(batch)
            await wait_for(self._wakeups.batches, self._next_step_s())

    def _next_step_s(self) -> float | None:
        times = [t for i, t in self._not_before.items() if i in self._book.batches]
        if self._missing() > 0 and self._wakeups.online.is_set():
            times.append(self._keep_after)
        later = [t - boottime() for t in times]
        return max(0.05, min(later)) if later else None

    def _missing(self) -> int:
        kept = (b for b in self._book.batches.values() if b.wanted.kept)
        return self._config.pilot.keep - sum(not b.over and not b.cancel for b in kept)

    def _keep(self) -> None:
        if not self._wakeups.online.is_set() or boottime() < self._keep_after:
            return
        for _ in range(self._missing()):
            batch_job = new_id()
            self._book.add(Wanted(batch_job, BatchJobIntent(), new_id(), kept=True, at=now()))
            log.info("a pilot is missing: asking for an allocation", batch_job=batch_job)

    async def _advance(self, batch: Batch) -> None:
        """One step, chosen by what the book says. A step that fails is tried again later."""
        online = self._wakeups.online.is_set()
        self._not_before.pop(batch.id, None)
        try:
            if batch.over:
                return
            if batch.cancel and not batch.intended:
                self._end_or_go_on(batch, Phase.CANCELLED, "cancelled before it was submitted")
            elif not batch.registered:
                if online:
                    await self._register(batch)
            elif not batch.intended:
                if online:
                    await self._submit(batch)
            elif batch.scheduler_id is None:
                await self._reconcile(batch)
            elif batch.cancel:
                await self._cancel(batch)
        except (ChappeError, OSError) as e:
            self._try_later(batch, e)
        else:
            self._delay.pop(batch.id, None)

    def _try_later(self, batch: Batch, error: Exception) -> None:
        delay = min(MOST_DELAY_S, self._delay.get(batch.id, FIRST_DELAY_S / 2) * 2)
        self._delay[batch.id] = delay
        self._not_before[batch.id] = boottime() + delay
        log.warning("batch job: trying again", batch_job=batch.id, in_s=delay, error=str(error))

    async def _register(self, batch: Batch) -> None:
        try:
            if batch.wanted.kept:
                await self._hub.request(
                    "POST",
                    "/v1/batch-jobs",
                    NewBatchJob(batch.id, self._config.site.id, batch.wanted.intent),
                    BatchJobView,
                    retry=NO_RETRY,
                )
            reply = await self._hub.request(
                "POST",
                "/v1/sessions",
                NewSession(batch.session, batch.id),
                NewSessionReply,
                retry=NO_RETRY,
            )
        except (Conflict, Gone, Invalid, NotFound) as e:
            self._end_or_go_on(batch, Phase.FAILED, f"the hub refused it: {e.message}")
            return
        try:
            sessions.write_session(self._paths, self._config, batch.wanted.intent, reply)
            self._write_script(batch)
        except Invalid as e:
            self._end_or_go_on(batch, Phase.FAILED, e.message)
            return
        self._book.add(Registered(batch.id))
        faults.reach("agent.after_registered")
        await self._submit(batch)

    def _write_script(self, batch: Batch) -> None:
        sessions.write_script(
            self._paths,
            self._config,
            self._scheduler,
            batch.wanted.intent,
            NAME.format(id=batch.id),
            batch.session,
        )

    async def _submit(self, batch: Batch) -> None:
        """Call the scheduler. Whatever happens after the first line, it may have the job."""
        self._book.add(Intended(batch.id))
        faults.reach("agent.after_intent")
        await self._call_submit(batch)

    async def _call_submit(self, batch: Batch) -> None:
        self._tries[batch.id] = self._tries.get(batch.id, 0) + 1
        script = self._paths.session(batch.session) / sessions.SCRIPT
        name = NAME.format(id=batch.id)
        ran = await run(self._scheduler.submit_command(str(script), name))
        faults.reach("agent.after_submit")
        if ran.exit_code is None:
            raise TimeoutError(ran.stderr)
        try:
            found = self._scheduler.parse_submit(ran.stdout, ran.stderr, ran.exit_code)
        except SubmitRefused as e:
            self._end_or_go_on(batch, Phase.FAILED, e.message)
            return
        self._submitted(batch, found)

    def _submitted(self, batch: Batch, scheduler_id: str) -> None:
        self._book.add(Submitted(batch.id, scheduler_id))
        log.info("submitted", batch_job=batch.id, scheduler_id=scheduler_id)
        self._wakeups.report.set()
        self._wakeups.watch.set()

    async def _reconcile(self, batch: Batch) -> None:
        """Nobody knows whether the scheduler has it: look for its name; only without it, submit."""
        name = NAME.format(id=batch.id)
        ran = await checked(self._scheduler.find_command(name))
        ids = self._scheduler.parse_find(ran.stdout, name)
        if ids:
            log.info("found at the scheduler", batch_job=batch.id, scheduler_ids=ids)
            self._submitted(batch, ids[0])
        elif batch.cancel:
            self._end_or_go_on(batch, Phase.CANCELLED, "cancelled before it was submitted")
        elif self._tries.get(batch.id, 0) >= SUBMIT_TRIES:
            self._end_or_go_on(batch, Phase.FAILED, "the scheduler did not take it, see the log")
        elif self._wakeups.online.is_set():
            await self._call_submit(batch)

    async def _cancel(self, batch: Batch) -> None:
        assert batch.scheduler_id is not None  # noqa: S101 - the caller's condition
        await checked(self._scheduler.cancel_command(batch.scheduler_id))
        log.info("cancelled at the scheduler", batch_job=batch.id)
        # Should it be lost: the scheduler is told again until it says that the job is over.
        self._not_before[batch.id] = boottime() + CANCEL_AGAIN_S
        self._wakeups.watch.set()

    def _end_or_go_on(self, batch: Batch, phase: Phase, message: str) -> None:
        at = now()
        self._book.add(Said(batch.id, phase, message, at))
        if batch.over:
            faults.reach("agent.after_end_seen")
            log.info("allocation over", batch_job=batch.id, phase=str(phase), message=message)
            if batch.wanted.kept:
                self._slow_down(at - batch.wanted.at)
            self._wakeups.bury.set()
            self._wakeups.batches.set()
        self._wakeups.report.set()

    def _slow_down(self, lived_s: float) -> None:
        """Pilots that die at once are not asked for as fast as they die."""
        self._quick_deaths = self._quick_deaths + 1 if lived_s < QUICK_DEATH_S else 0
        if self._quick_deaths:
            delay = min(MOST_DELAY_S, FIRST_DELAY_S * 2 ** (self._quick_deaths - 1))
            self._keep_after = boottime() + delay
            log.info("waiting before the next pilot", in_s=delay, quick_deaths=self._quick_deaths)


async def checked(argv: list[str]) -> Ran:
    """Run a command that must succeed. Raises OSError when it does not."""
    ran = await run(argv)
    if ran.exit_code != 0:
        raise OSError(f"{argv[0]} … ended with {ran.exit_code}: {ran.stderr.strip()[-300:]}")
    return ran
