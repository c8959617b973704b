"""The last words of a dead pilot.

When the scheduler has proven that an allocation ended, its pilot may have left things unsaid: ends of
Jobs that the Hub never heard of, results that were never uploaded, grants that were never started. All of it
is in the Session's directory. The undertaker says it in the Session's name, with its token and request
numbers above any that the pilot used, and only then the BatchJob's end is reported: that is what makes the
Hub count everything still leased as lost. Finished work stays finished, unstarted work costs no attempt.

It is written to be interrupted: saying it twice changes nothing (a repeated report is `stale_lease` or
`duplicate`), and until `Buried` is in the book it is said again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import structlog

from chappe.core import faults, limits
from chappe.core.errors import ChappeError, Conflict, Invalid, NotFound, Unauthenticated
from chappe.core.hidden import HidesToken
from chappe.link import journal
from chappe.link.cleanup import Cleanup, clean
from chappe.link.clock import boottime
from chappe.link.http import HubClient
from chappe.link.ledger import Ledger
from chappe.link.results import Result
from chappe.link.values import Seal, delivered
from chappe.site.batch import BatchJobs
from chappe.site.book import Batch
from chappe.site.config import SiteConfig
from chappe.site.paths import SitePaths
from chappe.site.sessions import SESSION_FILE
from chappe.site.wakeup import Wakeups, wait_for
from chappe.wire.sync import HeldJob, JobEpoch, Report, SyncReply, SyncRequest

log = structlog.get_logger()

FIRST_DELAY_S = 1.0
MOST_DELAY_S = 60.0


class _Token(HidesToken, msgspec.Struct, frozen=True):
    """The part of session.json that matters here."""

    token: str


@dataclass(frozen=True)
class Estate:
    """What a dead pilot left: what it still held when it died, and what it had not yet reported."""

    started: list[HeldJob]
    never_started: list[JobEpoch]
    ends: list[journal.End]
    numbers: journal.Numbers
    answered: int
    seen: tuple[int, int]
    whole: bool


def take_stock(directory: Path, session: str, ledger: Ledger) -> Estate:
    """Read the Session's journal, and ask the ledger which grants were started.

    A damaged journal (`whole` false) may lack grants that were started; then only what it names is
    returned to the Hub, and nothing disowned silently. Raises OSError, LedgerUnavailable.
    """
    try:
        found, damage = journal.read(directory / journal.FILE)
    except FileNotFoundError:
        found, damage = journal.Recovered(), ""
    if damage:
        log.error("the pilot's journal is damaged", session=session, damage=damage)
    started, never = [], []
    for grant in found.grants.values():
        end = found.ends.get(grant.job)
        if end is not None and end.epoch == grant.epoch:
            continue
        claim = ledger.claimed(grant.job, grant.attempt)
        if claim is not None and claim.session == session:
            started.append(HeldJob(grant.job, grant.epoch, started=True))
        else:
            never.append(JobEpoch(grant.job, grant.epoch))
    numbers = journal.Numbers(found.request_no, found.report_no)
    return Estate(
        started,
        never,
        list(found.ends.values()),
        numbers,
        0 if damage else found.answered,
        found.seen,
        whole=not damage,
    )


def _clean(leftovers: Sequence[Cleanup]) -> None:
    """Remove what Jobs are not to leave, which their pilot did not come to."""
    for what in leftovers:
        clean(what)


def last_syncs(estate: Estate, session: str) -> list[SyncRequest]:
    """The requests that say it all: reports in parts, and one more whose `answered` disowns grants of
    replies that never reached the pilot. Ends not yet sent stay in `held` until they are."""
    size = limits.REPORTS_PER_SYNC
    parts = [estate.ends[at : at + size] for at in range(0, len(estate.ends), size)] or [[]]
    request_no, report_no = estate.numbers.request_no, estate.numbers.report_no
    requests: list[SyncRequest] = []
    for index, part in enumerate([*parts, []]):
        later = [HeldJob(e.job, e.epoch, started=True) for p in parts[index + 1 :] for e in p]
        reports = [_report(end, report_no + n) for n, end in enumerate(part, 1)]
        report_no += len(part)
        request_no += 1
        last = index == len(parts)
        requests.append(
            SyncRequest(
                session=session,
                request_no=request_no,
                answered=request_no - 1 if last and estate.whole else estate.answered,
                seen=estate.seen,
                held=estate.started + later,
                returned=estate.never_started if index == 0 else [],
                reports=reports,
            )
        )
    return requests


def _report(end: journal.End, no: int) -> Report:
    return Report(
        no=no,
        job=end.job,
        epoch=end.epoch,
        attempt=end.attempt,
        kind=end.kind,
        at=end.at,
        started_at=end.started_at,
        outcome=end.outcome,
        reason=end.reason,
    )


class Undertaker:
    """The loop that buries dead pilots, one after the other, as long as it takes."""

    def __init__(
        self, paths: SitePaths, config: SiteConfig, jobs: BatchJobs, wakeups: Wakeups
    ) -> None:
        self._paths = paths
        self._config = config
        self._jobs = jobs
        self._wakeups = wakeups
        self._ledger = Ledger(paths.ledger)
        self._seal = Seal(config.site.id, paths.secrets)

    async def run(self) -> None:
        """Bury whoever is dead; what fails for a passing reason is tried again, ever more slowly."""
        not_before: dict[str, float] = {}
        delay: dict[str, float] = {}
        while True:
            for batch in self._jobs.dead():
                if boottime() < not_before.get(batch.id, 0.0):
                    continue
                try:
                    await self._bury(batch)
                except (ChappeError, OSError) as e:
                    wait_s = min(MOST_DELAY_S, 2 * delay.get(batch.id, FIRST_DELAY_S / 2))
                    delay[batch.id], not_before[batch.id] = wait_s, boottime() + wait_s
                    log.warning(
                        "last words: trying again", session=batch.session, in_s=wait_s, error=str(e)
                    )
            waiting = {b.id for b in self._jobs.dead()}
            not_before = {i: t for i, t in not_before.items() if i in waiting}
            due = min(not_before.values(), default=None)
            await wait_for(self._wakeups.bury, None if due is None else max(0.05, due - boottime()))

    async def _bury(self, batch: Batch) -> None:
        """Say what is left to say. Raises what may pass (hub away, disk away)."""
        if batch.intended:
            try:
                await self._speak(batch)
            except (Unauthenticated, Conflict, NotFound) as e:
                # The Session is over at the Hub already: the pilot's own farewell, or an operator's order.
                log.info("nothing left to say", session=batch.session, why=e.message)
        faults.reach("agent.after_last_words")
        self._jobs.buried(batch)

    async def _speak(self, batch: Batch) -> None:
        directory = self._paths.session(batch.session)
        try:
            token = msgspec.json.decode((directory / SESSION_FILE).read_bytes(), type=_Token).token
        except (FileNotFoundError, msgspec.DecodeError):
            log.warning(
                "the session's token is gone: its last words are lost", session=batch.session
            )
            return
        estate = await asyncio.to_thread(take_stock, directory, batch.session, self._ledger)
        ca_file = self._config.ca_path(self._paths.root)
        async with HubClient(self._config.hub.url, token, ca_file=ca_file) as hub:
            estate = await self._with_results(hub, estate)
            for request in last_syncs(estate, batch.session):
                await hub.request("POST", "/v1/sync", request, SyncReply)
        leftovers = [end.cleanup for end in estate.ends if end.cleanup is not None]
        await asyncio.to_thread(_clean, leftovers)
        log.info(
            "last words passed on",
            session=batch.session,
            ends=len(estate.ends),
            lost=len(estate.started),
            never_started=len(estate.never_started),
        )

    async def _with_results(self, hub: HubClient, estate: Estate) -> Estate:
        """The same with every end's result delivered. An end whose result is lost is not reported: a Job
        without its result has not succeeded, and the Hub will count it as lost with its Session."""
        ends: list[journal.End] = []
        lost: list[HeldJob] = []
        for end in estate.ends:
            told = await self._deliver_result(hub, end) if end.result else end
            if told is None:
                lost.append(HeldJob(end.job, end.epoch, started=True))
            else:
                ends.append(told)
        return replace(estate, ends=ends, started=estate.started + lost)

    async def _deliver_result(self, hub: HubClient, end: journal.End) -> journal.End | None:
        """Upload the result that an end names; the end that speaks of it, or None when it is lost."""
        try:
            result: Result = await asyncio.to_thread(delivered, end, self._seal)
        except Invalid as e:
            log.warning("a job's result is lost", job=end.job, why=e.message)
            # What failed anyhow has failed, with its result or without.
            return None if end.outcome.ok else msgspec.structs.replace(end, result="")
        # The pilot hashes a result when it sends it: an end that it could not report says no hash.
        if end.outcome.result_sha256 not in (None, result.sha256):
            log.error("a job's result was changed after its end", job=end.job)
            return None
        try:
            await hub.request(
                "PUT",
                f"/v1/jobs/{end.job}/result",
                result.data,
                params={"epoch": end.epoch, "sha256": result.sha256},
                media=result.media,
            )
        except (Conflict, NotFound) as e:
            log.info("the hub does not want a result", job=end.job, why=e.message)
        outcome = msgspec.structs.replace(end.outcome, result_sha256=result.sha256)
        return msgspec.structs.replace(end, outcome=outcome)
