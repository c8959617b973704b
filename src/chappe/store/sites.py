"""Sites, their Apps and agents, BatchJobs and Sessions: the writes."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from chappe.core import limits
from chappe.core.batchjobs import check_intent
from chappe.core.errors import Conflict, Forbidden, Invalid, TooLarge
from chappe.core.ids import check_id
from chappe.core.leases import Reason
from chappe.core.publickeys import is_public_key
from chappe.store import audit, tokens
from chappe.store.catalog import SiteEntry, app_entry
from chappe.store.deaths import session_dead
from chappe.store.demand import demand_of, take_decisions
from chappe.store.dialect import sql
from chappe.store.principal import Principal
from chappe.store.queries import batch_job_view
from chappe.store.rows import no_such
from chappe.store.tx import Tx, to_json
from chappe.store.unheard import AGENT as AGENT_ITSELF
from chappe.store.unheard import NOBODY
from chappe.wire.demand import Demand
from chappe.wire.sites import (
    AgentHello,
    AgentSync,
    AgentSyncReply,
    BatchJobOrder,
    BatchJobReport,
    BatchJobView,
    EndSession,
    NewBatchJob,
    NewSession,
    NewSessionReply,
    NewSite,
    NewSiteReply,
    PublishApps,
)

_SITE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
ENDED = frozenset({"ended", "failed", "cancelled"})

SITE_NAMED = sql("SELECT id FROM site WHERE project = :project AND (id = :id OR name = :name)")

INSERT_SITE = sql("""
    INSERT INTO site (project, id, name, created_at) VALUES (:project, :id, :name, :now) RETURNING n""")

SITE_BUSY = sql("""
    SELECT (SELECT count(*) FROM session WHERE site = :site AND state <> 'dead')
         + (SELECT count(*) FROM job WHERE site = :site AND project = :project
            AND phase IN ('waiting', 'runnable', 'running'))""")

DELETE_APPS = sql("DELETE FROM app WHERE site = :site")
DELETE_SITE = sql("DELETE FROM site WHERE n = :site")
REVOKE_SITE = sql("""
    UPDATE token SET revoked_at = :now WHERE site = :site AND scope = 'site' AND revoked_at IS NULL
    RETURNING prefix""")

INSERT_APPS = sql("""
    INSERT INTO app (site, name, view)
    SELECT :site, v.name, v.view FROM rows(:rows, name text, view text) v""")

KEY = sql("SELECT key FROM site WHERE n = :site")
SET_KEY = sql("UPDATE site SET key = :key WHERE n = :site")

AGENT = sql("SELECT agent, agent_host, agent_seen_at FROM site WHERE n = :site")

SET_AGENT = sql("""
    UPDATE site SET agent = :agent, agent_host = :host, agent_seen_at = :now WHERE n = :site""")

AGENT_SEEN = sql("UPDATE site SET agent = :agent, agent_seen_at = :now WHERE n = :site")

BATCH_JOB = sql("""
    SELECT b.n, b.site, b.state, b.cancel_at, s.n AS session FROM batch_job b
    LEFT JOIN session s ON s.batch_job = b.n WHERE b.project = :project AND b.id = :id""")

INSERT_BATCH_JOB = sql("""
    INSERT INTO batch_job (project, id, site, state, intent, created_at)
    VALUES (:project, :id, :site, 'requested', :intent, :now)""")

SET_BATCH_JOB = sql("""
    UPDATE batch_job SET state = :state, scheduler_id = COALESCE(:scheduler_id, scheduler_id),
        message = :message WHERE n = :n""")

CANCEL_BATCH_JOB = sql("""
    UPDATE batch_job SET cancel_at = :now WHERE n = :n AND cancel_at IS NULL""")

OPEN_BATCH_JOBS = sql("""
    SELECT id, intent, state, cancel_at FROM batch_job
    WHERE site = :site AND state IN ('requested', 'submitted', 'running') ORDER BY n""")

SILENT = sql("SELECT id FROM session WHERE site = :site AND state = 'silent'")

SESSION_BY_ID = sql("""
    SELECT s.n, s.site, s.state, s.batch_job, b.id AS batch_job_id FROM session s
    JOIN batch_job b ON b.n = s.batch_job WHERE s.project = :project AND s.id = :id""")

SESSIONS_NAMED = sql("""
    SELECT id FROM session WHERE project = :project AND site = :site
    AND id IN (SELECT value FROM texts(:ids) v)""")

SESSION_OF_BATCH_JOB = sql("SELECT id FROM session WHERE batch_job = :batch_job")

INSERT_SESSION = sql("""
    INSERT INTO session (project, id, site, batch_job, incarnation, state, last_request, last_report,
                         heard_at, created_at)
    VALUES (:project, :id, :site, :batch_job, :incarnation, 'live', 0, 0, :now, :now) RETURNING n""")

REVOKE_SESSION = sql("""
    UPDATE token SET revoked_at = :now WHERE session = :session AND revoked_at IS NULL
    RETURNING prefix""")


def site_of(tx: Tx, p: Principal, id: str) -> SiteEntry:
    """The principal's Site; a Site's or pilot's token sees only its own."""
    entry = tx.catalog.site_by_id.get((p.project_n, id))
    if entry is None or (p.scope != "user" and p.site_n != entry.n):
        raise no_such("site", id)
    return entry


