"""Creating Jobs: a whole graph in one transaction, all or none, and harmless when repeated."""

from __future__ import annotations

from typing import Any

from chappe.core.errors import Conflict, Gone, Invalid
from chappe.core.shapes import Shape
from chappe.core.states import State
from chappe.store.changes import settle
from chappe.store.dialect import sql
from chappe.store.jobrow import phase_of
from chappe.store.prepare import Bad, Prepared, PreparedJob, PreparedSubmission
from chappe.store.principal import Principal
from chappe.store.tx import Insert, Tx, to_json
from chappe.wire.events import cursor_of
from chappe.wire.jobs import CreateReply, JobVerdict

EXISTING = sql("""
    SELECT job.id, job.n, job.phase, job.spec, job.envelope, job.updated_at FROM texts(:ids) v
    CROSS JOIN job ON job.project = :project AND job.id = v.value""")

INSERT_JOBS = Insert(
    "job",
    "n project id state phase shape priority epoch attempt max_attempts site submission idx app name "
    "waiting_parents policy retries takeover_s not_before created_at changed_at envelope spec resting",
)
INSERT_EDGES = Insert("edge", "child parent pos")
INSERT_TAGS = Insert("tag", "project k v job")

INSERT_SUBMISSION = sql("""
    INSERT INTO submission (project, id, statement, sig, not_after)
    VALUES (:project, :id, :statement, :sig, :not_after)
    ON CONFLICT (project, id) DO UPDATE SET id = excluded.id RETURNING n, statement, sig""")


def create_jobs(tx: Tx, p: Principal, prepared: Prepared) -> CreateReply:
    """Create the Jobs of one request, or say which exist already with the same content."""
    cursor = cursor_of(tx.catalog.incarnation, tx.catalog.next_seq[p.project_n] - 1)
    existing = {
        row.id: row
        for row in tx.read(
            EXISTING, project=p.project_n, ids=to_json([j.spec.id for j in prepared.jobs])
        )
    }
    bad = Bad()
    fresh: list[PreparedJob] = []
    verdicts: list[JobVerdict] = []
    for job in prepared.jobs:
        row = existing.get(job.spec.id)
        if row is None:
            fresh.append(job)
            verdicts.append(JobVerdict(job.spec.id, "created"))
        elif row.phase == "deleted":
            bad.add(job.spec.id, Gone("a job with this id was deleted; make a new id", field="id"))
        elif row.spec != job.text or (row.envelope != job.envelope_text and row.updated_at is None):
            bad.add(job.spec.id, Conflict("a different job has this id", field="id"))
        else:
            verdicts.append(JobVerdict(job.spec.id, "exists"))
    parents = _resolve_parents(tx, p, fresh, bad)
    _check_sites(tx, p, fresh, bad)
    bad.raise_if_any(len(prepared.jobs))
    if fresh:
        _insert(tx, p, prepared, fresh, parents)
    return CreateReply(verdicts, cursor)


def _check_sites(tx: Tx, p: Principal, fresh: list[PreparedJob], bad: Bad) -> None:
    """A Site may have been deleted since `prepare`."""
    known = tx.catalog.site_by_id
    for sites in {job.spec.sites for job in fresh}:
        if any((p.project_n, s) not in known for s in sites):
            job = next(j for j in fresh if j.spec.sites == sites)
            bad.add(job.spec.id, Invalid("a site was deleted meanwhile", field="sites"))


def _resolve_parents(
    tx: Tx, p: Principal, fresh: list[PreparedJob], bad: Bad
) -> dict[str, tuple[int | None, bool]]:
    """Each parent's (row number, whether it is not yet final); None for those of this request."""
    inside = {job.spec.id for job in fresh}
    outside = {q for job in fresh for q in job.spec.parents if q not in inside}
    found: dict[str, tuple[int | None, bool]] = dict.fromkeys(inside, (None, True))
    if outside:
        for row in tx.read(EXISTING, project=p.project_n, ids=to_json(sorted(outside))):
            final = row.phase in ("finished", "failed", "cancelled", "deleted")
            found[row.id] = (row.n, not final)
        for job in fresh:
            missing = [q for q in job.spec.parents if q not in found]
            if missing:
                bad.add(
                    job.spec.id,
                    Invalid(
                        f"there is no parent {missing[0]!r}: submit parents before, or together with, "
                        "their children",
                        field="parents",
                        code="unknown_parent",
                    ),
                )
    return found


