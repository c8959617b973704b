"""The pilot's head: holds the Session, and lets grants, starts, ends and verdicts find each other.

Four things go on at once, and none waits for another: the contact with the Hub, the disk thread, the orders
to the launcher, and the clock. What each learns changes `Holdings` and `Outbox`, which decide; this module
and `works` pass on what they say. Batches, everywhere: what came while one was worked off makes the next.

The end. The Session is drained when the Hub says so, when its allocation nears its end, when it was idle
for long, or on SIGTERM: nothing more is asked for, what has not begun goes back, what runs may end by itself
for as long as there is time. When all is reported the Session is ended, and with it the pilot.
"""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from math import inf
from pathlib import Path
from typing import Any

from structlog.types import FilteringBoundLogger

from chappe.core import limits
from chappe.core.errors import ChappeError, SessionDead, Unavailable
from chappe.core.faults import reach
from chappe.core.ids import is_uuid7
from chappe.core.leases import Verdict
from chappe.link.clock import boottime, now
from chappe.link.http import HubClient
from chappe.link.joblogs import JobLogs
from chappe.link.journal import End
from chappe.link.logdesk import LogDesk
from chappe.link.values import Seal
from chappe.pilot import session as sessions
from chappe.pilot.adoption import Adoption
from chappe.pilot.contact import Contact, Sent
from chappe.pilot.crew import Crew
from chappe.pilot.desk import Arrival, Desk
from chappe.pilot.hand_wire import read_place
from chappe.pilot.hands import Hands, together
from chappe.pilot.holdings import Holdings
from chappe.pilot.hosts import Hosts
from chappe.pilot.job_env import base_env
from chappe.pilot.journal import Journal
from chappe.pilot.keeper import Keeper
from chappe.pilot.launch_wire import Events, Snapshot
from chappe.pilot.lifetime import Lifetime, Step
from chappe.pilot.log import LogFile
from chappe.pilot.outbox import Outbox
from chappe.pilot.pacing import POLL_S
from chappe.pilot.parents import Parents
from chappe.pilot.placement import Placement
from chappe.pilot.prepare import Preparer
from chappe.pilot.reunion import Reunion
from chappe.pilot.session import Session
from chappe.pilot.uploads import Uploads
from chappe.pilot.works import Works
from chappe.wire.sites import EndSession
from chappe.wire.sync import SyncReply, SyncRequest

CRASH_POINTS = (
    "pilot.after_grant_journal",
    "pilot.after_claim",
    "pilot.after_launch_sent",
    "pilot.after_end_journal",
    "pilot.before_result_put",
    "pilot.before_report_sync",
    "pilot.after_report_ack",
)
"""Where a test may kill the head (see `core.faults`)."""

EXIT_DONE = 0
EXIT_AGAIN = 1
EXIT_SESSION_OVER = 3
"""Exit statuses: all is done; another head should go on; the Hub has declared the Session dead."""

_KILL_GRACE_S = 10.0
_LOOK_S = 60.0


