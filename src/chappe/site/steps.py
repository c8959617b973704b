"""From a wish to an allocation, submitted once (promise I12).

The scheduler is called only after the intention to do so was written down. A crash in between leaves the
only question that matters: did the scheduler get it? It is asked for our name first, and the job is submitted
again only if it knows none, if no script of it has begun (for schedulers forget), and not too soon: a
submission that timed out may still be taken up. Nothing new is submitted while the Hub is away, nor faster or
more than the Site's policy allows. Nothing here touches a running pilot, except when the Hub orders a cancel.
"""

from __future__ import annotations

import msgspec
import structlog

from chappe.core import faults
from chappe.core.batchjobs import check_intent
from chappe.core.errors import ChappeError, Conflict, Gone, Invalid, NotFound
from chappe.core.policy import Standing, check_allowed, room
from chappe.link.clock import boottime
from chappe.link.http import NO_RETRY, HubClient
from chappe.site import sessions
from chappe.site.batch import BatchJobs
from chappe.site.book import Batch, Intended, Registered
from chappe.site.calls import Calls, LeftAlone
from chappe.site.command import TIMEOUT_S
from chappe.site.config import SiteConfig
from chappe.site.elastic import FIRST_DELAY_S, MOST_DELAY_S, Elastic
from chappe.site.paths import SitePaths
from chappe.site.schedulers.base import (
    Phase,
    Scheduler,
    SchedulerDown,
    SubmitRefused,
    SubmitUnclear,
)
from chappe.site.wakeup import Wakeups, wait_for
from chappe.wire.sites import (
    BatchJobIntent,
    BatchJobView,
    NewBatchJob,
    NewSession,
    NewSessionReply,
    StrictIntent,
)

log = structlog.get_logger()

CANCEL_AGAIN_S = 60.0
ROOM_AGAIN_S = 60.0
SUBMIT_TRIES = 5
REFUSALS = (Conflict, Gone, Invalid, NotFound)


