"""The agent's side of the Hub: hello, the Apps, the long poll for orders, and the reports.

The Hub being away is normal: the loops note it (`online`), wait longer and longer, and go on. A second
agent for one Site is not: the Hub refuses it, or tells the first that it was superseded; whoever is told
ends at once, and leaves the pilots alone.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import NamedTuple

import structlog

from chappe.core import faults, limits
from chappe.core.errors import ChappeError, Conflict, Forbidden, NotFound, Unauthenticated
from chappe.link.apps import AppProblem, load_app, to_view
from chappe.link.clock import boottime
from chappe.link.http import NO_RETRY, HubClient
from chappe.link.joblogs import JobLogs
from chappe.link.keys import KeyProblem, load_or_create
from chappe.link.logdesk import LogDesk
from chappe.site.batch import BatchJobs
from chappe.site.config import SiteConfig
from chappe.site.elastic import Elastic
from chappe.site.paths import SitePaths
from chappe.site.status import AgentRunning, hostname
from chappe.site.wakeup import Wakeups, wait_for
from chappe.wire.demand import Decision
from chappe.wire.sites import (
    AgentHello,
    AgentSync,
    AgentSyncReply,
    AppView,
    BatchJobReport,
    Listing,
    PublishApps,
)

log = structlog.get_logger()

FIRST_DELAY_S = 0.5
MOST_DELAY_S = 30.0
REFUSED_DELAY_S = 60.0
REPORTS = 500
LATE_S = 15.0
"""How long after `wait_s` an answer may come before the connection counts as lost."""
SPACING_S = 1.0
BURST = 20
"""Answers that may come at once, one after the other, before each is waited for as if it said nothing."""


class Superseded(ChappeError):
    """Another agent serves this Site now; this one ends, and its pilots go on."""

    default_code = "agent_superseded"


class AgentId(NamedTuple):
    """Which agent this process is, which before it are over, and whether the Hub heard its greeting."""

    agent: str
    before: tuple[str, ...]
    greeted: bool


async def greet(hub: HubClient, site: str, agent: str, before: Sequence[str]) -> None:
    """Say that this agent serves the Site now; `before` are agents that are over, of which the Hub may have
    heard one last. Raises AgentRunning, or what the Hub answers."""
    for previous in before or (None,):
        try:
            await hub.request(
                "POST",
                f"/v1/sites/{site}/agent",
                AgentHello(agent, hostname(), previous),
                retry=NO_RETRY,
            )
            return
        except Conflict as e:
            if e.code != "agent_present":
                raise
            refusal = e
    raise AgentRunning(f"this agent was not started: {refusal.message}")


class _Pace:
    """How fast a Hub may be asked again that answers at once: it may be broken, or in the wrong hands.
    News are followed up at once, `BURST` times, and then once in SPACING_S."""

    def __init__(self) -> None:
        self._left = float(BURST)
        self._at = boottime()

    async def after(self, began: float, *, news: bool) -> None:
        """Return when the Hub may be asked again. `began`: when it was asked (CLOCK_BOOTTIME); `news`:
        whether its answer was one worth following up."""
        at = boottime()
        self._left = min(float(BURST), self._left + (at - self._at) / SPACING_S)
        self._at = at
        if at - began >= SPACING_S:
            return
        if news and self._left >= 1.0:
            self._left -= 1.0
            return
        await asyncio.sleep(SPACING_S)
        # What was waited for here earns nothing.
        self._at = boottime()


class HubLoop:
    """Talks with the Hub for one agent."""

    def __init__(
        self,
        paths: SitePaths,
        config: SiteConfig,
        hub: HubClient,
        jobs: BatchJobs,
        elastic: Elastic,
        wakeups: Wakeups,
        me: AgentId,
    ) -> None:
        self._paths = paths
        self._hub = hub
        self._jobs = jobs
        self._wakeups = wakeups
        self._me = me
        self._base = f"/v1/sites/{config.site.id}"
        self._site = config.site.id
        self._elastic = elastic
        self._greeted = me.greeted
        self._functions = config.functions
        self._apps_seen: object = None
        self._incarnation: int | None = None
        self._seen = (0, 0)
        self._asked = False

    # -- orders ----------------------------------------------------------------------------

    async def listen(self) -> None:
        """Take orders, for ever. Raises AgentRunning or Superseded when another agent is the one."""
        logs = LogDesk(
            self._hub,
            JobLogs(self._paths.root, self._paths.data, self._functions),
            # What still runs is its pilot's to read.
            lambda _job, _attempt: False,
            lambda e: log.warning("a log could not be sent", error=e.message),
        )
        try:
            await self._listen(logs)
        finally:
            logs.close()

    async def _listen(self, logs: LogDesk) -> None:
        delay_s = FIRST_DELAY_S
        pace = _Pace()
        while True:
            began = boottime()
            try:
                news = await self._listen_once(logs)
            except ChappeError as e:
                delay_s = await self._pause(e, delay_s)
                continue
            delay_s = FIRST_DELAY_S
            if not self._wakeups.online.is_set():
                log.info("the hub answers")
                self._wakeups.online.set()
                self._wakeups.batches.set()
                self._wakeups.bury.set()
                self._wakeups.report.set()
            await pace.after(began, news=news)

    async def _listen_once(self, logs: LogDesk) -> bool:
        if not self._greeted:
            await greet(self._hub, self._site, self._me.agent, self._me.before)
            self._greeted = True
        if not self._asked:
            listing = await self._hub.request(
                "GET", "/v1/batch-jobs", None, Listing, params={"site": self._site}, retry=NO_RETRY
            )
            self._jobs.adopt(listing.batch_jobs or [])
            self._asked = True
        await self._publish()
        # The first poll does not wait: the rest of the agent learns at once that the Hub is there.
        wait_s = limits.WAIT_MAX_S if self._wakeups.online.is_set() else 0.0
        reply = await self._sync(wait_s=wait_s, logs_seen=logs.seen)
        asked = logs.take(reply.logs)
        return self._take(reply) or asked

    async def _sync(
        self,
        reports: Sequence[BatchJobReport] = (),
        wait_s: float = 0.0,
        logs_seen: int = 0,
        decisions: Sequence[Decision] = (),
    ) -> AgentSyncReply:
        request = AgentSync(
            self._me.agent,
            reports=list(reports),
            known=self._jobs.known(),
            sessions=self._jobs.sessions(),
            seen=self._seen,
            wait_s=wait_s,
            logs_seen=logs_seen,
            demand=self._elastic.mark,
            decisions=list(decisions),
        )
        asked_for = self._elastic.asked_for
        try:
            reply = await self._hub.request(
                "POST",
                f"{self._base}/sync",
                request,
                AgentSyncReply,
                timeout_s=request.wait_s + LATE_S,
                retry=NO_RETRY,
            )
        except Conflict as e:
            if e.code == "agent_superseded":
                raise Superseded(f"{e.message}; this agent ends, the pilots go on") from None
            raise
        self._seen = max(self._seen, (reply.incarnation, reply.commit_no))
        self._elastic.heard(reply.demand, asked_for)
        return reply

    def _take(self, reply: AgentSyncReply) -> bool:
        """Act on a reply; whether it said anything new."""
        news = self._jobs.take(reply.orders)
        self._jobs.unknown(reply.unknown)
        if self._jobs.heard_silent(reply.silent):
            self._wakeups.watch.set()
            news = True
        if self._incarnation not in (None, reply.incarnation):
            log.warning("the hub was restored from a backup", incarnation=reply.incarnation)
            self._apps_seen, self._asked = None, False
            news = True
        self._incarnation = reply.incarnation
        return news

    async def _pause(self, error: ChappeError, delay_s: float) -> float:
        """After an error: say it once, wait; the next delay. Raises what ends the agent."""
        if isinstance(error, AgentRunning | Superseded):
            raise error
        if isinstance(error, Unauthenticated | Forbidden | NotFound):
            log.error(
                "the hub does not know this site's token (revoked, or the site was deleted): make "
                "it anew with chappe site token, and restart the agent",
                error=error.message,
                again_in_s=REFUSED_DELAY_S,
            )
            delay_s = REFUSED_DELAY_S
        elif self._wakeups.online.is_set() or not error.transient:
            log.warning("no contact with the hub", error=error.message, code=error.code)
        self._wakeups.online.clear()
        await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
        return min(MOST_DELAY_S, 2 * delay_s)

    # -- reports ---------------------------------------------------------------------------------------

    async def report(self) -> None:
        """Pass on what became of BatchJobs, as soon as it is known. Raises Superseded."""
        delay_s = FIRST_DELAY_S
        pace = _Pace()
        while True:
            reports = self._jobs.reports()[:REPORTS]
            decisions = self._elastic.untold()
            if not reports and not decisions:
                await wait_for(self._wakeups.report)
                continue
            await self._wakeups.online.wait()
            faults.reach("agent.before_report")
            began = boottime()
            try:
                reply = await self._sync(reports, decisions=decisions)
            except Superseded:
                raise
            except ChappeError as e:
                log.warning("reports are kept for later", error=e.message, reports=len(reports))
                delay_s = min(MOST_DELAY_S, 2 * delay_s)
                await asyncio.sleep(delay_s)
                continue
            faults.reach("agent.after_report")
            taken = set(reply.accepted)
            accepted = [r for r in reports if r.id in taken]
            self._jobs.accepted(accepted)
            self._elastic.told(decisions, reply.decided)
            self._take(reply)
            if accepted or self._elastic.untold() != decisions:
                delay_s = FIRST_DELAY_S
                await pace.after(began, news=True)
            else:
                # It answers, and takes nothing: it would be told the same again and again.
                log.warning("the hub takes none of the reports", reports=len(reports))
                await asyncio.sleep(delay_s)
                delay_s = min(MOST_DELAY_S, 2 * delay_s)

    # -- Apps --------------------------------------------------------------------------------------------

    async def _publish(self) -> None:
        """Tell the Hub about the Apps when they changed. A wrong one is left out, and logged."""
        seen = self._look_at_apps()
        if seen == self._apps_seen:
            return
        views: dict[str, AppView] = {}
        for path in sorted(self._paths.apps.glob("*.toml")):
            try:
                view = to_view(load_app(path))
            except AppProblem as e:
                log.warning("an app is wrong and cannot be used", error=e.message)
                continue
            if view.name in views:
                log.error("two apps have one name", name=view.name, file=str(path))
                continue
            views[view.name] = view
        apps = list(views.values())[: limits.APPS_PER_SITE]
        body = PublishApps(apps, self._public_key())
        await self._hub.request("PUT", f"{self._base}/apps", body, retry=NO_RETRY)
        self._apps_seen = seen
        log.info("apps published", apps=sorted(views))

    def _public_key(self) -> str:
        """The key by which users know what functions return here; "" when it cannot be read."""
        try:
            return load_or_create(self._paths.signing_key).public_b64
        except KeyProblem as e:
            log.warning("the site's own key is not fit for use", error=e.message)
            return ""

    def _look_at_apps(self) -> object:
        """The files of which the Hub is told; something else when one of them was changed."""
        files = sorted(self._paths.apps.glob("*.toml"))
        if self._paths.signing_key.exists():
            files.append(self._paths.signing_key)
        return [
            (path.name, stat.st_mtime_ns, stat.st_size, stat.st_ino)
            for path in files
            for stat in [path.stat()]
        ]
