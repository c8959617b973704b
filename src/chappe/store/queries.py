"""Reads for people, the SDK and pilots. Every one is limited to the principal's project."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection

from chappe.core import limits
from chappe.core.errors import Invalid, NotFound
from chappe.core.jobs import Envelope, JobSpec
from chappe.core.leases import Outcome
from chappe.core.shapes import Capacity, Shape
from chappe.store.dialect import sql
from chappe.store.listing import cursor_at, list_numbers, place_of
from chappe.store.principal import Principal
from chappe.store.rows import no_such
from chappe.store.sources import site_n
from chappe.store.tx import to_json
from chappe.wire.jobs import (
    Counts,
    JobFilter,
    JobPage,
    JobView,
    ParentPage,
    ParentView,
    SignedSpec,
)
from chappe.wire.results import JobResult, Results
from chappe.wire.sites import (
    AppView,
    BatchJobIntent,
    BatchJobView,
    SessionView,
    SiteView,
)
from chappe.wire.submission import Submission

#: What a JobView is made of. `workdir` is read from the signed spec, which holds it.
JOB_VIEWS = sql("""
    SELECT job.id, job.name, job.state, job.phase, shape.body AS shape, site.id AS site, job.app,
           job.priority, job.epoch, job.attempt, job.max_attempts, se.id AS session,
           se.state AS session_state, job.cancel_at, job.not_before, job.waiting_parents, job.outcome,
           job.envelope, job.created_at, job.changed_at, job.submission, job.spec, job.n,
           job.held_at
    FROM ints(:ns) v CROSS JOIN job ON job.n = v.value JOIN shape ON shape.n = job.shape
         LEFT JOIN site ON site.n = job.site LEFT JOIN session se ON se.n = job.session
    ORDER BY v.key""")

JOB_N = sql("SELECT n FROM job WHERE project = :project AND id = :id AND phase <> 'deleted'")

#: The same as JOB_N for a pilot: a Job that it holds, or a parent of one. (What it holds is looked through,
#: which is bounded; a parent may have any number of children.)
PILOTS_JOB_N = sql("""
    SELECT j.n FROM job j WHERE j.project = :project AND j.id = :id AND j.phase <> 'deleted'
        AND (j.session = :session OR EXISTS (
            SELECT 1 FROM job c CROSS JOIN edge e ON e.parent = j.n AND e.child = c.n
            WHERE c.project = j.project AND c.session = :session))""")

PARENTS = sql("""
    SELECT e.pos, p.id, p.name, p.state, site.id AS site, site.name AS site_name,
           p.app, p.attempt, p.epoch, p.spec, p.phase,
           r.sha256, r.media, app.view
    FROM edge e JOIN job p ON p.n = e.parent LEFT JOIN site ON site.n = p.site
         LEFT JOIN app ON app.site = p.site AND app.name = p.app
         LEFT JOIN result r ON r.job = p.n AND p.phase = 'finished'
              AND r.sha256 = p.outcome ->> 'result_sha256'
    WHERE e.child = :child AND e.pos > :after ORDER BY e.pos LIMIT :most""")

RESULT = sql("""
    SELECT r.media, r.sha256, r.body FROM result r JOIN job ON job.n = r.job
    WHERE r.job = :n AND job.phase IN ('finished', 'failed')
    AND r.sha256 = job.outcome ->> 'result_sha256'""")

RESULT_SIZES = sql("""
    SELECT job.id, r.job AS n, length(r.body) AS bytes FROM texts(:ids) v
    CROSS JOIN job ON job.project = :project AND job.id = v.value
    CROSS JOIN result r ON r.job = job.n AND r.sha256 = job.outcome ->> 'result_sha256'
    WHERE job.phase IN ('finished', 'failed') ORDER BY v.key""")

RESULT_BODIES = sql("""
    SELECT job.id, r.media, r.sha256, r.body FROM ints(:ns) v
    CROSS JOIN result r ON r.job = v.value CROSS JOIN job ON job.n = r.job ORDER BY v.key""")

SIGNED = sql("""
    SELECT job.spec, job.idx, s.id, s.statement, s.sig
    FROM job JOIN submission s ON s.n = job.submission WHERE job.n = :n""")

COUNTS = sql("""
    SELECT COALESCE(site.id, ''), c.app, c.state, c.count FROM counter c
    LEFT JOIN site ON site.n = c.site WHERE c.project = :project AND c.count <> 0
    ORDER BY 1, 2, 3""")

SITES = sql("""
    SELECT s.n, s.id, s.name, s.agent_seen_at, s.agent_host, s.key,
           (SELECT CAST(COALESCE(sum(count), 0) AS bigint) FROM counter WHERE site = s.n
            AND state IN ('PREPROCESSED', 'RESTART_READY', 'AWAITING_PARENTS')) AS waiting,
           (SELECT CAST(COALESCE(sum(count), 0) AS bigint) FROM counter WHERE site = s.n
            AND state = 'RUNNING') AS running
    FROM site s WHERE s.project = :project AND (CAST(:site AS bigint) IS NULL OR s.n = :site)
    ORDER BY s.name""")

APPS = sql("""
    SELECT app.view, site.id FROM app JOIN site ON site.n = app.site
    WHERE site.project = :project AND (CAST(:site AS text) IS NULL OR site.id = :site OR site.name = :site)
    ORDER BY app.name, site.name""")

SESSIONS = sql("""
    SELECT s.id, site.id AS site, b.id AS batch_job, s.state, s.heard_at, s.hard_end_at, s.capacity,
           (SELECT count(*) FROM job WHERE job.project = s.project AND job.session = s.n) AS held
    FROM session s JOIN site ON site.n = s.site JOIN batch_job b ON b.n = s.batch_job
    WHERE s.project = :project AND (CAST(:site AS bigint) IS NULL OR s.site = :site)
      AND (:all OR s.state <> 'dead') ORDER BY s.n DESC LIMIT :most""")

BATCH_JOBS = sql("""
    SELECT b.id, site.id AS site, b.state, b.intent, b.created_at, b.scheduler_id, b.message,
           s.id AS session
    FROM batch_job b JOIN site ON site.n = b.site LEFT JOIN session s ON s.batch_job = b.n
    WHERE b.project = :project AND (CAST(:site AS text) IS NULL OR site.id = :site OR site.name = :site)
      AND (CAST(:state AS text) IS NULL OR b.state = :state) AND (CAST(:id AS text) IS NULL OR b.id = :id)
    ORDER BY b.n DESC LIMIT :most""")

#: Who can read files at a Site: its agent, if it is heard, else the newest of its pilots that is.
LOG_HOLDERS = sql("""
    SELECT s.n, s.agent_seen_at, (
        SELECT se.id FROM session se WHERE se.site = s.n AND se.state = 'live'
        ORDER BY se.n DESC LIMIT 1) AS session
    FROM site s WHERE s.project = :project AND s.id = :site""")

_decode_outcome = msgspec.json.Decoder(Outcome).decode
_decode_envelope = msgspec.json.Decoder(Envelope).decode
_decode_spec = msgspec.json.Decoder(JobSpec).decode
_decode_shape = msgspec.json.Decoder(Shape).decode
_NO_ENVELOPE = Envelope()


def list_jobs(
    conn: Connection, p: Principal, f: JobFilter, limit: int, cursor: str | None
) -> JobPage:
    """A page of Jobs, newest first; the cursor is where the page before it ended."""
    if not 1 <= limit <= limits.PAGE_MAX:
        raise Invalid(f"limit must be 1 to {limits.PAGE_MAX}", field="limit")
    ns, then = list_numbers(conn, p, f, limit, place_of(conn, p, cursor))
    next_ = None if then is None else cursor_at(conn, then)
    return JobPage(_views(conn, ns, specs=False), next_)


def _number(cursor: str) -> int:
    if not cursor.isdecimal() or len(cursor) > 18:
        raise Invalid("the cursor is not one that a page of jobs ended with", field="cursor")
    return int(cursor)


def get_job(conn: Connection, p: Principal, id: str) -> JobView:
    """One Job, with its spec."""
    return _views(conn, [job_n(conn, p, id)], specs=True)[0]


def job_n(conn: Connection, p: Principal, id: str) -> int:
    """The row number of a Job that is not deleted. A pilot finds what it holds, and the parents of that."""
    found = JOB_N if p.scope != "session" else PILOTS_JOB_N
    n = conn.execute(found, {"project": p.project_n, "id": id, "session": p.session_n}).scalar()
    if n is None:
        raise no_such("job", id)
    return int(n)


def _views(conn: Connection, ns: list[int], *, specs: bool) -> list[JobView]:
    rows = conn.execute(JOB_VIEWS, {"ns": msgspec.json.encode(ns).decode()})
    return [_view(row, specs=specs) for row in rows]


def _view(row: Any, *, specs: bool) -> JobView:
    envelope = _NO_ENVELOPE if row.envelope is None else _decode_envelope(row.envelope)
    spec = _decode_spec(row.spec)
    return JobView(
        id=row.id,
        name=row.name,
        state=row.state,
        phase=row.phase,
        sites=list(_decode_shape(row.shape).sites),
        created_at=row.created_at,
        changed_at=row.changed_at,
        site=row.site,
        app=row.app,
        workdir=workdir_of(spec),
        priority=row.priority,
        epoch=row.epoch,
        attempt=row.attempt,
        max_attempts=row.max_attempts,
        session=row.session,
        unreachable=row.session_state == "silent",
        cancel_at=row.cancel_at,
        not_before=row.not_before,
        held_at=row.held_at,
        waiting_parents=row.waiting_parents,
        outcome=None if row.outcome is None else _decode_outcome(row.outcome),
        tags=envelope.tags,
        data=envelope.data,
        spec=spec if specs else None,
        signed=row.submission is not None,
        task=spec.task,
    )


def workdir_of(spec: JobSpec) -> str:
    """A Job's working directory, relative to its Site's data directory."""
    return spec.workdir or f"jobs/{spec.id}"


def parents(conn: Connection, p: Principal, id: str, cursor: str | None) -> ParentPage:
    """A Job's parents in the order of its spec, a page at a time."""
    n = job_n(conn, p, id)
    after = -1 if cursor is None else _number(cursor)
    most = limits.PAGE_MAX
    rows = conn.execute(PARENTS, {"child": n, "after": after, "most": most}).fetchall()
    views = [_parent(row) for row in rows]
    return ParentPage(views, str(rows[-1].pos) if len(rows) == most else None)


