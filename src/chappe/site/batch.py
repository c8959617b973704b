"""BatchJobs: what this Site knows of them, and what its loops tell and ask each other about them.

A BatchJob is wanted (by the Hub's order, or by our own decision, `elastic`), registered
(the Hub knows it and gave its Session a token; session.json is written), intended (written down before the
scheduler is called), submitted, over (the scheduler's proof), buried (the dead pilot's last words are passed
on), and forgotten when the Hub has taken note. `steps` leads from wanted to submitted, `watch` to over,
`undertaker` to buried, `hubloop` to forgotten.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import structlog

from chappe.core import faults, limits
from chappe.core.batchjobs import check_intent, read_intent
from chappe.core.errors import Invalid
from chappe.core.ids import is_uuid7
from chappe.link.clock import boottime, new_id, now
from chappe.site import sessions
from chappe.site.book import (
    OVER_MOST,
    Accepted,
    Batch,
    Book,
    Buried,
    CancelAsked,
    Entry,
    Forgotten,
    Intended,
    Registered,
    Said,
    Spared,
    Submitted,
    Unknown,
    Wanted,
)
from chappe.site.config import SiteConfig
from chappe.site.elastic import Elastic
from chappe.site.paths import SitePaths
from chappe.site.schedulers.base import OVER, BatchState, Phase, Quirks
from chappe.site.wakeup import Wakeups
from chappe.wire.sites import BatchJobIntent, BatchJobOrder, BatchJobReport, BatchJobView

log = structlog.get_logger()

OPEN_MOST = 2_000
"""BatchJobs that are open here at a time; a Hub that orders more is heard again when some are over."""
SAY_AGAIN_S = 60.0
REFUSAL_CHARS = 500
HARD_END_MARGIN_S = 600.0
"""Beyond an allocation's time: what a scheduler may take to begin and to end it, and clocks may differ."""
CLAIMED_AGAIN_LEAST_S = 60.0
CLAIMED_AGAIN_MOST_S = 900.0
FINAL = frozenset(str(phase) for phase in OVER)


