"""The agent: puts the parts together, runs their loops, and starts those again that fail.

It holds nothing in memory that is not in the Site's directory, at the Hub or at the scheduler, so it may
be killed at any moment. Its end touches no pilot.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import structlog

from chappe import __version__
from chappe.core import faults, limits
from chappe.core.elastic import PolicyKind
from chappe.core.errors import ChappeError, Invalid
from chappe.link.changed import ChangedParameters
from chappe.link.clock import boottime, new_id, now
from chappe.link.http import HubClient
from chappe.link.ledger import Ledger
from chappe.site import config as site_config
from chappe.site import schedulers, status
from chappe.site.batch import BatchJobs
from chappe.site.book import Book
from chappe.site.calls import Calls
from chappe.site.elastic import Elastic
from chappe.site.hubloop import AgentId, HubLoop, Superseded, greet
from chappe.site.paths import SitePaths
from chappe.site.relay import Relay
from chappe.site.schedulers.windows import READERS
from chappe.site.spools import Spools
from chappe.site.status import AgentRunning, Presence
from chappe.site.steps import Steps
from chappe.site.undertaker import Undertaker
from chappe.site.wakeup import Wakeups
from chappe.site.watch import watch
from chappe.site.windows import follow_windows

log = structlog.get_logger()

CRASH_POINTS = (
    "agent.after_greeting",
    "agent.after_decision",
    "agent.after_registered",
    "agent.after_intent",
    "agent.after_submit",
    "agent.after_end_seen",
    "agent.after_last_words",
    "agent.before_report",
    "agent.after_report",
)
"""Where `core.faults.reach` marks a dangerous moment of the agent."""

CRASHES = 3
QUICK_S = 10.0
MOST_DELAY_S = 60.0
PRUNE_EVERY_S = 86_400.0
PRUNE_FIRST_S = 3_600.0
HELLO_AGAIN_S = 5.0

Loop = Callable[[], Awaitable[None]]


class AgentBroken(ChappeError):
    """A part of the agent fails again and again; its log has the traceback."""

    default_code = "agent_broken"


class TokenProblem(Invalid):
    """The Site's token cannot be used; the message names file and remedy."""

    default_code = "token_problem"


def read_token(paths: SitePaths) -> str:
    """The Site's token. Raises TokenProblem."""
    try:
        mode = paths.token.stat().st_mode
        token = paths.token.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as e:
        raise TokenProblem(
            f"{paths.token} cannot be read: {e}; restore it, or make a new site"
        ) from e
    if mode & 0o077:
        raise TokenProblem(f"{paths.token} may be read by others: chmod 600 it")
    if not token:
        raise TokenProblem(f"{paths.token} is empty; restore it, or make a new site")
    return token


async def supervise(name: str, loop: Loop) -> None:
    """Run `loop` again whenever it fails. Raises AgentBroken at the third quick failure in a row.

    What may pass (disk full, hub away) is waited for; only what should not happen is counted.
    """
    crashes, delay_s = 0, 1.0
    while True:
        began = boottime()
        try:
            await loop()
            return
        except (AgentRunning, Superseded):
            raise
        except Exception as e:
            passing = isinstance(e, OSError) or (isinstance(e, ChappeError) and e.transient)
            if boottime() - began > QUICK_S:
                crashes, delay_s = 0, 1.0
            crashes += not passing
            log.exception("a loop failed", loop=name, crashes=crashes)
            if crashes >= CRASHES:
                raise AgentBroken(
                    f"the agent's {name} loop failed {CRASHES} times in a row, last with: {e}"
                ) from e
        await asyncio.sleep(delay_s)
        delay_s = min(MOST_DELAY_S, 2 * delay_s)


async def prune(ledger: Ledger, changed: ChangedParameters) -> None:
    """Once a day, remove what outlived the signatures; not at once, a stop would wait for it."""
    await asyncio.sleep(PRUNE_FIRST_S)
    while True:
        removed = await asyncio.to_thread(ledger.prune, now())
        removed += await asyncio.to_thread(changed.prune, now())
        if removed:
            log.info("old entries removed", removed=removed)
        await asyncio.sleep(PRUNE_EVERY_S)


