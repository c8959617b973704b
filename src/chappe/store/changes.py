"""Writing decisions: rows, Events, counts and waiting counts change together, and children are woken.

Every change of a Job's state goes through `apply`. When Jobs become final, their children are settled, set
by set and generation by generation, so that no child waits for a parent that has ended (promise I10).

A chain may be as long as a request is large, and a Job have any number of children: one transaction
settles some of them and writes down the others (`unsettled`), which following commands take up
(`settle_more`), also those of a Hub that was killed in between. Meanwhile such a Job looks as one that waits;
whoever cancels, retries or deletes what it waits for finds its row true, since it is decided by how its
parents stand then.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from chappe.core.dag import after_parents
from chappe.core.jobs import ParentPolicy
from chappe.core.leases import Decision, Outcome, Reason, Step
from chappe.core.states import FINAL, RUNNABLE, Phase, State
from chappe.store.dialect import sql
from chappe.store.jobrow import JobRow, phase_of, text_of
from chappe.store.rows import rows_by_n
from chappe.store.tx import Tx, to_json

#: What the rows of many Jobs get alike; `:rows` is an object of what differs, outcomes by row number.
#: (Nine fields taken from JSON for every row cost four times as much.)
UPDATE_JOBS = sql("""
    UPDATE job SET state = :state, phase = :phase, attempt = :attempt,
        resting = CASE WHEN :phase = 'running' THEN resting ELSE :state END,
        ended_at = CASE WHEN CAST(:final AS bigint) = 1 THEN CAST(:now AS double precision) END,
        session = :session, granted_request = CASE WHEN CAST(:session AS bigint) IS NULL THEN NULL
        ELSE granted_request END, site = :site, not_before = :not_before,
        cancel_at = CASE WHEN CAST(:session AS bigint) IS NULL THEN NULL ELSE cancel_at END,
        outcome = COALESCE(v.value, outcome), changed_at = :now
    FROM pairs(:rows) v
    WHERE job.n = CAST(v.key AS bigint) AND job.state = :old AND job.epoch = :epoch""")

#: The same for what starts where it was granted: no index needs to know (tables).
START_JOBS = sql("""
    UPDATE job SET state = :state, phase = :phase, attempt = :attempt,
        outcome = COALESCE(v.value, outcome), changed_at = :now
    FROM pairs(:rows) v
    WHERE job.n = CAST(v.key AS bigint) AND job.state = :old AND job.epoch = :epoch""")

RELEASE = sql("""
    UPDATE job SET session = NULL, granted_request = NULL, site = v.site
    FROM rows(:rows, n int, site int) v WHERE job.n = v.n""")

LOWER_WAITING = sql("""
    UPDATE job SET waiting_parents = waiting_parents - e.ended
    FROM (SELECT child, count(*) AS ended FROM edge
          WHERE parent IN (SELECT value FROM ints(:parents) v) GROUP BY child) e
    WHERE job.n = e.child AND job.state = 'AWAITING_PARENTS' RETURNING job.n""")

#: What one transaction settles at most, beyond the Jobs that it was called for.
GENERATIONS = 100
CHILDREN_MOST = 2_000

DEFER = sql("""
    INSERT INTO unsettled (job) SELECT v.value FROM ints(:ns) v WHERE true
    ON CONFLICT (job) DO NOTHING""")

TAKE_UP = sql("""
    DELETE FROM unsettled WHERE job IN (SELECT job FROM unsettled ORDER BY job LIMIT :most)
    RETURNING job""")

ANY_LEFT = sql("SELECT 1 FROM unsettled LIMIT 1")

CHILDREN = sql("""
    SELECT DISTINCT child FROM edge WHERE parent IN (SELECT value FROM ints(:parents) v)""")

#: How the parents of each child stand: all of them, those not final, those that finished.
PARENTS_STAND = sql("""
    SELECT e.child, count(*),
           count(*) FILTER (WHERE p.phase NOT IN ('finished', 'failed', 'cancelled', 'deleted')),
           count(*) FILTER (WHERE p.phase = 'finished')
    FROM edge e JOIN job p ON p.n = e.parent
    WHERE e.child IN (SELECT value FROM ints(:children) v) GROUP BY e.child""")


@dataclass(slots=True)
class Change:
    """A Job's row as it was, and what was decided about it."""

    row: JobRow
    decision: Decision


def apply(tx: Tx, changes: Sequence[Change]) -> None:
    """Write decisions about different Jobs, then settle the children of those that became final, or write
    down that they are to be."""
    generation, room = 0, CHILDREN_MOST
    while changes:
        _write(tx, changes)
        finals = [c.row.n for c in changes if c.decision.state in FINAL]
        lowered = tx.write(LOWER_WAITING, parents=to_json(finals)) if finals else ()
        children = sorted(row.n for row in lowered)
        now = children[:room] if generation < GENERATIONS else []
        _defer(tx, children[len(now) :])
        changes = _decide(tx, now)
        generation, room = generation + 1, room - len(now)


def unsettled(conn: Connection) -> bool:
    """Whether an earlier command, or an earlier Hub, has left Jobs to settle."""
    return conn.execute(ANY_LEFT).first() is not None


def settle_more(tx: Tx) -> bool:
    """Settle some of the Jobs that an earlier command has left to it; whether there are more."""
    todo = tx.write(TAKE_UP, most=CHILDREN_MOST)
    settle(tx, sorted(row.job for row in todo))
    return bool(tx.read(ANY_LEFT))


