"""The pilot protocol's transaction: reports, returns, cancels and new grants, in that order.

See core.leases for the argument, wire.sync for the protocol. One call is one transaction; a repeated
request changes nothing and is answered from the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from chappe.core import leases, limits
from chappe.core.errors import Conflict, Invalid, SessionDead, TooLarge
from chappe.core.leases import Decision, Outcome, Reason, Verdict
from chappe.core.states import RUNNABLE, State
from chappe.store.acquire import acquire_grants, fill_grants
from chappe.store.changes import Change, apply, release
from chappe.store.dialect import sql
from chappe.store.edits import update_rows
from chappe.store.jobrow import JobRow
from chappe.store.principal import Principal
from chappe.store.reconcile import reconcile
from chappe.store.rows import SESSION, rows_by_id
from chappe.store.tx import Insert, Tx, to_json
from chappe.wire.jobs import EnvelopeChange
from chappe.wire.results import ResultUpload
from chappe.wire.sync import (
    JobEpoch,
    Kill,
    Report,
    ReportVerdict,
    SyncReply,
    SyncRequest,
)

HEARD = sql("""
    UPDATE session SET state = 'live', last_request = :last_request, last_report = :last_report,
        heard_at = :now, hard_end_at = :hard_end_at, capacity = :capacity,
        cores = COALESCE(CAST(:cores AS bigint), cores), incarnation = :incarnation
    WHERE n = :n""")

RESULTS = sql("""
    SELECT job, epoch, sha256 FROM result WHERE job IN (SELECT value FROM ints(:jobs) v)""")

PUT_RESULTS = Insert(
    "result",
    "job epoch sha256 media body",
    """ON CONFLICT (job) DO UPDATE SET epoch = excluded.epoch, sha256 = excluded.sha256,
        media = excluded.media, body = excluded.body""",
)


def sync(tx: Tx, p: Principal, req: SyncRequest) -> SyncReply:
    """One sync of a pilot. Raises SessionDead when its Session was proven dead."""
    session = _session(tx, p, req)
    _check_bounds(tx, req)
    tx.notice(req.seen)
    by_id = tx.catalog.leases[session.n]
    if req.request_no <= session.last_request:
        return _repeat(tx, p, session, req, by_id)
    # A Session that had answers before its first request was made known anew, after a restore.
    forgotten = session.last_request == 0 and req.answered > 0
    if forgotten or session.incarnation != tx.catalog.incarnation:
        reconcile(tx, p, session.n, req, by_id)
    verdicts, last_report = _apply_reports(tx, p, session.last_report, req, by_id)
    _take_back(tx, req, by_id)
    tx.write(
        HEARD,
        n=session.n,
        last_request=req.request_no,
        last_report=last_report,
        now=tx.now,
        hard_end_at=None if req.hard_end_in_s is None else tx.now + req.hard_end_in_s,
        capacity=None if req.capacity is None else to_json(req.capacity),
        cores=None if req.capacity is None else req.capacity.node_cores * req.capacity.nodes,
        incarnation=tx.catalog.incarnation,
    )
    tx.heard(p.site_n, session.n)
    reply = _reply(tx, session, req, by_id, verdicts)
    acquire_grants(tx, p, session, req, reply)
    return reply


def acquire(tx: Tx, p: Principal, req: SyncRequest) -> SyncReply:
    """The rest of a sync that found nothing to say and waited: what there is to say now."""
    session = _session(tx, p, req)
    by_id = tx.catalog.leases[session.n]
    reply = _reply(tx, session, req, by_id, [])
    if session.last_request == req.request_no and not reply.kill and not reply.drain:
        acquire_grants(tx, p, session, req, reply)
    return msgspec.structs.replace(reply, commit_no=tx.commit_no)


def store_result(tx: Tx, p: Principal, upload: ResultUpload) -> None:
    """Keep the result of one attempt. Raises Conflict where `store_results` says False."""
    if not store_results(tx, p, [upload])[0]:
        raise Conflict("the job is not leased to this session at this epoch", code="stale_lease")


def store_results(tx: Tx, p: Principal, uploads: Sequence[ResultUpload]) -> list[bool]:
    """Keep the results of attempts, before their ends are reported; whether each is kept.

    It is not when its Job is not leased to this Session at that epoch. Repeating is harmless, also
    once the end was reported.
    """
    by_id = {} if p.session_n is None else tx.catalog.leases[p.session_n]
    rows: list[tuple[Any, ...]] = []
    kept = []
    for u in uploads:
        row = by_id.get(u.job)
        leased = row is not None and row.epoch == u.epoch
        if row is not None and leased:
            rows.append((row.n, u.epoch, u.sha256, u.media, u.body))
        kept.append(leased)
    if not all(kept):
        # Of what is leased no more, a repeat is known by its digest.
        missing = [u.job for u, is_kept in zip(uploads, kept, strict=True) if not is_kept]
        others = rows_by_id(tx, p, missing)
        have = _stored(tx, [row.n for row in others.values()])
        for at, u in enumerate(uploads):
            if not kept[at] and u.job in others:
                kept[at] = (others[u.job].n, u.epoch, u.sha256) in have
    tx.insert(PUT_RESULTS, list({row[0]: row for row in rows}.values()))
    return kept


def _session(tx: Tx, p: Principal, req: SyncRequest) -> Any:
    if req.session != p.session_id:
        raise Invalid("the token is for another session", field="session")
    (session,) = tx.read(SESSION, n=p.session_n)
    if session.state == "dead":
        raise SessionDead(
            "this session was proven dead; its jobs belong to nobody or to another session"
        )
    return session


def _check_bounds(tx: Tx, req: SyncRequest) -> None:
    for name, have, most in (
        ("reports", len(req.reports), limits.REPORTS_PER_SYNC),
        ("held", len(req.held), limits.HELD_PER_SESSION),
        ("returned", len(req.returned), limits.HELD_PER_SESSION),
        ("have_submissions", len(req.have_submissions), limits.HELD_PER_SESSION),
    ):
        if have > most:
            raise TooLarge(f"{have} {name} in one sync, the limit is {most}", field=name)
    if not 0 <= req.seen[0] <= tx.catalog.incarnation + limits.INCARNATIONS_AHEAD:
        # No backup is so old; a pilot that says so would leave no numbers for those to come.
        raise Invalid(f"incarnation {req.seen[0]} is none that a hub ever had", field="seen")


def _apply_reports(
    tx: Tx, p: Principal, last_report: int, req: SyncRequest, by_id: dict[str, JobRow]
) -> tuple[list[ReportVerdict], int]:
    """Decide the reports in the order of their numbers; several about one Job become one change."""
    if not req.reports:
        return [], last_report
    brought = [
        ResultUpload(r.job, r.epoch, r.outcome.result_sha256, r.media, r.body)
        for r in req.reports
        if r.body and r.outcome is not None and r.outcome.result_sha256 is not None
    ]
    if brought:
        store_results(tx, p, brought)
    results = _results(tx, req, by_id)
    still_held = {(h.job, h.epoch) for h in req.held}
    verdicts: list[ReportVerdict] = []
    changes: dict[str, Change] = {}
    for report in sorted(req.reports, key=_number):
        verdict = Verdict.DUPLICATE
        if report.no > last_report:
            last_report = report.no
            row = by_id.get(report.job)
            before = changes.get(report.job)
            ended = before is not None and before.decision.release
            if row is None or ended or row.epoch != report.epoch:
                verdict = Verdict.STALE_LEASE
            else:
                held = row.held() if before is None else _then(row.held(), before.decision)
                decided = _decide(held, report, row, results, tx.now)
                verdict = decided if isinstance(decided, Verdict) else Verdict.APPLIED
                if verdict is Verdict.ILLEGAL and (report.job, report.epoch) not in still_held:
                    decided = leases.unusable_end(held, report.kind, tx.now) or verdict
                if isinstance(decided, Decision):
                    changes[report.job] = _merge(before, row, decided)
        verdicts.append(ReportVerdict(report.no, verdict))
    apply(tx, list(changes.values()))
    for change in changes.values():
        hook = None if change.decision.outcome is None else change.decision.outcome.hook
        if hook is not None and hook.data and not hook.problem:
            # Data that would grow too large are left alone; the outcome tells them all the same.
            update_rows(tx, [change.row], EnvelopeChange(data=hook.data))
    return verdicts, last_report


def _number(report: Report) -> int:
    return report.no


def _row_number(row: JobRow) -> int:
    return row.n


def _results(tx: Tx, req: SyncRequest, by_id: dict[str, JobRow]) -> set[tuple[int, int, str]]:
    """The stored results (row number, epoch, sha256) that the reports speak of."""
    jobs = [
        by_id[r.job].n
        for r in req.reports
        if r.outcome is not None and r.outcome.result_sha256 is not None and r.job in by_id
    ]
    return _stored(tx, jobs)


def _stored(tx: Tx, jobs: Sequence[int]) -> set[tuple[int, int, str]]:
    """What is stored for these row numbers: (row number, epoch, sha256)."""
    if not jobs:
        return set()
    return {(n, epoch, sha) for n, epoch, sha in tx.read(RESULTS, jobs=to_json(jobs))}


def _decide(
    held: leases.Held,
    report: Report,
    row: JobRow,
    results: set[tuple[int, int, str]],
    now: float,
) -> Decision | Verdict:
    if report.kind == "start":
        return leases.start(held, report.attempt, report.at)
    if report.kind == "refused":
        message = report.outcome.message if report.outcome else ""
        return leases.refuse(held, message, report.reason, report.at)
    if report.kind != "end" or report.outcome is None:
        return Verdict.ILLEGAL
    sha256 = report.outcome.result_sha256
    if sha256 is not None and (row.n, row.epoch, sha256) not in results:
        return Verdict.ILLEGAL
    return leases.end(held, report.attempt, report.started_at, report.at, report.outcome, now)


def _then(held: leases.Held, decision: Decision) -> leases.Held:
    return leases.Held(
        decision.state, decision.attempt, held.max_attempts, held.cancel_at, held.retries
    )


def _merge(before: Change | None, row: JobRow, decision: Decision) -> Change:
    if before is None:
        return Change(row, decision)
    steps = before.decision.steps + decision.steps
    return Change(row, msgspec.structs.replace(decision, steps=steps))


def _take_back(tx: Tx, req: SyncRequest, by_id: dict[str, JobRow]) -> None:
    """Grants that were returned, or that an answered request carried and `held` no longer names.

    An end report that does not fit into this sync keeps its Job in `held`; so only Jobs that have not
    started are ever disowned by silence.
    """
    back: dict[str, JobRow] = {}
    for item in req.returned:
        row = by_id.get(item.job)
        if row is not None and row.epoch == item.epoch and row.state in RUNNABLE:
            back[row.id] = row
    # One pass: a pilot holds thousands of Jobs, names them all in each sync, and disowns few or none.
    silent = set(by_id)
    for h in req.held:
        row = by_id.get(h.job)
        if row is not None and row.epoch == h.epoch:
            silent.discard(h.job)
    for id in silent:
        row = by_id[id]
        if row.state in RUNNABLE and (row.granted_request or 0) <= req.answered:
            back[id] = row
    give_back(tx, sorted(back.values(), key=_row_number))


def give_back(tx: Tx, rows: list[JobRow]) -> None:
    """Free Jobs that were granted and not started; those whose cancel was pending are cancelled."""
    cancelled = [row for row in rows if row.cancel_at is not None]
    outcome = Outcome(reason=Reason.CANCELLED)
    apply(
        tx,
        [
            Change(
                row,
                Decision(
                    State.CANCELLED,
                    row.attempt,
                    (leases.Step(row.state, State.CANCELLED, tx.now, outcome),),
                    release=True,
                    outcome=outcome,
                ),
            )
            for row in cancelled
        ],
    )
    release(tx, [row for row in rows if row.cancel_at is None])


def _reply(
    tx: Tx, session: Any, req: SyncRequest, by_id: dict[str, JobRow], verdicts: list[ReportVerdict]
) -> SyncReply:
    kill, unknown = [], []
    for h in req.held:
        row = by_id.get(h.job)
        if row is None or row.epoch != h.epoch:
            unknown.append(JobEpoch(h.job, h.epoch))
        elif row.cancel_at is not None:
            kill.append(Kill(h.job, h.epoch, "cancelled"))
    return SyncReply(
        incarnation=tx.catalog.incarnation,
        commit_no=tx.commit_no,
        request_no=req.request_no,
        ttl_s=limits.SESSION_TTL_S,
        verdicts=verdicts,
        unknown=unknown,
        kill=kill,
        drain=session.drain is not None,
    )


def _repeat(
    tx: Tx, p: Principal, session: Any, req: SyncRequest, by_id: dict[str, JobRow]
) -> SyncReply:
    """The answer to a request that was applied already: its grants, from the rows."""
    # A request that was overtaken by a later one may bring reports that nobody has applied: no verdict
    # for those, or the pilot would strike them from its outbox.
    verdicts = [
        ReportVerdict(r.no, Verdict.DUPLICATE) for r in req.reports if r.no <= session.last_report
    ]
    reply = _reply(tx, session, req, by_id, verdicts)
    if req.request_no == session.last_request:
        held = {(h.job, h.epoch) for h in req.held}
        again = [
            row.n
            for row in by_id.values()
            if row.granted_request == req.request_no
            and row.state in RUNNABLE
            and (row.id, row.epoch) not in held
        ]
        fill_grants(tx, again, req, reply)
        if req.wait_s > 0 and p.site_n is not None:
            # What came after its first answer is granted when it looks again, now.
            tx.effects.work.add(p.site_n)
    return reply