def _insert(
    tx: Tx,
    p: Principal,
    prepared: Prepared,
    fresh: list[PreparedJob],
    parents: dict[str, tuple[int | None, bool]],
) -> None:
    submissions = insert_submissions(tx, p, prepared.submissions)
    first = tx.catalog.next_job
    tx.catalog.next_job += len(fresh)
    tx.catalog.newest_at = newest_at = max(tx.catalog.newest_at, tx.now)
    project, now = p.project_n, tx.now
    number = {job.spec.id: first + i for i, job in enumerate(fresh)}
    rows: list[tuple[Any, ...]] = []
    edges: list[tuple[int, int, int]] = []
    tags: list[tuple[int, str, str, int]] = []
    to_settle: list[int] = []
    waiting: dict[int, int] = {}
    counts: dict[tuple[int, str, State], int] = {}
    # By identity: `prepare` makes one Shape for all Jobs that are alike, and comparing them costs.
    interned: dict[int, tuple[int, int | None]] = {}
    for n, job in enumerate(fresh, first):
        spec, app = job.spec, job.app
        state, open_parents = State.PREPROCESSED, 0
        if spec.parents:
            state = State.AWAITING_PARENTS
            to_settle.append(n)
            for pos, q in enumerate(spec.parents):
                parent_n, is_open = parents[q]
                edges.append((n, number[q] if parent_n is None else parent_n, pos))
                open_parents += is_open
        found = interned.get(id(job.shape))
        if found is None:
            found = interned[id(job.shape)] = _interned(tx, project, job.shape)
        shape, site = found
        not_before = spec.not_before if spec.not_before and spec.not_before > now else None
        submission = None if job.submission is None else submissions[job.submission]
        text, phase = state.value, phase_of(state)
        # The values of INSERT_JOBS, in its order.
        rows.append(
            (n, project, spec.id, text, phase, shape, job.envelope.priority, 0, 0, job.max_attempts)  # noqa: RUF005
            + (site, submission, job.idx, app, job.name, open_parents, job.policy, job.retries)
            + (spec.takeover_s, not_before, newest_at, now, job.envelope_text, job.text, text)
        )
        tx.created(project, n, text)
        key = (site or 0, app or "", state)
        counts[key] = counts.get(key, 0) + 1
        if not_before is not None:
            tx.effects.due = True
        elif state is State.PREPROCESSED:
            waiting[shape] = waiting.get(shape, 0) + 1
        if job.envelope.tags:
            tags += [(project, k, v, n) for k, v in job.envelope.tags.items()]
    tx.insert(INSERT_JOBS, rows)
    tx.insert(INSERT_EDGES, edges)
    tx.insert(INSERT_TAGS, tags)
    for (site_n, app_name, counted), many in counts.items():
        tx.count(project, site_n, app_name, counted, many)
    for shape_n, many in waiting.items():
        tx.waiting(shape_n, many)
    settle(tx, to_settle)


def _interned(tx: Tx, project: int, shape: Shape) -> tuple[int, int | None]:
    """A Shape's row number, and its Site's when that is the only one."""
    site = tx.catalog.site_by_id[project, shape.sites[0]].n if len(shape.sites) == 1 else None
    return tx.intern(project, shape).n, site


def insert_submissions(tx: Tx, p: Principal, submissions: list[PreparedSubmission]) -> list[int]:
    """Row numbers of the submissions, made if new. Other bytes under a known id are a Conflict."""
    numbers = []
    for prepared in submissions:
        s = prepared.submission
        statement = bytes(s.statement).decode()
        (row,) = tx.write(
            INSERT_SUBMISSION,
            project=p.project_n,
            id=s.id,
            statement=statement,
            sig=s.sig,
            not_after=prepared.statement.not_after,
        )
        if (row.statement, row.sig) != (statement, s.sig):
            raise Conflict("a different submission has this id", field="submissions.id")
        numbers.append(row.n)
    return numbers
