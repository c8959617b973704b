"""From a wish to an allocation, submitted once (promise I12).

The scheduler is called only after the intention to do so was written down. A crash in between leaves the
only question that matters: did the scheduler get it? It is asked for our name first, and the job is submitted
again only if it knows none. Nothing new is submitted while the Hub is away. Nothing here touches a running
pilot, except when the Hub orders a cancel.
"""

from __future__ import annotations

import structlog

from chappe.core import faults
from chappe.core.errors import ChappeError, Conflict, Gone, Invalid, NotFound
from chappe.link.clock import boottime
from chappe.link.http import NO_RETRY, HubClient
from chappe.site import sessions
from chappe.site.batch import FIRST_DELAY_S, MOST_DELAY_S, BatchJobs
from chappe.site.book import Batch, Intended, Registered
from chappe.site.command import checked, run
from chappe.site.config import SiteConfig
from chappe.site.paths import SitePaths
from chappe.site.schedulers.base import Phase, Scheduler, SubmitRefused
from chappe.site.wakeup import Wakeups, wait_for
from chappe.wire.sites import BatchJobView, NewBatchJob, NewSession, NewSessionReply

log = structlog.get_logger()

NAME = "chappe-{id}"
CANCEL_AGAIN_S = 60.0
SUBMIT_TRIES = 5
REFUSALS = (Conflict, Gone, Invalid, NotFound)


class Steps:
    """The loop that brings each BatchJob one step further."""

    def __init__(
        self,
        paths: SitePaths,
        config: SiteConfig,
        scheduler: Scheduler,
        hub: HubClient,
        jobs: BatchJobs,
        wakeups: Wakeups,
    ) -> None:
        self._paths = paths
        self._config = config
        self._scheduler = scheduler
        self._hub = hub
        self._jobs = jobs
        self._wakeups = wakeups
        self._delay: dict[str, float] = {}
        self._not_before: dict[str, float] = {}
        self._tries: dict[str, int] = {}

    async def run(self) -> None:
        """Bring each BatchJob a step further, and keep as many pilots as the configuration says."""
        while True:
            if self._wakeups.online.is_set():
                self._jobs.keep()
            batches = self._jobs.all()
            for batch in batches:
                if boottime() >= self._not_before.get(batch.id, 0.0):
                    await self._advance(batch)
            self._forget_all_but({batch.id for batch in batches})
            await wait_for(self._wakeups.batches, self._next_step_s())

    def _forget_all_but(self, known: set[str]) -> None:
        for memory in (self._delay, self._not_before, self._tries):
            for gone in set(memory) - known:
                del memory[gone]

    def _next_step_s(self) -> float | None:
        times = list(self._not_before.values())
        again = self._jobs.keep_again_at()
        if again is not None and self._wakeups.online.is_set():
            times.append(again)
        return max(0.05, min(times) - boottime()) if times else None

    async def _advance(self, batch: Batch) -> None:
        """One step, chosen by what the book says. A step that fails is tried again later."""
        online = self._wakeups.online.is_set()
        self._not_before.pop(batch.id, None)
        try:
            if batch.over:
                return
            if batch.cancel and not batch.intended:
                self._jobs.now_is(batch, Phase.CANCELLED, "cancelled before it was submitted")
            elif not batch.registered:
                if online and batch.intended:
                    await self._register_again(batch)
                elif online:
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
                await self._make_known(batch)
            reply = await self._open_session(batch)
        except REFUSALS as e:
            self._jobs.now_is(batch, Phase.FAILED, f"the hub refused it: {e.message}")
            return
        try:
            self._write_session(batch, reply)
            self._write_script(batch)
        except Invalid as e:
            self._jobs.now_is(batch, Phase.FAILED, e.message)
            return
        self._jobs.add(Registered(batch.id))
        faults.reach("agent.after_registered")
        await self._submit(batch)

    async def _register_again(self, batch: Batch) -> None:
        """The Hub has forgotten an allocation that may live. Its pilot finds a new token, and tells the Hub
        what it holds. A refusal leaves it alone: what runs there runs, whatever the Hub thinks of it."""
        try:
            await self._make_known(batch)
            self._write_session(batch, await self._open_session(batch))
        except REFUSALS as e:
            log.warning("the hub does not take a batch job back", batch_job=batch.id, why=e.message)
        self._jobs.add(Registered(batch.id))
        self._wakeups.report.set()

    async def _make_known(self, batch: Batch) -> None:
        await self._hub.request(
            "POST",
            "/v1/batch-jobs",
            NewBatchJob(batch.id, self._config.site.id, batch.wanted.intent),
            BatchJobView,
            retry=NO_RETRY,
        )

    async def _open_session(self, batch: Batch) -> NewSessionReply:
        return await self._hub.request(
            "POST",
            "/v1/sessions",
            NewSession(batch.session, batch.id),
            NewSessionReply,
            retry=NO_RETRY,
        )

    def _write_session(self, batch: Batch, reply: NewSessionReply) -> None:
        intent = batch.wanted.intent
        sessions.write_session(self._paths, self._config, intent, batch.session, reply)

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
        self._jobs.add(Intended(batch.id))
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
            self._jobs.now_is(batch, Phase.FAILED, e.message)
            return
        self._jobs.submitted(batch, found)

    async def _reconcile(self, batch: Batch) -> None:
        """Nobody knows whether the scheduler has it: look for its name; only without it, submit."""
        name = NAME.format(id=batch.id)
        ran = await checked(self._scheduler.find_command(name))
        ids = self._scheduler.parse_find(ran.stdout, name)
        if ids:
            log.info("found at the scheduler", batch_job=batch.id, scheduler_ids=ids)
            self._jobs.submitted(batch, ids[0])
        elif batch.cancel:
            self._jobs.now_is(batch, Phase.CANCELLED, "cancelled before it was submitted")
        elif self._tries.get(batch.id, 0) >= SUBMIT_TRIES:
            self._jobs.now_is(batch, Phase.FAILED, "the scheduler did not take it, see the log")
        elif self._wakeups.online.is_set():
            await self._call_submit(batch)

    async def _cancel(self, batch: Batch) -> None:
        assert batch.scheduler_id is not None  # noqa: S101 - the caller's condition
        await checked(self._scheduler.cancel_command(batch.scheduler_id))
        log.info("cancelled at the scheduler", batch_job=batch.id)
        # Should it be lost: the scheduler is told again until it says that the job is over.
        self._not_before[batch.id] = boottime() + CANCEL_AGAIN_S
        self._wakeups.watch.set()