class Head:
    """One Session's head. `lifetime` is already set to the allocation's end."""

    def __init__(
        self,
        session: Session,
        directory: Path,
        hub: HubClient,
        journal: Journal,
        placement: Placement,
        lifetime: Lifetime,
        log: FilteringBoundLogger,
        file: LogFile,
        hosts: Hosts | None = None,
    ) -> None:
        self._session = session
        self._directory = directory
        self._hub = hub
        self._journal = journal
        self._lifetime = lifetime
        self._log = log
        self._pool = ThreadPoolExecutor(1, "disk")
        self._preparer = Preparer(session, directory)
        self._desk = Desk(directory, journal, self._preparer)
        self._holdings = Holdings(placement, session.options.named)
        self._outbox = Outbox(journal.numbers.report_no)
        seal = Seal(session.site, Path(session.site_dir) / "secrets")
        self._uploads = Uploads(hub, self._disk, self._uploaded, seal)
        self._contact = Contact(
            hub,
            log,
            build=self._build,
            waiting=lambda: len(self._outbox) + self._holdings.returns,
            urgent=lambda: self._outbox.urgent or self._holdings.returns > 0,
            backlog=lambda: self._holdings.backlog,
            answered=self._answered,
            failed=self._failed,
            check_token=self._check_token,
        )
        own = placement.nodes[0].name
        env = base_env(session, os.environ)
        keeper = Keeper(session, directory, env, log, file, self._hear, own)
        self._keeper = Crew(keeper, self._hear_soon, own)
        self._works = Works(
            holdings=self._holdings,
            outbox=self._outbox,
            lifetime=lifetime,
            desk=self._desk,
            keeper=self._keeper,
            uploads=self._uploads,
            parents=Parents(hub, session, directory, self._disk, seal),
            disk=self._disk,
            log=log,
            due=self._contact.due,
            alarm=self._alarm,
        )
        self._works.request_no = journal.numbers.request_no
        self._logs = LogDesk(
            hub,
            JobLogs(Path(session.site_dir), session.data, session.functions),
            self._holdings.runs,
            lambda e: log.warning("logs.not_sent", error=e.message),
        )
        self._reunion = Reunion(self._holdings, self._works, self._keeper, log)
        self._hands: Hands | None = None
        if hosts is not None:
            self._hands = Hands(session, directory, hosts, self._reunion, log, file)
            self._keeper.lead(self._hands)
        self._early: list[Events] | None = []
        self._answered_no = 0
        self._seen = (0, 0)
        self._alarmed = asyncio.Event()
        self._over: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def run(self) -> int:
        """Hold the Session to its end; the exit status. Errors that a new head may get over are raised."""
        await self._disk(self._journal.reserve, self._works.request_no, self._outbox.last_no)
        tasks = await self._begin()
        tasks += [
            asyncio.create_task(part)
            for part in (
                self._contact.run(),
                self._keeper.run(self._works.lost, self._works.wake),
                self._works.run(),
                self._watch_clock(),
            )
        ]
        parts: list[asyncio.Future[Any]] = [self._over, *tasks]
        try:
            await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            status = self._over.result() if self._over.done() else await self._first(tasks)
            await self._end(status, tasks)
            return status
        except BaseException:
            # Another head takes over what runs.
            self._keeper.leave()
            raise
        finally:
            await _cancel(tasks)
            self._logs.close()
            self._pool.shutdown(wait=False, cancel_futures=True)

    def sigterm(self) -> None:
        """The allocation is to end."""
        self._log.info("sigterm")
        self._lifetime.sigterm(boottime())
        self._works.drain()
        self._alarmed.set()

    def fail(self, error: BaseException) -> None:
        """Something broke that nobody handles: let a new head go on."""
        if not self._over.done():
            self._over.set_exception(error)

    # --- the Hub

    def _build(self) -> Sent:
        at = boottime()
        numbers = self._journal.numbers
        ahead = len(self._outbox)
        if self._works.request_no >= numbers.request_no or (
            self._outbox.last_no + ahead > numbers.report_no
        ):
            raise Unavailable("the journal takes no more numbers: the site's disk is full")
        self._works.request_no += 1
        returned = self._holdings.returning()
        reports = self._outbox.take(limits.REPORTS_PER_SYNC)
        self._holdings.reporting(r.job for r in reports if r.kind != "start")
        asking = not self._lifetime.draining and not self._works.paused
        request = SyncRequest(
            self._session.session,
            self._works.request_no,
            self._answered_no,
            self._seen,
            held=self._holdings.held(),
            returned=returned,
            reports=reports,
            capacity=self._holdings.capacity(self._lifetime.left_s(at), at) if asking else None,
            hard_end_in_s=self._lifetime.ends_in_s(at),
            have_submissions=self._desk.known,
            # What a predecessor held may begin only after the first answer: that one is not to be held.
            wait_s=POLL_S if self._works.contact_made and not reports and not returned else 0.0,
            logs_seen=self._logs.seen,
        )
        return Sent(request, self._holdings.last_order(), boottime())

    def _answered(self, sent: Sent, reply: SyncReply) -> bool:
        """Take in a reply; whether it brought grants, so that there will soon be something to report."""
        self._answered_no = max(self._answered_no, sent.request.request_no)
        self._seen = max(self._seen, (reply.incarnation, reply.commit_no))
        self._settle(reply)
        for back in sent.request.returned:
            self._works.settled(back.job, back.epoch)
        self._holdings.returned(sent.request.returned)
        for lost in reply.unknown:
            dropped = self._holdings.disowned(lost.job, lost.epoch)
            if dropped is not None:
                self._works.settled(dropped.job, dropped.epoch)
        deadlines = self._holdings.renewed(sent.order, sent.sent_at)
        if deadlines:
            self._keeper.renew(deadlines)
        if reply.kill:
            self._works.kill([(kill.job, kill.epoch) for kill in reply.kill], _KILL_GRACE_S)
        if reply.grants or reply.submissions:
            self._take(sent, reply)
        self._logs.take(reply.logs)
        if not self._works.contact_made:
            self._works.contact_made = True
            self._works.todo()
        if reply.drain and not self._lifetime.draining:
            self._lifetime.drain()
            self._works.drain()
        if self._lifetime.busy(len(self._holdings) > 0, boottime()) or reply.drain:
            self._alarm()
        self._check_over()
        return bool(reply.grants)

    def _settle(self, reply: SyncReply) -> None:
        odd: dict[str, int] = {}
        for draft, verdict in self._outbox.settle(reply.verdicts):
            if verdict not in (Verdict.APPLIED, Verdict.DUPLICATE):
                odd[verdict] = odd.get(verdict, 0) + 1
            if isinstance(draft, End):
                self._works.reported(draft)
        if reply.verdicts:
            reach("pilot.after_report_ack")
        if odd:
            self._log.warning("reports.not_applied", **odd)

    def _take(self, sent: Sent, reply: SyncReply) -> None:
        # What is no id names no Job; and a Hub that grants without end is none of ours. What is not held
        # is the Hub's again.
        room = max(0, limits.HELD_PER_SESSION - len(self._holdings))
        grants = [grant for grant in reply.grants if is_uuid7(grant.job)][:room]
        new, refusals = self._holdings.granted(grants, sent.sent_at, now())
        for h in new:
            h.request_no = sent.request.request_no
        for refusal in refusals:
            self._works.report(refusal)
        if self._lifetime.draining:
            for h in new:
                self._holdings.give_back(h)
            return
        kept = {h.job for h in new}
        self._works.arrive(
            Arrival(
                sent.request.request_no,
                (reply.incarnation, reply.commit_no),
                [grant for grant in grants if grant.job in kept],
                new,
                reply.submissions,
            )
        )

    def _failed(self, sent: Sent) -> None:
        self._outbox.give_back()
        self._log.error("sync.refused", request_no=sent.request.request_no)

    def _check_token(self) -> None:
        """The Hub does not take our token. If the agent has got a new one, a new head begins with it."""
        if sessions.read_token(self._session) != sessions.read_token(
            sessions.load(self._directory)
        ):
            raise Unavailable("the session has a new token")

    def _uploaded(self, end: End) -> None:
        self._outbox.add_end(end)
        self._contact.due()

    # --- the launcher

    def _hear(self, events: Events) -> None:
        # Before all is adopted, an end would seem to be nobody's.
        if self._early is None:
            self._works.hear(events)
        else:
            self._early.append(events)

    def _hear_soon(self, events: Events) -> None:
        # Not while orders are being given: what comes back would change them.
        asyncio.get_running_loop().call_soon(self._hear, events)

    # --- the clock

    def _alarm(self) -> None:
        """A time may have changed at which something is due."""
        self._alarmed.set()

    async def _watch_clock(self) -> None:
        while True:
            self._alarmed.clear()
            self._do_what_is_due(boottime())
            self._check_over()
            stale_at = self._holdings.stale_at()
            next_at = min(self._lifetime.next_at(), inf if stale_at is None else stale_at)
            # asyncio's clock stands still while the node is suspended: look once a minute.
            wait_s = min(_LOOK_S, max(0.0, next_at - boottime()))
            try:
                async with asyncio.timeout(wait_s if next_at < inf else None):
                    await self._alarmed.wait()
            except TimeoutError:
                continue

    def _do_what_is_due(self, at: float) -> None:
        if self._holdings.return_stale(at):
            self._contact.due()
        while (step := self._lifetime.due(at)) is not None:
            match step:
                case Step.DRAIN:
                    self._works.drain()
                case Step.END_JOBS:
                    self._works.drain()
                    self._works.end_running(self._lifetime.grace_s)
                case Step.GIVE_UP:
                    self._log.error("gave_up", held=len(self._holdings))
                    self._finish(EXIT_AGAIN)
                    return

    def _check_over(self) -> None:
        if (
            self._lifetime.draining
            # What an answer grants meanwhile is handed back: else the Hub must take it for begun.
            and not self._contact.asks
            and not len(self._holdings)
            and not self._holdings.returns
            and self._outbox.empty
            and self._works.idle
        ):
            self._finish(EXIT_DONE)

    def _finish(self, status: int) -> None:
        if not self._over.done():
            self._over.set_result(status)

    # --- beginning and end

    async def _open_hands(self, hands: Hands) -> asyncio.Task[None]:
        """Listen to hands; those that a predecessor left are waited for, to hear what they have."""
        again = read_place(self._directory) is not None
        await hands.open(again=again)
        task = asyncio.create_task(hands.run())
        if again:
            known = asyncio.create_task(hands.all_known())
            await asyncio.wait((task, known), return_when=asyncio.FIRST_COMPLETED)
            known.cancel()
        return task

    async def _begin(self) -> list[asyncio.Task[None]]:
        """Take over what there is, as far as it can be heard. Returned is what goes on already."""
        recovered = self._journal.recover()
        snapshot = await self._keeper.open()
        hands = [] if self._hands is None else [await self._open_hands(self._hands)]
        missing = set() if self._hands is None else self._hands.missing()
        others = [s for node, s in self._reunion.snapshots.items() if node not in missing]
        if others:
            nothing = Snapshot(self._session.session, 0, [], [], [], more=False)
            snapshot = together([snapshot or nothing, *others])
        self._answered_no, self._seen = recovered.answered, recovered.seen
        if recovered.grants or recovered.ends or snapshot is not None:
            adoption = Adoption(
                holdings=self._holdings,
                outbox=self._outbox,
                works=self._works,
                keeper=self._keeper,
                desk=self._desk,
                preparer=self._preparer,
                disk=self._disk,
                log=self._log,
            )
            sure = self._hands is None
            await adoption.adopt(recovered, snapshot, sure=sure, missing=bool(missing))
        early, self._early = self._early or [], None
        for events in early:
            self._works.hear(events)
        self._reunion.adopted(missing)
        self._lifetime.busy(len(self._holdings) > 0, boottime())
        if self._lifetime.draining:
            self._works.drain()
        self._works.todo()
        return hands

    async def _first(self, tasks: list[asyncio.Task[None]]) -> int:
        """The exit status after one of our parts ended by itself."""
        for task in tasks:
            if task.done():
                try:
                    task.result()
                except SessionDead as e:
                    self._log.error("session.dead", error=e.message)
                    return EXIT_SESSION_OVER
        raise Unavailable("a part of the pilot ended")

    async def _end(self, status: int, tasks: list[asyncio.Task[None]]) -> None:
        """Leave nothing behind: no process, and if all is reported no Session."""
        await self._keeper.stop(kill=status != EXIT_DONE)
        await _cancel(tasks)
        if status == EXIT_DONE:
            try:
                await self._hub.request(
                    "POST", f"/v1/sessions/{self._session.session}/end", EndSession()
                )
            except ChappeError as e:
                # The agent will say so when the allocation is over.
                self._log.warning("session.end_failed", error=e.message)
        self._log.info("end", status=status)

    def _disk(self, work: Any, *args: Any) -> asyncio.Future[Any]:
        return asyncio.get_running_loop().run_in_executor(self._pool, work, *args)


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
