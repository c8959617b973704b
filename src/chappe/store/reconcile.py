"""After a restore: making an older store agree with a pilot that has seen more.

The copy knows nothing of what came after it was made, so about a pilot's Jobs its pilot is believed: at its
first sync under a new incarnation, what it says that it holds overrides the rows.
"""

from __future__ import annotations

from chappe.core import leases
from chappe.core.leases import Decision, Reason
from chappe.core.states import LEASED, RUNNABLE, State
from chappe.store.changes import Change, apply
from chappe.store.dialect import sql
from chappe.store.jobrow import JobRow
from chappe.store.principal import Principal
from chappe.store.rows import BY_ID, to_rows
from chappe.store.tx import Tx, to_json
from chappe.wire.sync import HeldJob, Report, SyncRequest

ADOPT = sql("""
    UPDATE job SET session = :session, site = :site, epoch = v.epoch, granted_request = 0,
        not_before = NULL FROM rows(:rows, n int, epoch int) v WHERE job.n = v.n""")


def reconcile(
    tx: Tx, p: Principal, session_n: int, req: SyncRequest, mine: dict[str, JobRow]
) -> None:
    """Adopt what the pilot holds or reports, under its epochs; end what it does neither of.

    `mine` are the rows that the store believes leased to the Session; it is brought up to date.
    """
    # What is reported in this request is held no more, but the copy must know whose it was.
    told = {r.job: r for r in req.reports}
    held = {r.job: HeldJob(r.job, r.epoch, r.kind != "refused") for r in told.values()}
    held |= {h.job: h for h in req.held}
    rows = to_rows(tx, tx.read(BY_ID, project=p.project_n, ids=to_json(list(held))))
    named = {h.job for h in req.held}
    kept = [
        row
        for row in rows
        if _adoptable(tx, p, session_n, row, held[row.id])
        and (row.id in named or _is_news(session_n, row, told[row.id]))
    ]
    for row in kept:
        _adopt(tx, p, session_n, row, held[row.id].epoch)
        mine[row.id] = row
    if kept:
        adopted = to_json([(row.n, row.epoch) for row in kept])
        tx.write(ADOPT, rows=adopted, session=session_n, site=p.site_n)
    reported = {(r.job, r.epoch) for r in req.reports}
    silent = [row for row in kept if (row.id, row.epoch) not in reported]
    begun = [row for row in silent if held[row.id].started and row.state in RUNNABLE]
    apply(tx, [Change(row, _begun(row, tx.now)) for row in begun])
    believed = {row.id for row in kept}
    lost = [
        row
        for row in mine.values()
        if row.state is State.RUNNING
        and row.id not in believed
        and (row.id, row.epoch) not in reported
    ]
    apply(tx, [Change(row, _lost(row, tx.now)) for row in lost])


def _adoptable(tx: Tx, p: Principal, session_n: int, row: JobRow, h: HeldJob) -> bool:
    """Whether the row can become what the pilot says that it holds."""
    if row.deleted or row.state not in LEASED or row.session not in (None, session_n):
        return False
    if row.epoch > h.epoch or p.site_id not in tx.catalog.shapes[row.shape].shape.sites:
        return False
    # A later grant that has not begun: the run that the row speaks of is over, and its end is lost.
    return h.started or row.state is not State.RUNNING or row.epoch == h.epoch


def _is_news(session_n: int, row: JobRow, report: Report) -> bool:
    """Whether the copy has not seen this report: a pilot that missed the answer tells it once more."""
    return row.session == session_n or report.attempt > row.attempt


def _adopt(tx: Tx, p: Principal, session_n: int, row: JobRow, epoch: int) -> None:
    if row.waits:
        tx.waiting(row.shape, -1)
    row.session, row.epoch, row.not_before, row.granted_request = session_n, epoch, None, 0
    if row.site != p.site_n:
        tx.count(row.project, row.site or 0, row.app or "", row.state, -1)
        tx.count(row.project, p.site_n or 0, row.app or "", row.state, 1)
        row.site = p.site_n


def _begun(row: JobRow, now: float) -> Decision:
    step = leases.Step(row.state, State.RUNNING, now, assumed=True)
    return Decision(State.RUNNING, row.attempt + 1, (step,), release=False)


def _lost(row: JobRow, now: float) -> Decision:
    return leases.death(row.held(), Reason.OUTCOME_LOST, now, "its outcome was lost by a restore")