def _parent(row: Any) -> ParentView:
    if row.phase == "deleted":
        return ParentView(row.id, row.name, "FAILED")
    spec = _decode_spec(row.spec)
    directory = workdir_of(spec)
    app = None if row.view is None else msgspec.json.decode(row.view, type=AppView)
    if (app is None or app.own_directory) and row.attempt:
        directory = f"{directory}/attempt-{row.attempt}"
    return ParentView(
        row.id,
        row.name,
        row.state,
        row.site,
        row.site_name,
        directory,
        row.app,
        row.attempt,
        row.epoch,
        row.sha256,
        row.media,
        None if spec.function is None else spec.function.environment,
    )


def result(conn: Connection, p: Principal, id: str) -> tuple[str, str, bytes]:
    """The result of a Job that has ended as (media type, sha256, bytes)."""
    row = conn.execute(RESULT, {"n": job_n(conn, p, id)}).one_or_none()
    if row is None:
        raise NotFound("the job has no result (yet)", code="no_result")
    return row.media, row.sha256, bytes(row.body)


def results(conn: Connection, p: Principal, ids: Sequence[str]) -> Results:
    """The results of these Jobs, as many from the first as fit an answer; `rest` are to be asked again."""
    found = conn.execute(RESULT_SIZES, {"project": p.project_n, "ids": to_json(list(ids))}).all()
    ns: list[int] = []
    left = limits.RESULTS_BYTES // 2  # they grow by a third in JSON
    for row in found:
        left -= row.bytes
        if left < 0 and ns:
            break
        ns.append(row.n)
    bodies = conn.execute(RESULT_BODIES, {"ns": to_json(ns)})
    items = [JobResult(row.id, row.media, row.sha256, bytes(row.body)) for row in bodies]
    return Results(items, [row.id for row in found[len(ns) :]])