def _defer(tx: Tx, children: Sequence[int]) -> None:
    if children:
        tx.write(DEFER, ns=to_json(children))
        tx.effects.unsettled = True


_RUNNING = Phase.RUNNING.value

#: What an UPDATE sets, and demands, for all of its rows.
_ALIKE = ("old", "epoch", "state", "phase", "attempt", "session", "site", "not_before", "in_place")


def _write(tx: Tx, changes: Sequence[Change]) -> None:
    updates: dict[tuple[Any, ...], dict[int, str | None]] = {}
    for change in changes:
        row, decision = change.row, change.decision
        was_waiting = row.waits
        site = _site_after(tx, row, decision)
        if row.site != site:
            _move_count(tx, row, site)
        outcome = None if decision.outcome is None else to_json(decision.outcome)
        tx.decided(
            row.project, row.n, site or 0, row.app or "", row.state, row.epoch, decision, outcome
        )
        state, phase = decision.state, phase_of(decision.state)
        session = None if decision.release else row.session
        in_place = phase == _RUNNING and (session, site, decision.not_before) == (
            row.session,
            row.site,
            row.not_before,
        )
        kept = (decision.attempt, session, site, decision.not_before, in_place)
        alike = (text_of(row.state), row.epoch, text_of(state), phase, *kept)
        updates.setdefault(alike, {})[row.n] = outcome
        row.state, row.phase = state, phase
        row.attempt, row.site, row.not_before = decision.attempt, site, decision.not_before
        if decision.release and row.session is not None:
            del tx.catalog.leases[row.session][row.id]
            row.session = row.granted_request = row.cancel_at = None
        if row.waits != was_waiting:
            tx.waiting(row.shape, 1 if row.waits else -1)
        if decision.not_before is not None:
            tx.effects.due = True
    tx.dirty = True
    for alike, rows in updates.items():
        values = dict(zip(_ALIKE, alike, strict=True))
        statement = START_JOBS if values.pop("in_place") else UPDATE_JOBS
        final = 1 if values["state"] in FINAL else 0
        values |= {"final": final, "rows": to_json(rows), "now": tx.now}
        done = tx.conn.execute(statement, values)
        if done.rowcount != len(rows):
            raise RuntimeError(f"{len(rows)} jobs decided, {done.rowcount} rows matched")


def release(tx: Tx, rows: Iterable[JobRow]) -> None:
    """Take unstarted grants back: the Jobs can be granted again, under a higher epoch."""
    updates = []
    for row in rows:
        site = _site_if_fixed(tx, row)
        if site != row.site:
            _move_count(tx, row, site)
        if row.session is not None:
            del tx.catalog.leases[row.session][row.id]
        row.session, row.granted_request, row.site = None, None, site
        updates.append((row.n, site))
        if row.waits:
            tx.waiting(row.shape, 1)
    tx.write_rows(RELEASE, updates)


def settle_deleted(tx: Tx, gone: Sequence[int]) -> None:
    """Decide the waiting children of Jobs that were deleted: such a parent counts as failed."""
    if gone:
        settle(tx, [row.child for row in tx.read(CHILDREN, parents=to_json(gone))])


def settle(tx: Tx, children: Sequence[int]) -> None:
    """Decide those of `children` that wait for parents and need wait no longer."""
    apply(tx, _decide(tx, children))


def _decide(tx: Tx, children: Sequence[int]) -> list[Change]:
    if not children:
        return []
    waiting = [r for r in rows_by_n(tx, children) if r.state is State.AWAITING_PARENTS]
    if not waiting:
        return []
    stand = {r[0]: r[1:] for r in tx.read(PARENTS_STAND, children=to_json([r.n for r in waiting]))}
    changes = []
    for row in waiting:
        total, open_, finished = stand[row.n]
        hopeless = row.parent_policy is ParentPolicy.FAIL and finished + open_ < total
        if open_ and not hopeless:
            continue
        new = State.FAILED if hopeless else after_parents(row.parent_policy, total, finished)
        changes.append(Change(row, _after_parents(row, new, tx.now, total - open_ - finished)))
    return changes


def _after_parents(row: JobRow, new: State, now: float, failed: int) -> Decision:
    outcome = None
    if new is State.FAILED:
        outcome = Outcome(
            reason=Reason.PARENT,
            message=f"{failed} of its parents did not finish",
        )
    step = Step(row.state, new, now, outcome)
    # A Job that asked to start later keeps that through its wait for parents.
    due = row.not_before if new in RUNNABLE and row.not_before else None
    return Decision(new, row.attempt, (step,), release=True, outcome=outcome, not_before=due)


def _site_if_fixed(tx: Tx, row: JobRow) -> int | None:
    """The Site of a Job that can run at one only; None while several could take it."""
    entry = tx.catalog.shapes[row.shape]
    if len(entry.shape.sites) > 1:
        return None
    site = tx.catalog.site_by_id.get((entry.project, entry.shape.sites[0]))
    return site.n if site else row.site


def _site_after(tx: Tx, row: JobRow, decision: Decision) -> int | None:
    """Where a Job belongs after a decision: free again, a Job of several Sites belongs to none."""
    if decision.release and decision.state not in FINAL:
        return _site_if_fixed(tx, row)
    return row.site


def _move_count(tx: Tx, row: JobRow, site: int | None) -> None:
    tx.count(row.project, row.site or 0, row.app or "", row.state, -1)
    tx.count(row.project, site or 0, row.app or "", row.state, 1)