def create_site(tx: Tx, p: Principal, new: NewSite) -> NewSiteReply:
    """Register a Site and make its token. Repeating it with the same id and name makes a new token."""
    check_id(new.id, "id")
    if not _SITE_NAME.fullmatch(new.name):
        raise Invalid(
            "a site's name is letters, digits, '-', '_' and '.', at most 64", field="name"
        )
    entry = tx.catalog.site_by_id.get((p.project_n, new.id))
    if entry is not None and entry.name != new.name:
        raise Conflict(f"the site with this id is named {entry.name}", field="id")
    if entry is None:
        if tx.read(SITE_NAMED, project=p.project_n, id=new.id, name=new.name):
            raise Conflict(f"there is a site named {new.name}; choose another name", field="name")
        (row,) = tx.write(INSERT_SITE, project=p.project_n, id=new.id, name=new.name, now=tx.now)
        entry = SiteEntry(row.n, p.project_n, new.id, new.name)
        tx.catalog.add_site(entry)
        _tell(tx, p, "site", id=new.id, name=new.name, state="created")
        audit.record(tx, p, p.project_n, "site.create", new.name, id=new.id)
    return renew_token(tx, p, new.id)


def renew_token(tx: Tx, p: Principal, id: str) -> NewSiteReply:
    """Make a Site's token; the one before it is revoked, at once."""
    entry = site_of(tx, p, id)
    for (prefix,) in tx.write(REVOKE_SITE, site=entry.n, now=tx.now):
        tx.effects.revoked.add(prefix)
    token, prefix = tokens.issue(tx, "site", p.project_n, site=entry.n, note=f"site {entry.name}")
    audit.record(tx, p, p.project_n, "site.token", entry.name, id=id, token=prefix)
    return NewSiteReply(id, entry.name, p.project_id, token)


def delete_site(tx: Tx, p: Principal, id: str) -> None:
    """Forget a Site that holds nothing. Jobs of the past keep their record."""
    entry = site_of(tx, p, id)
    if tx.read(SITE_BUSY, site=entry.n, project=p.project_n)[0][0]:
        raise Conflict(
            "the site has jobs that are not final, or live sessions: cancel and stop them first",
            code="site_busy",
        )
    for (prefix,) in tx.write(REVOKE_SITE, site=entry.n, now=tx.now):
        tx.effects.revoked.add(prefix)
    tx.write(DELETE_APPS, site=entry.n)
    tx.write(DELETE_SITE, site=entry.n)
    tx.catalog.remove_site(entry)
    audit.record(tx, p, p.project_n, "site.delete", entry.name, id=id)
    _tell(tx, p, "site", id=id, name=entry.name, state="deleted")


def publish_apps(tx: Tx, p: Principal, id: str, body: PublishApps) -> None:
    """Replace the Site's Apps by these, and keep the key that it tells."""
    entry = site_of(tx, p, id)
    if body.key:
        _keep_key(tx, p, entry, body.key)
    if len(body.apps) > limits.APPS_PER_SITE:
        raise TooLarge(f"at most {limits.APPS_PER_SITE} apps a site", field="apps")
    apps = {app.name: app_entry(app) for app in body.apps}
    if len(apps) != len(body.apps):
        raise Invalid("two apps have the same name", field="apps")
    tx.write(DELETE_APPS, site=entry.n)
    if apps:
        rows = to_json([(name, to_json(app.view)) for name, app in apps.items()])
        tx.write(INSERT_APPS, site=entry.n, rows=rows)
    entry.apps = apps
    _tell(tx, p, "site", id=id, name=entry.name, state="apps", apps=sorted(apps))


def _keep_key(tx: Tx, p: Principal, entry: SiteEntry, key: str) -> None:
    """A Site's public key, for users to know it by. Another one than before is told and audited."""
    if not is_public_key(key):
        raise Invalid("a key is 32 bytes in base64", field="key")
    ((before,),) = tx.read(KEY, site=entry.n)
    if key == before:
        return
    tx.write(SET_KEY, site=entry.n, key=key)
    if before:
        _tell(tx, p, "site", id=entry.id, name=entry.name, state="key")
        who = f"site {entry.name}"
        details = {"before": before, "key": key}
        audit.append(
            tx, p.project_n, who, p.token_prefix, p.address, "site.key", entry.name, details
        )