def signed(conn: Connection, p: Principal, id: str) -> SignedSpec:
    """The bytes of a Job as they were signed, and the proof; NotFound when it is unsigned."""
    row = conn.execute(SIGNED, {"n": job_n(conn, p, id)}).one_or_none()
    if row is None:
        raise NotFound("the job is not signed", code="unsigned")
    submission = Submission(row.id, msgspec.Raw(row.statement.encode()), row.sig)
    return SignedSpec(msgspec.Raw(row.spec.encode()), submission, row.idx)


def counts(conn: Connection, p: Principal) -> Counts:
    """Jobs by Site, App and state."""
    return Counts([tuple(row) for row in conn.execute(COUNTS, {"project": p.project_n})])


def list_sites(conn: Connection, p: Principal, now: float) -> list[SiteView]:
    """The project's Sites with their live Sessions; a Site's own token sees only its own."""
    own = p.site_n if p.scope != "user" else None
    sessions: dict[str, list[SessionView]] = {}
    for session in list_sessions(conn, p, all_=False):
        sessions.setdefault(session.site, []).append(session)
    rows = conn.execute(SITES, {"project": p.project_n, "site": own})
    return [
        SiteView(
            id=row.id,
            name=row.name,
            online=now - (row.agent_seen_at or 0) < limits.SESSION_TTL_S,
            agent_seen_at=row.agent_seen_at,
            agent_host=row.agent_host,
            sessions=sessions.get(row.id, []),
            waiting=row.waiting,
            running=row.running,
            key=row.key,
        )
        for row in rows
    ]