class BatchJobs:
    """The BatchJobs of this Site. Every change is in the book before anybody acts on it."""

    def __init__(
        self, paths: SitePaths, config: SiteConfig, book: Book, elastic: Elastic, wakeups: Wakeups
    ) -> None:
        self._paths = paths
        self._config = config
        self._book = book
        self._elastic = elastic
        self._wakeups = wakeups
        self._silent: set[str] = set()
        self._ends: dict[str, int] = {}
        self._listed: dict[str, float] = {}
        self._again: set[str] = set()
        self._said_again: dict[str, float] = {}
        self._was_full = False

    def all(self) -> list[Batch]:
        """All of them, oldest first."""
        return list(self._book.batches.values())

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

    def sessions(self) -> list[str]:
        """The Sessions that may live, also while they are registered anew: a restored Hub grants nothing here
        until it knows them all."""
        return [b.session for b in self._book.batches.values() if b.intended and not b.over][
            : limits.PAGE_MAX
        ]

    def awaits_another(self, batch: Batch) -> bool:
        """Whether it stands for one that is not over yet: the two of them are never with the scheduler."""
        other = self._book.batches.get(batch.wanted.instead_of or "")
        return other is not None and not other.over

    def spare_begun(self, told: Collection[str]) -> None:
        """What we take back and has begun meanwhile goes on, and what was to stand in its place is not asked
        for. This is looked at right before the scheduler is told: what that said last is old. What it was
        `told` to cancel is ending, begun or not."""
        taken_back = [b for b in self._book.batches.values() if b.if_waiting and not b.over]
        for batch in taken_back:
            if batch.id in told:
                continue
            claimed = sessions.claimed_by(self._paths, batch.session)
            if batch.phase is not Phase.RUNNING and claimed is None:
                continue
            log.info("not taken back: it has begun", batch_job=batch.id)
            instead = [
                CancelAsked(b.id, if_waiting=True)
                for b in self._book.batches.values()
                if b.wanted.instead_of == batch.id and not b.intended and not b.cancel
            ]
            self._book.add(Spared(batch.id), *instead)
            self._wakeups.batches.set()

    def dead(self) -> list[Batch]:
        """Those that ended and whose pilots' last words are not passed on yet."""
        return [b for b in self._book.batches.values() if b.over and not b.buried]

    def reports(self) -> list[BatchJobReport]:
        """What the Hub has not taken note of yet."""
        return [
            BatchJobReport(b.id, b.state, b.scheduler_id, b.message)
            for b in self._book.batches.values()
            if b.state != b.accepted and (b.registered or b.over)
        ] + [
            BatchJobReport(id, self._book.over[id], message="it was over when the hub asked again")
            for id in self._again
            if id in self._book.over
        ]

    def take(self, orders: Iterable[BatchJobOrder]) -> bool:
        """Take up the Hub's orders; whether any was new. Raises SpoolFull, OSError."""
        news = False
        for order in orders:
            if not is_uuid7(order.id):
                # It would become a job's name at the scheduler.
                log.error("an order with an id that is none is passed over", id=order.id[:60])
                continue
            if order.id in self._book.over:
                self._say_again(order.id)
                continue
            batch = self._book.batches.get(order.id)
            if batch is None and self._full():
                continue
            if batch is None and order.cancel:
                # Never taken up, so never submitted: it is over before it began.
                self._book.add(
                    Wanted(order.id, BatchJobIntent(), new_id(), kept=False, at=now()),
                    CancelAsked(order.id),
                )
            elif batch is None:
                self._take_up(order)
            elif order.cancel and (not batch.cancel or batch.if_waiting):
                self._book.add(CancelAsked(order.id))
            else:
                continue
            news = True
            log.info("order taken", batch_job=order.id, cancel=order.cancel)
            self._wakeups.batches.set()
        return news

    def _take_up(self, order: BatchJobOrder) -> None:
        """Write down what is wanted; or that it cannot be, before anything could be done about it."""
        intent, refused = BatchJobIntent(), ""
        try:
            intent = read_intent(bytes(order.intent))
        except Invalid as e:
            refused = e.message[:REFUSAL_CHARS]
            log.warning("an order is refused", batch_job=order.id, field=e.field, why=refused)
            self._wakeups.bury.set()
        self._book.add(Wanted(order.id, intent, new_id(), kept=False, at=now(), refused=refused))

    def _full(self) -> bool:
        """Whether no more can be taken up now: nothing that a Hub orders makes the book grow for ever."""
        full = len(self._book.batches) >= OPEN_MOST
        if full and not self._was_full:
            log.error("more is ordered than this site takes up at a time", most=OPEN_MOST)
        self._was_full = full
        return full

    def heard_silent(self, session_ids: Iterable[str]) -> bool:
        """Sessions that the Hub does not hear; whether there is reason to ask the scheduler now."""
        before, self._silent = self._silent, set(session_ids)
        return bool(self._silent - before)

    def adopt(self, views: Iterable[BatchJobView]) -> None:
        """Take up what the Hub says was submitted and the book does not know (it was lost).

        Which job of the scheduler it is, the scheduler says, asked by our name for it: a Hub that were
        believed could have any job of this account cancelled.
        """
        for view in views:
            if view.id in self._book.batches or view.session is None or view.state in FINAL:
                continue
            if view.id in self._book.over:
                self._say_again(view.id)
                continue
            if not (is_uuid7(view.id) and is_uuid7(view.session)):
                log.error("a batch job with an id that is none is passed over", id=view.id[:60])
                continue
            if self._full():
                continue
            log.warning("adopting a batch job that the book does not know", batch_job=view.id)
            # What looks like one of our own is counted as one: there shall not be two for it.
            kept = view.intent == BatchJobIntent()
            self._book.add(
                Wanted(view.id, _sane(view.intent), view.session, kept, at=view.created_at),
                Registered(view.id),
                Intended(view.id),
            )
            self._wakeups.batches.set()

    def unknown(self, session_ids: Collection[str]) -> None:
        """Sessions that may live and that the Hub, which has lost a part of its past, knows no more: they are
        registered again."""
        lost = [b for b in self._book.batches.values() if b.session in session_ids and b.registered]
        for batch in lost:
            log.warning("the hub does not know a session any more", session=batch.session)
            self._book.add(Unknown(batch.id))
            self._wakeups.batches.set()

    def _say_again(self, id: str) -> None:
        """The Hub has lost the end of this one, with its last words: only that it is over can be told."""
        since_s = boottime() - self._said_again.get(id, -SAY_AGAIN_S)
        if id not in self._again and since_s >= SAY_AGAIN_S:
            log.warning("the hub asks for a batch job that is over", batch_job=id)
            self._again.add(id)
            self._wakeups.report.set()

    def accepted(self, reports: Iterable[BatchJobReport]) -> None:
        """The Hub has taken these reports: forget what is over."""
        for report in reports:
            if report.id in self._again:
                self._again.remove(report.id)
                self._said_again[report.id] = boottime()
                while len(self._said_again) > OVER_MOST:
                    del self._said_again[next(iter(self._said_again))]
            if report.id in self._book.batches:
                self._book.add(Accepted(report.id, report.state))
                if report.state in FINAL:
                    self._book.add(Forgotten(report.id, report.state))

    def said(self, states: dict[str, BatchState], quirks: Quirks) -> bool:
        """What the scheduler says, by its ids; whether anything changed. Unknown is no news, and an end is
        one when it was seen `ends_seen` times in a row."""
        changed = False
        for scheduler_id, batch in self.watched().items():
            state = states.get(scheduler_id)
            if state is None or state.phase is Phase.UNKNOWN or state.name not in ("", batch.name):
                continue
            if state.phase in OVER and quirks.shared and self._runs_in_another(batch):
                changed = True
                continue
            if state.phase in OVER:
                self._ends[batch.id] = self._ends.get(batch.id, 0) + 1
                if self._ends[batch.id] < quirks.ends_seen:
                    log.info("an end was seen", batch_job=batch.id, phase=str(state.phase))
                    continue
            else:
                self._ends.pop(batch.id, None)
                self._listed[batch.id] = now()
            if (state.phase, state.too_wide) != (batch.phase, batch.too_wide):
                changed = True
                self.now_is(batch, state.phase, state.message, too_wide=state.too_wide)
        return changed

    def _runs_in_another(self, batch: Batch) -> bool:
        """Whether it was another job of the scheduler that claimed the Session, since it was submitted twice
        after all: then this one has ended without a pilot, and the other is ours from now on."""
        claimed = sessions.claimed_by(self._paths, batch.session)
        if not claimed or claimed == batch.scheduler_id:
            return False
        log.error("another job has the session", batch_job=batch.id, scheduler_id=claimed)
        self._ends.pop(batch.id, None)
        self.submitted(batch, claimed)
        return True

    def pass_claimed(self, batch: Batch) -> float:
        """How long to leave the scheduler alone about one whose script has begun, and whose id nobody knows:
        ever longer. 0 when it is over, since its whole time has passed."""
        began_at = sessions.claimed_at(self._paths, batch.session)
        began_at = batch.wanted.at if began_at is None else began_at
        wall_s = self._wall_s(batch)
        if wall_s is not None and now() > self._hard_end(began_at, wall_s):
            self.now_is(batch, Phase.ENDED, "its whole time has passed since its script began")
            return 0.0
        return min(CLAIMED_AGAIN_MOST_S, max(CLAIMED_AGAIN_LEAST_S, (now() - began_at) / 4))

    def _hard_end(self, since: float, wall_s: float) -> float:
        return since + wall_s + self._config.pilot.kill_s + HARD_END_MARGIN_S

    def pass_hard_ends(self) -> None:
        """Those that the scheduler does not know any more, and that must have ended since it last listed them
        as waiting or running, whatever became of them: their whole time has passed, and some more."""
        for batch in list(self.watched().values()):
            wall_s = self._wall_s(batch)
            listed_at = self._listed.setdefault(batch.id, now())
            if wall_s is None:
                continue
            if now() > self._hard_end(listed_at, wall_s):
                self.now_is(
                    batch, Phase.ENDED, "its whole time has passed since it was last listed"
                )

    def unsettled(self) -> bool:
        """Whether one of them waits in the queue, has just ended, or is not in sight."""
        return any(
            b.phase is not Phase.RUNNING or b.id in self._ends for b in self.watched().values()
        )

    def next_end_s(self) -> float | None:
        """Seconds until the next allocation reaches its limit; None when none is expected to."""
        limits = (
            b.running_at + wall_s - now()
            for b in self._book.batches.values()
            if not b.over and b.running_at is not None and (wall_s := self._wall_s(b)) is not None
        )
        return min((left_s for left_s in limits if left_s > 0), default=None)

    def _wall_s(self, batch: Batch) -> float | None:
        """Its limit, None for none: as it was asked for, for site.toml may say something else by now."""
        if batch.asked_wall_s is not None:
            return batch.asked_wall_s or None
        return sessions.wall_of(self._config, batch.wanted.intent)

    def buried(self, batch: Batch) -> None:
        """The dead pilot's word is passed on."""
        self._book.add(Buried(batch.id))
        sessions.close(self._paths, batch.session)
        self._wakeups.report.set()

    def add(self, entry: Entry) -> None:
        """Write down a step. Raises SpoolFull, OSError: then it must not be taken."""
        self._book.add(entry)

    def submitted(self, batch: Batch, scheduler_id: str) -> None:
        """The scheduler has it."""
        self._book.add(Submitted(batch.id, scheduler_id))
        log.info("submitted", batch_job=batch.id, scheduler_id=scheduler_id)
        self._wakeups.report.set()
        self._wakeups.watch.set()

    def now_is(
        self, batch: Batch, phase: Phase, message: str = "", *, too_wide: bool = False
    ) -> None:
        """It is pending, running, or over."""
        at = now()
        self._book.add(Said(batch.id, phase, message, at, too_wide))
        if batch.over:
            faults.reach("agent.after_end_seen")
            log.info("allocation over", batch_job=batch.id, phase=str(phase), message=message)
            self._elastic.ended(batch, at)
            self._wakeups.bury.set()
            self._ends.pop(batch.id, None)
            self._listed.pop(batch.id, None)
        # Where the policy bounds what waits or runs, this may make room for another.
        self._wakeups.batches.set()
        self._wakeups.report.set()


def _sane(intent: BatchJobIntent) -> BatchJobIntent:
    """What a Hub says was asked for, or the least, when it cannot have been."""
    try:
        check_intent(intent)
    except Invalid:
        return BatchJobIntent()
    return intent