async def serve(directory: Path, umask: int, on_ready: Callable[[], None]) -> None:
    """Be the agent of `directory` until SIGTERM or SIGINT; `on_ready` is called when it works.

    `umask` is that of the Site's owner, for Jobs.

    Raises what keeps it from starting (SiteProblem, TokenProblem, AgentRunning, …), Superseded, AgentBroken.
    """
    paths = SitePaths.of(directory)
    config = site_config.with_umask(site_config.load(paths.root), umask)
    site_config.use_proxy(config)
    token = read_token(paths)
    paths.outbox.mkdir(mode=0o700, exist_ok=True)
    found = status.read(paths.pid_file)
    status.refuse_second(paths.pid_file, found)
    agent = new_id()
    before = status.over(found, status.read(paths.starting_file))
    status.write(paths.starting_file, agent, before)
    user_agent = f"chappe-agent/{__version__}"
    ca_file = config.ca_path(paths.root)
    async with HubClient(config.hub.url, token, ca_file=ca_file, user_agent=user_agent) as hub:
        greeted = await _first_word(hub, config.site.id, agent, before, found)
        faults.reach("agent.after_greeting")
        # From here on this is the agent: nobody else writes in outbox/.
        mine = status.write(paths.pid_file, agent, () if greeted else before)
        book = Book(paths.book)
        try:
            link = AgentId(agent, before, greeted)
            await _run(paths, config, hub, book, link, on_ready)
        finally:
            book.close()
            status.mark_stopped(paths.pid_file, mine)
            log.info("agent stopped")


async def _first_word(
    hub: HubClient,
    site: str,
    agent: str,
    before: tuple[str, ...],
    found: status.PidFile | None,
) -> bool:
    """Greet the Hub before anything is touched, so that a second agent ends here; whether it answered.

    An absent Hub is no reason not to start, unless the last agent may still live on another machine: then
    only the Hub can tell. After a restart of this machine the Hub may believe in the last agent for a
    while; that is waited for. Raises AgentRunning.
    """
    restarted = found is not None and found.presence is Presence.CRASHED and not before
    patience_s = limits.SESSION_TTL_S + HELLO_AGAIN_S if restarted else 0.0
    began = boottime()
    while True:
        try:
            await greet(hub, site, agent, before)
            return True
        except AgentRunning:
            if boottime() - began > patience_s:
                raise
            log.info("waiting for the hub to forget the agent before the restart of this machine")
        except ChappeError as e:
            log.warning("the hub could not be greeted yet", error=e.message, code=e.code)
            if found is None or before:
                return False
        await asyncio.sleep(HELLO_AGAIN_S)


async def _run(
    paths: SitePaths,
    config: site_config.SiteConfig,
    hub: HubClient,
    book: Book,
    me: AgentId,
    on_ready: Callable[[], None],
) -> None:
    wakeups = Wakeups()
    scheduler = schedulers.make(config.scheduler.kind, str(paths.scheduler_records))
    elastic = Elastic(config, book, wakeups)
    jobs = BatchJobs(paths, config, book, elastic, wakeups)
    calls = Calls(paths.calls, config.policy, shared=scheduler.quirks.shared)
    steps = Steps(paths, config, scheduler, calls, hub, jobs, elastic, wakeups)
    undertaker = Undertaker(paths, config, jobs, wakeups)
    link = HubLoop(paths, config, hub, jobs, elastic, wakeups, me)
    log.info("agent started", site=config.site.name, agent=me.agent, pid=os.getpid())
    on_ready()
    serving: dict[str, Loop] = {}
    if config.relay.enabled:
        serving["relay"] = Relay(paths, config).run
    if config.spool.enabled:
        serving["spools"] = Spools(paths, config.spool, hub, wakeups).run
    reader = READERS.get(config.scheduler.kind)
    if reader is not None and config.elastic.policy is PolicyKind.BACKFILL:
        serving["windows"] = partial(
            follow_windows, elastic, reader, calls, wakeups, config.scheduler.status_interval_s
        )
    await _until_stopped(
        {
            "orders": link.listen,
            "reports": link.report,
            "batch jobs": steps.run,
            "status": lambda: watch(jobs, scheduler, calls, wakeups, config.scheduler),
            "last words": undertaker.run,
            "ledger": lambda: prune(Ledger(paths.ledger), ChangedParameters(paths.changed)),
            **serving,
        }
    )


async def _until_stopped(loops: dict[str, Loop]) -> None:
    """Run all loops until a signal says to stop, or one of them ends the agent."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(signum, stop.set)
    tasks = [asyncio.create_task(supervise(name, body)) for name, body in loops.items()]
    waiting = asyncio.create_task(stop.wait())
    try:
        done, _ = await asyncio.wait([*tasks, waiting], return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in (*tasks, waiting):
            task.cancel()
        await asyncio.gather(*tasks, waiting, return_exceptions=True)