def hello(tx: Tx, p: Principal, id: str, body: AgentHello) -> None:
    """An agent starts. A second one is refused while the first is heard."""
    entry = site_of(tx, p, id)
    check_id(body.agent, "agent")
    (now,) = tx.read(AGENT, site=entry.n)
    another = now.agent not in (None, NOBODY, body.agent, body.previous)
    if another and tx.now - (now.agent_seen_at or 0) < limits.SESSION_TTL_S:
        raise Conflict(
            f"an agent of this site runs on {now.agent_host} and was heard "
            f"{tx.now - now.agent_seen_at:.0f} s ago; stop it first",
            code="agent_present",
        )
    # After a restore an agent is believed to be the one when it has named its Sessions.
    agent = NOBODY if tx.catalog.unheard.awaits_agent(entry.n) else body.agent
    tx.write(SET_AGENT, site=entry.n, agent=agent, host=_plain(body.host[:200]), now=tx.now)
    _tell(tx, p, "site", id=id, name=entry.name, state="online", host=body.host[:200])


def agent_sync(tx: Tx, p: Principal, id: str, body: AgentSync) -> AgentSyncReply:
    """The agent's report and its orders."""
    entry = site_of(tx, p, id)
    tx.notice(body.seen)
    (agent,) = tx.read(AGENT, site=entry.n)
    if agent.agent not in (None, NOBODY, body.agent):
        raise Conflict(
            f"another agent, on {agent.agent_host}, has taken this site over",
            code="agent_superseded",
        )
    if len(body.sessions) > limits.PAGE_MAX:
        raise TooLarge(f"at most {limits.PAGE_MAX} sessions in one sync", field="sessions")
    unknown = _unknown(tx, p, entry, body.sessions)
    tx.write(AGENT_SEEN, site=entry.n, agent=NOBODY if unknown else body.agent, now=tx.now)
    if not unknown:
        tx.heard(entry.n, AGENT_ITSELF)
    accepted = [report.id for report in body.reports if _batch_report(tx, p, entry, report)]
    decided = take_decisions(tx, p, entry, body.decisions)
    known = set(body.known)
    orders = []
    for row in tx.read(OPEN_BATCH_JOBS, site=entry.n):
        cancel = row.cancel_at is not None
        if cancel or row.id not in known:
            # As it was asked for, by whatever version: what is not known any more, the agent refuses.
            orders.append(BatchJobOrder(row.id, msgspec.Raw(row.intent.encode()), cancel))
    return AgentSyncReply(
        tx.catalog.incarnation,
        limits.SESSION_TTL_S,
        orders,
        [row.id for row in tx.read(SILENT, site=entry.n)],
        accepted,
        unknown,
        tx.commit_no,
        demand=_demand(tx, entry, body.demand),
        decided=decided,
    )


def _demand(tx: Tx, site: SiteEntry, known: str | None) -> Demand | None:
    """What waits, if the agent wants to know and knows another mark."""
    if known is None:
        return None
    demand = demand_of(tx, site)
    return None if demand.mark == known else demand


def show_demand(tx: Tx, p: Principal, id: str) -> Demand:
    """What waits for a Site now. Reads only; it is the writer who has the counts in memory."""
    return demand_of(tx, site_of(tx, p, id))


def _unknown(tx: Tx, p: Principal, site: SiteEntry, sessions: list[str]) -> list[str]:
    """Those of an agent's Sessions that this store does not know: it is an older copy."""
    rows = tx.read(SESSIONS_NAMED, project=p.project_n, site=site.n, ids=to_json(sessions))
    known = {row.id for row in rows}
    return [id for id in sessions if id not in known]


def _batch_report(tx: Tx, p: Principal, site: SiteEntry, report: BatchJobReport) -> bool:
    """Apply what the agent says of a BatchJob. An end is proof of death for its Session."""
    found = tx.read(BATCH_JOB, project=p.project_n, id=report.id)
    if not found or found[0].site != site.n:
        return True  # nobody will ever want to hear of it: the agent may forget it
    row = found[0]
    if report.state not in ("submitted", "running", *ENDED):
        raise Invalid(f"{report.state!r} is no state to report", field="reports.state")
    if row.state in ENDED or report.state == row.state:
        return True
    if row.state == "running" and report.state == "submitted":
        return True
    _set_batch_state(tx, p, row, report.id, report.state, report.scheduler_id, report.message)
    if report.state in ENDED and row.session is not None:
        session_dead(tx, row.session, Reason.SESSION_DEAD, report.message or "its allocation ended")
    return True


def _plain(text: str) -> str:
    """A text without NULs, which PostgreSQL's cannot hold."""
    return text.replace("\0", "")


