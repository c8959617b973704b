"""Cancel, retry and delete: of named Jobs in one transaction, or of some of those that match a filter.

An act on a million Jobs must not hold the writer for long: who calls with row numbers gives a few at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence

import sqlalchemy as sa

from chappe.core import leases
from chappe.core.errors import Invalid
from chappe.core.jobs import ParentPolicy
from chappe.core.states import FINAL, State
from chappe.store.changes import Change, apply, settle_deleted
from chappe.store.create import insert_submissions
from chappe.store.dialect import sql
from chappe.store.jobrow import JobRow
from chappe.store.listing import matching
from chappe.store.prepare import PreparedSubmission, check_hash, prepare_submissions
from chappe.store.principal import Principal
from chappe.store.rows import rows_by_id, rows_by_n
from chappe.store.select import where
from chappe.store.tables import job
from chappe.store.tx import Tx, to_json
from chappe.wire.jobs import ActOnJobs, ActReply, JobVerdict

SET_CANCEL = sql("""
    UPDATE job SET cancel_at = :now, changed_at = :now
    WHERE n IN (SELECT value FROM ints(:ns) v) AND cancel_at IS NULL""")

SESSIONS_OF = sql("""
    SELECT DISTINCT s.id FROM job JOIN session s ON s.n = job.session
    WHERE job.n IN (SELECT value FROM ints(:ns) v)""")

#: For each of these Jobs: its parents, and whether each is final and finished.
PARENTS = sql("""
    SELECT e.child, p.n, p.phase IN ('finished', 'failed', 'cancelled', 'deleted'),
           p.phase = 'finished'
    FROM edge e JOIN job p ON p.n = e.parent WHERE e.child IN (SELECT value FROM ints(:ns) v)""")

SET_WAITING_PARENTS = sql("""
    UPDATE job SET waiting_parents = v.open FROM rows(:rows, n int, open int) v WHERE job.n = v.n""")

#: A parent that runs again is waited for again by the children that still wait.
RAISE_WAITING = sql("""
    UPDATE job SET waiting_parents = waiting_parents + e.again
    FROM (SELECT child, count(*) AS again FROM edge
          WHERE parent IN (SELECT value FROM ints(:parents) v) GROUP BY child) e
    WHERE job.n = e.child AND job.state = 'AWAITING_PARENTS'""")

SIGN_ANEW = sql("""
    UPDATE job SET submission = v.submission, idx = v.idx,
        max_attempts = COALESCE(v.attempts, max_attempts)
    FROM rows(:rows, n int, submission int, idx int, attempts int) v WHERE job.n = v.n""")

SPECS = sql("SELECT n, spec FROM job WHERE n IN (SELECT value FROM ints(:ns) v)")

SIGNED_UNTIL = sql("""
    SELECT job.n FROM job JOIN submission s ON s.n = job.submission
    WHERE job.n IN (SELECT value FROM ints(:ns) v) AND s.not_after <= :now""")

BURY = sql("""
    UPDATE job SET phase = 'deleted', spec = '', envelope = NULL, outcome = NULL, retries = NULL,
        held_at = NULL, resting = NULL, ended_at = :now, changed_at = :now
    WHERE n IN (SELECT value FROM ints(:ns) v)""")

DROP_TAGS = sql("DELETE FROM tag WHERE job IN (SELECT value FROM ints(:ns) v)")
DROP_RESULTS = sql("DELETE FROM result WHERE job IN (SELECT value FROM ints(:ns) v)")

#: The row numbers that matched a filter.
Numbers = Sequence[int] | None
#: What becomes of each of these Jobs (none is a tombstone): a code by row number. It writes all of it.
Decide = Callable[[Tx, list[JobRow]], dict[int, str]]


def cancel(tx: Tx, p: Principal, act: ActOnJobs, jobs: Numbers = None) -> ActReply:
    """Cancel: at once what nobody holds; what a pilot holds is cancelled when its end is reported."""
    return on_jobs(tx, p, act, jobs, cancel_rows)


def cancel_rows(tx: Tx, rows: list[JobRow]) -> dict[int, str]:
    """`cancel`, for Jobs that were found."""
    codes: dict[int, str] = {}
    changes = []
    pending = []
    for row in rows:
        if row.state in FINAL:
            codes[row.n] = "finished" if row.state is State.JOB_FINISHED else "skipped"
            continue
        decision = leases.cancel(row.held(), row.session is not None, tx.now)
        if decision is None:
            codes[row.n] = "cancelling"
            pending.append(row.n)
            row.cancel_at = row.cancel_at or tx.now
        else:
            codes[row.n] = "cancelled"
            changes.append(Change(row, decision))
    if pending:
        tx.write(SET_CANCEL, now=tx.now, ns=to_json(pending))
        tx.effects.kill |= {r[0] for r in tx.read(SESSIONS_OF, ns=to_json(pending))}
    apply(tx, changes)
    return codes


def retry(tx: Tx, p: Principal, act: ActOnJobs, jobs: Numbers = None) -> ActReply:
    """Reopen Jobs that failed or were cancelled, under their signature or a new one."""
    prepared = prepare_submissions(act.submissions, len(act.signed), p, tx.now)

    def decide(tx: Tx, rows: list[JobRow]) -> dict[int, str]:
        signed = _signed_anew(tx, act, prepared, rows)
        for row in rows:
            if row.n in signed:
                new = prepared[signed[row.n][0]].statement.max_attempts
                row.max_attempts = row.max_attempts if new is None else new
        codes = retry_rows(tx, rows, signed.keys())
        if signed:
            numbers = insert_submissions(tx, p, prepared)
            anew = [
                (n, numbers[s], idx, prepared[s].statement.max_attempts)
                for n, (s, idx) in signed.items()
                if codes[n] == "retried"
            ]
            tx.write_rows(SIGN_ANEW, anew)
        return codes

    return on_jobs(tx, p, act, jobs, decide)


def retry_rows(tx: Tx, rows: list[JobRow], signed: Collection[int] = frozenset()) -> dict[int, str]:
    """`retry`, for Jobs that were found; `signed` are those whose signature cannot have expired."""
    codes: dict[int, str] = {}
    late = {r[0] for r in tx.read(SIGNED_UNTIL, ns=to_json([r.n for r in rows]), now=tx.now)}
    again: dict[int, JobRow] = {}
    for row in rows:
        code = leases.may_retry(row.held())
        if code is None and row.n in late and row.n not in signed:
            code = "expired"
        if code is None:
            again[row.n] = row
        else:
            codes[row.n] = code
    open_parents = _open_parents(tx, again, codes)
    tx.write_rows(SET_WAITING_PARENTS, list(open_parents.items()))
    if again:
        tx.write(RAISE_WAITING, parents=to_json(list(again)))
    apply(
        tx,
        [
            Change(row, leases.retry(row.held(), open_parents.get(n, 0), tx.now))
            for n, row in again.items()
        ],
    )
    codes.update(dict.fromkeys(again, "retried"))
    return codes


def _signed_anew(
    tx: Tx, act: ActOnJobs, prepared: list[PreparedSubmission], rows: list[JobRow]
) -> dict[int, tuple[int, int]]:
    """Row number → (submission, idx) of the Jobs that the request signs anew, their hashes checked."""
    if not act.signed:
        return {}
    named = {row.n: act.signed[row.id] for row in rows if row.id in act.signed}
    for n, spec in tx.read(SPECS, ns=to_json(list(named))):
        index, idx = named[n]
        if not 0 <= index < len(prepared):
            raise Invalid("`signed` names a submission that is not there", field="signed")
        check_hash(prepared[index], idx, spec.encode())
    return named


def _open_parents(tx: Tx, again: dict[int, JobRow], codes: dict[int, str]) -> dict[int, int]:
    """How many parents each reopened Job waits for. Jobs that could only fail again are refused."""
    parents: dict[int, list[tuple[int, bool, bool]]] = {}
    for child, parent, final, finished in tx.read(PARENTS, ns=to_json(list(again))):
        parents.setdefault(child, []).append((parent, bool(final), bool(finished)))
    while True:
        refused = [n for n, ps in parents.items() if n in again and _hopeless(again, n, ps)]
        if not refused:
            break
        for n in refused:
            codes[n] = "parents_failed"
            del again[n]
    return {
        n: sum(not final or q in again for q, final, _ in ps)
        for n, ps in parents.items()
        if n in again
    }


def _hopeless(again: dict[int, JobRow], n: int, parents: list[tuple[int, bool, bool]]) -> bool:
    """Whether the Job would only fail again, for what its parents are."""
    lost = [final and not finished and q not in again for q, final, finished in parents]
    match again[n].parent_policy:
        case ParentPolicy.FAIL:
            return any(lost)
        case ParentPolicy.SUCCEEDED:
            return all(lost)
        case _:
            return False


def delete(tx: Tx, p: Principal, act: ActOnJobs, jobs: Numbers = None) -> ActReply:
    """Delete final Jobs; a tombstone remembers the id. A deleted parent counts as failed."""
    return on_jobs(tx, p, act, jobs, delete_rows)


def delete_rows(tx: Tx, rows: list[JobRow]) -> dict[int, str]:
    """`delete`, for Jobs that were found."""
    gone = [row for row in rows if row.state in FINAL]
    ns = to_json([row.n for row in gone])
    if gone:
        tx.write(BURY, ns=ns, now=tx.now)
        tx.write(DROP_TAGS, ns=ns)
        tx.write(DROP_RESULTS, ns=ns)
    for row in gone:
        tx.count(row.project, row.site or 0, row.app or "", row.state, -1)
        tx.event(row.project, "job.deleted", row.n, attempt=row.attempt, epoch=row.epoch)
    settle_deleted(tx, [row.n for row in gone])
    return {row.n: "deleted" if row.state in FINAL else "not_final" for row in rows}


def on_jobs(tx: Tx, p: Principal, act: ActOnJobs, jobs: Numbers, decide: Decide) -> ActReply:
    """Find the Jobs, decide them, and answer: by id with a verdict each, by filter with counts.

    By filter, `jobs` are the row numbers that matched; None: they are looked up here.
    """
    f = act.filter
    if f.ids is None:
        ns = matching(tx.conn, p, f) if jobs is None else jobs
        found = [row for row in rows_by_n(tx, ns) if not row.deleted]
        return ActReply(dict(Counter(decide(tx, found).values() if found else ())))
    # Checks the number and the form of the ids, and the filter's other conditions.
    match = set(tx.conn.execute(where(sa.select(job.c.id), p.project_n, f)).scalars())
    rows = rows_by_id(tx, p, list(dict.fromkeys(f.ids)))
    todo = [row for id, row in rows.items() if id in match]
    codes = decide(tx, todo) if todo else {}
    verdicts = [JobVerdict(id, _code_of(rows.get(id), match, codes)) for id in dict.fromkeys(f.ids)]
    return ActReply(dict(Counter(v.code for v in verdicts)), verdicts)


def _code_of(row: JobRow | None, match: set[str], codes: dict[int, str]) -> str:
    if row is None:
        return "not_found"
    if row.deleted:
        return "gone"
    return codes[row.n] if row.id in match else "skipped"