def get_site(conn: Connection, p: Principal, id: str, now: float) -> SiteView:
    """One Site, by id or name."""
    for site in list_sites(conn, p, now):
        if id in (site.id, site.name):
            return site
    raise no_such("site", id)


def log_holders(
    conn: Connection, p: Principal, site: str, now: float
) -> list[tuple[str, Hashable]]:
    """Who is heard at a Site and can read its files: ("agent", the Site's row number), ("session", the id
    of its newest pilot)."""
    row = conn.execute(LOG_HOLDERS, {"project": p.project_n, "site": site}).one_or_none()
    able: list[tuple[str, Hashable]] = []
    if row is not None and now - (row.agent_seen_at or 0) < limits.SESSION_TTL_S:
        able.append(("agent", row.n))
    if row is not None and row.session is not None:
        able.append(("session", row.session))
    return able


def list_apps(conn: Connection, p: Principal, site: str | None) -> list[AppView]:
    """Apps, of one Site (id or name) or of all; a Site's or pilot's token sees its own Site's."""
    own = site if p.scope == "user" else p.site_id
    if own is not None:
        site_n(conn, p, own)
    rows = conn.execute(APPS, {"project": p.project_n, "site": own})
    return [
        msgspec.structs.replace(msgspec.json.decode(view, type=AppView), site=site_id)
        for view, site_id in rows
    ]


def list_sessions(conn: Connection, p: Principal, *, all_: bool) -> list[SessionView]:
    """Sessions, newest first; dead ones only with `all_`."""
    own = p.site_n if p.scope != "user" else None
    params = {"project": p.project_n, "site": own, "all": all_, "most": limits.PAGE_MAX}
    return [
        SessionView(
            id=row.id,
            site=row.site,
            batch_job=row.batch_job,
            state=row.state,
            heard_at=row.heard_at,
            held=row.held,
            capacity=None
            if row.capacity is None
            else msgspec.json.decode(row.capacity, type=Capacity),
            hard_end_at=row.hard_end_at,
        )
        for row in conn.execute(SESSIONS, params)
    ]


def list_batch_jobs(
    conn: Connection, p: Principal, site: str | None, state: str | None, id: str | None = None
) -> list[BatchJobView]:
    """BatchJobs, newest first. NotFound for a Site that does not exist."""
    own = site if p.scope == "user" else p.site_id
    if own is not None:
        site_n(conn, p, own)
    params = {
        "project": p.project_n,
        "site": own,
        "state": state,
        "id": id,
        "most": limits.PAGE_MAX,
    }
    return [
        BatchJobView(
            row.id,
            row.site,
            row.state,
            msgspec.json.decode(row.intent, type=BatchJobIntent),
            row.created_at,
            row.scheduler_id,
            row.message,
            row.session,
        )
        for row in conn.execute(BATCH_JOBS, params)
    ]


def batch_job_view(conn: Connection, p: Principal, id: str) -> BatchJobView:
    """One BatchJob."""
    found = list_batch_jobs(conn, p, None, None, id)
    if not found:
        raise no_such("batch job", id)
    return found[0]