def _set_batch_state(
    tx: Tx, p: Principal, row: Any, id: str, state: str, scheduler_id: str | None, message: str
) -> None:
    message = message[:1000]
    tx.write(
        SET_BATCH_JOB, n=row.n, state=state, scheduler_id=scheduler_id, message=_plain(message)
    )
    _tell(tx, p, "batch_job", id=id, state=state, message=message)


def create_batch_job(tx: Tx, p: Principal, new: NewBatchJob) -> BatchJobView:
    """Ask for an allocation. Repeating it is harmless."""
    check_id(new.id, "id")
    entry = site_of(tx, p, new.site)
    check_intent(new.intent)
    found = tx.read(BATCH_JOB, project=p.project_n, id=new.id)
    if not found:
        tx.write(
            INSERT_BATCH_JOB,
            project=p.project_n,
            id=new.id,
            site=entry.n,
            intent=to_json(new.intent),
            now=tx.now,
        )
        tx.effects.agents.add(entry.n)
        _tell(tx, p, "batch_job", id=new.id, state="requested", site=new.site)
    elif found[0].site != entry.n:
        raise Conflict("a batch job of another site has this id", field="id")
    return batch_job_view(tx.conn, p, new.id)


def cancel_batch_job(tx: Tx, p: Principal, id: str) -> BatchJobView:
    """Give an allocation back: its pilot drains; one not yet submitted never will be."""
    found = tx.read(BATCH_JOB, project=p.project_n, id=id)
    if not found or (p.scope != "user" and found[0].site != p.site_n):
        raise no_such("batch job", id)
    row = found[0]
    if row.state not in ENDED:
        tx.write(CANCEL_BATCH_JOB, n=row.n, now=tx.now)
        tx.effects.agents.add(row.site)
        if row.session is not None:
            tx.effects.kill |= {r.id for r in tx.read(SESSION_OF_BATCH_JOB, batch_job=row.n)}
    return batch_job_view(tx.conn, p, id)


def create_session(tx: Tx, p: Principal, new: NewSession) -> NewSessionReply:
    """Register the pilot of a BatchJob and make its token; the same again makes a new token."""
    check_id(new.id, "id")
    found = tx.read(BATCH_JOB, project=p.project_n, id=new.batch_job)
    if not found or found[0].site != p.site_n:
        raise no_such("batch job", new.batch_job)
    batch = found[0]
    if batch.state in ENDED:
        raise Conflict("the batch job has ended", code="batch_job_ended")
    existing = tx.read(SESSION_BY_ID, project=p.project_n, id=new.id)
    if not existing:
        if batch.session is not None:
            raise Conflict("the batch job has a session", code="session_exists")
        again = tx.catalog.unheard.awaits_agent(batch.site)
        (made,) = tx.write(
            INSERT_SESSION,
            project=p.project_n,
            id=new.id,
            site=p.site_n,
            batch_job=batch.n,
            # One that may have been here before the restore is to tell what it holds.
            incarnation=0 if again else tx.catalog.incarnation,
            now=tx.now,
        )
        session_n = made.n
        if again:
            tx.catalog.unheard.add(batch.site, session_n)
        _tell(tx, p, "session", id=new.id, state="live", batch_job=new.batch_job)
    else:
        if existing[0].batch_job != batch.n or existing[0].state == "dead":
            raise Conflict("this session belongs to another batch job, or is over", field="id")
        session_n = existing[0].n
        for (prefix,) in tx.write(REVOKE_SESSION, session=session_n, now=tx.now):
            tx.effects.revoked.add(prefix)
    token, _ = tokens.issue(
        tx, "session", p.project_n, site=p.site_n, session=session_n, note="pilot"
    )
    return NewSessionReply(new.id, token, p.project_id, p.site_id or "")


def end_session(tx: Tx, p: Principal, id: str, body: EndSession) -> None:
    """End a Session: its pilot's farewell, its Site's proof, or an operator's order. May be repeated."""
    found = tx.read(SESSION_BY_ID, project=p.project_n, id=id)
    if not found or (p.scope != "user" and found[0].site != p.site_n):
        raise no_such("session", id)
    row = found[0]
    if p.scope == "session" and p.session_n != row.n:
        raise no_such("session", id)
    if p.scope == "user" and not body.may_run_twice:
        raise Forbidden(
            "silence is not death: its jobs may still run, and would then run twice. "
            "Say may_run_twice to order it all the same",
            code="may_run_twice",
        )
    words = {"user": "ended by an operator", "site": "its site says that it ended"}
    session_dead(tx, row.n, Reason.SESSION_DEAD, words.get(p.scope, "its pilot ended"))


def _tell(tx: Tx, p: Principal, kind: str, **data: Any) -> None:
    """An Event about something other than a Job."""
    tx.event(p.project_n, kind, data=to_json(data))