class Steps:
    """The loop that brings each BatchJob one step further."""

    def __init__(
        self,
        paths: SitePaths,
        config: SiteConfig,
        scheduler: Scheduler,
        calls: Calls,
        hub: HubClient,
        jobs: BatchJobs,
        elastic: Elastic,
        wakeups: Wakeups,
    ) -> None:
        self._paths = paths
        self._config = config
        self._scheduler = scheduler
        self._calls = calls
        self._hub = hub
        self._jobs = jobs
        self._elastic = elastic
        self._wakeups = wakeups
        self._delay: dict[str, float] = {}
        self._not_before: dict[str, float] = {}
        self._tries: dict[str, int] = {}
        self._cancelled: dict[str, float] = {}
        # Submissions by an agent before this one may still be on their way.
        self._doubtful_until = dict.fromkeys(
            (b.id for b in jobs.all() if b.intended and b.scheduler_id is None),
            boottime() + scheduler.quirks.settle_s,
        )

    async def run(self) -> None:
        """Bring each BatchJob a step further, and ask for as many allocations as the policy wants."""
        while True:
            if self._wakeups.online.is_set():
                self._elastic.look()
            batches = self._jobs.all()
            for batch in batches:
                if boottime() >= self._not_before.get(batch.id, 0.0):
                    await self._advance(batch)
            self._jobs.spare_begun(self._cancelled)
            await self._cancel([b for b in batches if self._to_cancel(b)])
            self._forget_all_but({batch.id for batch in batches})
            await wait_for(self._wakeups.batches, self._next_step_s())

    def _forget_all_but(self, known: set[str]) -> None:
        memories = (
            self._delay,
            self._not_before,
            self._tries,
            self._cancelled,
            self._doubtful_until,
        )
        for memory in memories:
            for gone in set(memory) - known:
                del memory[gone]

    def _next_step_s(self) -> float | None:
        times = list(self._not_before.values())
        again = self._elastic.again_at()
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
                elif online and not self._jobs.awaits_another(batch):
                    await self._register(batch)
            elif not batch.intended:
                if online:
                    await self._submit(batch)
            elif batch.scheduler_id is None:
                await self._reconcile(batch)
        except LeftAlone as e:
            self._not_before[batch.id] = boottime() + e.wait_s
            log.info("batch job: not now", batch_job=batch.id, in_s=e.wait_s, why=e.message)
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
            wanted = sessions.with_defaults(self._config, batch.wanted.intent)
            check_intent(wanted)
            check_allowed(self._config.policy, wanted)
        except Invalid as e:
            self._jobs.now_is(batch, Phase.FAILED, e.message)
            return
        self._check_room(wanted)
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

    def _check_room(self, wanted: BatchJobIntent) -> None:
        """Raise LeftAlone unless the policy lets this be submitted now."""
        standing = []
        for batch in self._jobs.all():
            if batch.intended and not batch.over:
                has = sessions.with_defaults(self._config, batch.wanted.intent)
                standing.append(Standing(has.queue, has.nodes, batch.phase is not Phase.RUNNING))
        if why := room(self._config.policy, wanted, standing):
            raise LeftAlone(f"the site's policy: {why}", ROOM_AGAIN_S)
        if wait_s := self._calls.submit_wait_s():
            raise LeftAlone("the site's policy sets the pace of submissions", wait_s)

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
        strict = msgspec.convert(batch.wanted.intent, StrictIntent, from_attributes=True)
        await self._hub.request(
            "POST",
            "/v1/batch-jobs",
            NewBatchJob(batch.id, self._config.site.id, strict),
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
        idle_s = batch.wanted.idle_s
        sessions.write_session(self._paths, self._config, intent, batch.session, reply, idle_s)

    def _write_script(self, batch: Batch) -> None:
        sessions.write_script(
            self._paths,
            self._config,
            self._scheduler,
            batch.wanted.intent,
            batch.name,
            batch.session,
        )

    async def _submit(self, batch: Batch) -> None:
        """Call the scheduler. Whatever happens after the intention is written, it may have the job."""
        # Many may have been registered while the scheduler was left alone, and found room then.
        wanted = sessions.with_defaults(self._config, batch.wanted.intent)
        self._check_room(wanted)
        self._calls.take_submission()
        self._jobs.add(Intended(batch.id, wanted.wall_s or 0.0))
        faults.reach("agent.after_intent")
        await self._call_submit(batch)

    async def _call_submit(self, batch: Batch) -> None:
        self._tries[batch.id] = self._tries.get(batch.id, 0) + 1
        script = self._paths.session(batch.session) / sessions.SCRIPT
        argv = self._scheduler.submit_command(str(script), batch.name)

        def parse(stdout: str, stderr: str, exit_code: int) -> str:
            faults.reach("agent.after_submit")
            return self._scheduler.parse_submit(stdout, stderr, exit_code)

        # Until there is a clear answer, one that comes late is possible.
        self._doubtful_until[batch.id] = boottime() + TIMEOUT_S + self._scheduler.quirks.settle_s
        try:
            found = await self._calls.ask("submit", argv, parse)
        except SubmitRefused as e:
            self._jobs.now_is(batch, Phase.FAILED, e.message)
            return
        except (SchedulerDown, LeftAlone):
            del self._doubtful_until[batch.id]
            raise
        except (SubmitUnclear, OSError):
            self._doubtful_until[batch.id] = boottime() + self._scheduler.quirks.settle_s
            raise
        self._jobs.submitted(batch, found)

    async def _reconcile(self, batch: Batch) -> None:
        """Nobody knows whether the scheduler has it: look for its name; only without it, submit."""
        ids = await self._find(batch.name)
        claimed = sessions.claimed_by(self._paths, batch.session)
        if claimed and self._scheduler.quirks.shared:
            # It began, whatever the scheduler knows of it: it may have lost its memory. (Our own forgets
            # nothing, and inside of an allocation the id would be that one's.)
            ids = [claimed, *(i for i in ids if i != claimed)]
        left_s = self._doubtful_until.get(batch.id, 0.0) - boottime()
        if ids:
            log.info("found at the scheduler", batch_job=batch.id, scheduler_ids=ids)
            if ids[1:]:
                log.error("submitted more than once: cancelling all but the first", ids=ids)
                await self._cancel_ids(ids[1:])
            self._jobs.submitted(batch, ids[0])
        elif claimed is not None:
            why = "its script has begun, and the scheduler does not know it"
            if wait_s := self._jobs.pass_claimed(batch):
                raise LeftAlone(why, wait_s)
        elif left_s > 0:
            raise LeftAlone("a submission without an answer may still be taken up", left_s)
        elif batch.cancel:
            self._jobs.now_is(batch, Phase.CANCELLED, "cancelled before it was submitted")
        elif self._tries.get(batch.id, 0) >= SUBMIT_TRIES:
            self._jobs.now_is(batch, Phase.FAILED, "the scheduler did not take it, see the log")
        elif self._wakeups.online.is_set():
            self._calls.take_submission()
            await self._call_submit(batch)

    async def _find(self, name: str) -> list[str]:
        """The ids that the scheduler has for a name; all its sources must have answered."""
        found: list[str] = []
        for argv in self._scheduler.find_commands(name):
            found += await self._calls.ask(
                "find",
                argv,
                lambda out, err, code: self._scheduler.parse_find(out, name, err, code),
            )
        return list(dict.fromkeys(found))

    def _to_cancel(self, batch: Batch) -> bool:
        due = boottime() >= self._not_before.get(batch.id, 0.0)
        return due and batch.cancel and batch.scheduler_id is not None and not batch.over

    async def _cancel(self, batches: list[Batch]) -> None:
        """Cancel these, many with one command. Should one be lost, the scheduler is told again until it says
        that the job is over."""
        for first in range(0, len(batches), self._config.policy.cancel_batch):
            some = batches[first : first + self._config.policy.cancel_batch]
            try:
                await self._cancel_ids([b.scheduler_id for b in some if b.scheduler_id is not None])
            except (ChappeError, OSError) as e:
                for batch in some:
                    self._try_later(batch, e)
                continue
            for batch in some:
                log.info("cancelled at the scheduler", batch_job=batch.id)
                self._cancelled[batch.id] = boottime()
                self._not_before[batch.id] = boottime() + CANCEL_AGAIN_S
            self._wakeups.watch.set()

    async def _cancel_ids(self, ids: list[str]) -> None:
        argv = self._scheduler.cancel_command(ids)
        await self._calls.ask("cancel", argv, self._scheduler.parse_cancel)
