"""`why`: what a Job waits for, by name.

Silent waiting is what users of such systems suffer most, so every state that is not final has an answer
here, and the answer names the thing that is waited for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import msgspec
from sqlalchemy import Connection

from chappe.core import limits
from chappe.core.shapes import Capacity, Shape, misfit
from chappe.core.states import FINAL, State
from chappe.store.dialect import sql
from chappe.store.principal import Principal
from chappe.store.queries import get_job, job_n, list_batch_jobs, list_sites
from chappe.store.tables import WAITS
from chappe.store.tx import to_json
from chappe.wire.jobs import JobView, Why
from chappe.wire.sites import SiteView

OPEN_PARENTS = sql("""
    SELECT p.id, p.name, p.state FROM edge e JOIN job p ON p.n = e.parent
    WHERE e.child = :n AND p.phase IN ('waiting', 'runnable', 'running') ORDER BY e.pos LIMIT 5""")

SHAPE = sql(
    "SELECT shape.n, shape.body FROM job JOIN shape ON shape.n = job.shape WHERE job.n = :n"
)

AHEAD = sql(f"""
    SELECT count(*) FROM (SELECT 1 FROM job WHERE shape = :shape AND {WAITS}
    AND (priority, -n) > (:priority, -:n) LIMIT 10001) counted""")

LEASED_SHAPES = sql("""
    SELECT shape.body, count(*) FROM session s JOIN site ON site.n = s.site
    JOIN job ON job.project = s.project AND job.session = s.n JOIN shape ON shape.n = job.shape
    WHERE s.state <> 'dead' AND (CAST(:site AS text) IS NULL OR site.id = :site)
    GROUP BY shape.n, shape.body""")

SESSION = sql("""
    SELECT s.id, s.state, s.heard_at, site.name FROM session s JOIN site ON site.n = s.site
    WHERE s.id = :id AND s.project = :project""")


UNHEARD = sql("""
    SELECT name FROM site WHERE project = :project AND id IN (SELECT value FROM texts(:ids) v)
    AND (agent = '' OR EXISTS (SELECT 1 FROM session WHERE session.site = site.n AND state <> 'dead'
        AND incarnation <> (SELECT incarnation FROM hub)))""")


def why(
    conn: Connection,
    p: Principal,
    id: str,
    now: float,
    shared: Mapping[str, int] = MappingProxyType({}),
) -> Why:
    """What a Job waits for, most important first. `now` is seconds since 1970, `shared` how many there are
    of the things that the Hub counts over all Sites."""
    job = get_job(conn, p, id)
    n = job_n(conn, p, id)
    state = State(job.state)
    facts: dict[str, Any] = {}
    if state in FINAL:
        reasons = [_how_it_ended(job)]
    elif state is State.AWAITING_PARENTS:
        reasons = _parents(conn, n, job, facts)
    elif job.session is not None:
        reasons = _leased(conn, p, job, now, facts)
    elif job.held_at is not None:
        reasons = []
    elif job.not_before is not None:
        facts["not_before"] = job.not_before
        reasons = [f"it is not to start for another {max(job.not_before - now, 0):.0f} s"]
    else:
        reasons = _unleased(conn, p, n, job, now, facts, shared)
    if job.held_at is not None and state not in FINAL:
        facts["held_at"] = job.held_at
        reasons.insert(0, _held(job, now))
    return Why(job.id, job.state, reasons, facts)


def _held(job: JobView, now: float) -> str:
    where = "" if job.session is None else ", and will not be started again when it comes back"
    return (
        f"it has been held for {max(now - (job.held_at or now), 0):.0f} s{where}: "
        f"release it with `chappe job release {job.id}`"
    )


def _how_it_ended(job: JobView) -> str:
    if job.outcome is None:
        return f"nothing: it is {job.state}"
    outcome = job.outcome
    words = outcome.message or {
        "exit": f"it exited with {outcome.exit}",
        "signal": f"it died of signal {outcome.signal}",
        "timeout": "its wall-clock limit passed",
        "cancelled": "it was cancelled",
    }.get(outcome.reason, outcome.reason)
    return f"nothing: it is {job.state} ({words})"


def _parents(conn: Connection, n: int, job: JobView, facts: dict[str, Any]) -> list[str]:
    rows = conn.execute(OPEN_PARENTS, {"n": n}).fetchall()
    facts["parents"] = [{"id": r.id, "name": r.name, "state": r.state} for r in rows]
    reasons = [f"its parent {r.name} ({r.id}) is {r.state}" for r in rows]
    if not rows:
        reasons.append("its parents have ended; the hub is about to decide what becomes of it")
    if job.waiting_parents > len(rows):
        reasons.append(f"and {job.waiting_parents - len(rows)} more parents")
    return reasons


def _leased(
    conn: Connection, p: Principal, job: JobView, now: float, facts: dict[str, Any]
) -> list[str]:
    row = conn.execute(SESSION, {"id": job.session, "project": p.project_n}).one()
    facts.update(session=row.id, session_state=row.state, site=row.name, heard_at=row.heard_at)
    ago = f"heard {now - row.heard_at:.0f} s ago"
    reasons = []
    if job.cancel_at is not None:
        reasons.append(f"its cancel waits for the pilot at {row.name} to end it ({ago})")
    if row.state == "silent":
        reasons.append(
            f"its pilot at {row.name} is silent ({ago}); silence is not death: the job goes on, or is "
            "given to another pilot when the allocation is known to be over"
        )
    elif job.state == State.RUNNING:
        reasons.append(f"nothing: it runs at {row.name} (pilot {ago})")
    else:
        reasons.append(f"the pilot at {row.name} has it and waits for room to start it ({ago})")
    return reasons


def _unleased(
    conn: Connection,
    p: Principal,
    n: int,
    job: JobView,
    now: float,
    facts: dict[str, Any],
    shared: Mapping[str, int],
) -> list[str]:
    shape_n, body = conn.execute(SHAPE, {"n": n}).one()
    shape = msgspec.json.decode(body, type=Shape)
    ahead = conn.execute(AHEAD, {"shape": shape_n, "priority": job.priority, "n": n}).scalar_one()
    facts["ahead"] = ahead
    sites = {site.id: site for site in list_sites(conn, p, now)}
    unheard = conn.execute(UNHEARD, {"project": p.project_n, "ids": to_json(shape.sites)})
    reasons = [
        f"the hub was restored from a backup: it waits up to {limits.SETTLE_S / 60:.0f} min to hear from "
        f"site {row.name} what runs there already"
        for row in unheard
    ]
    for id in shape.sites:
        site = sites.get(id)
        if site is None:
            reasons.append(f"its site {id} was deleted: cancel the job")
        else:
            said = _at_site(conn, p, shape, site, ahead, now, shared)
            reasons.append(said + _kept(site, job.priority) if ahead == 0 else said)
    return reasons


def _kept(site: SiteView, priority: int) -> str:
    """Which free cores a Job of this priority cannot have, in words; "" when it can have all."""
    offers = [s.capacity for s in site.sessions if s.state == "live" and s.capacity is not None]
    kept = {
        offer.urgent: sum(room.kept * room.count for room in offer.rooms)
        for offer in offers
        if offer.urgent is not None and priority < offer.urgent
    }
    return "".join(
        f"; {cores} free cores are kept for jobs of priority {least} or more"
        for least, cores in kept.items()
        if cores
    )


def _at_site(
    conn: Connection,
    p: Principal,
    shape: Shape,
    site: SiteView,
    ahead: int,
    now: float,
    shared: Mapping[str, int],
) -> str:
    """Why one Site does not take a Job of this Shape now."""
    live = [s for s in site.sessions if s.state == "live"]
    if not live:
        return _no_pilot(conn, p, site, now)
    offers = [
        msgspec.structs.replace(s.capacity, named={**s.capacity.named, **shared})
        for s in live
        if s.capacity is not None
    ]
    fitting = [capacity for capacity in offers if misfit(shape, capacity) is None]
    if offers and not fitting:
        return f"no pilot at {site.name} can take it: {misfit(shape, offers[0])}"
    many = "more than 10000" if ahead > 10_000 else str(ahead)
    if ahead:
        return f"{many} jobs like it are before it at {site.name}"
    if not fitting:
        return f"the pilots at {site.name} offer no room: they are starting, or draining"
    lacks = _lacks_named(conn, shape, site, fitting, shared)
    if lacks:
        return lacks
    free = max(capacity.cores for capacity in fitting)
    return f"it is next at {site.name}: it needs {_needs(shape, fitting)}, {free} cores are free"


def _lacks_named(
    conn: Connection,
    shape: Shape,
    site: SiteView,
    offers: list[Capacity],
    shared: Mapping[str, int],
) -> str:
    """Which countable thing is in use by others, "" for none."""
    if not shape.named:
        return ""
    here = _named_used(conn, site.id)
    everywhere = _named_used(conn, None) if shared else here
    for name, count in shape.named:
        have = max(capacity.named.get(name, 0) for capacity in offers)
        used = (everywhere if name in shared else here)[name]
        if used + count > have:
            # Who has them may be of another project, and then is nobody's business here.
            amount = "all that are left" if name in shared else f"{used} of {have}"
            where = "of the hub" if name in shared else f"at {site.name}"
            return f"it waits for {count} {name} {where}: {amount} are in use by other jobs"
    return ""


def _named_used(conn: Connection, site: str | None) -> Counter[str]:
    """How much of its named resources the Jobs use that a Site's Sessions hold; None: all Sessions."""
    used: Counter[str] = Counter()
    for body, jobs in conn.execute(LEASED_SHAPES, {"site": site}):
        for name, count in msgspec.json.decode(body, type=Shape).named:
            used[name] += count * jobs
    return used


def _needs(shape: Shape, offers: list[Capacity]) -> str:
    most = max(c.node_cores for c in offers)
    words = f"{shape.cores} of {most} cores"
    if shape.nodes > 1:
        words += f" on each of {shape.nodes} nodes of {max(c.nodes for c in offers)}"
    if shape.gpus:
        words += f", {shape.gpus:g} of {max(c.gpus for c in offers):g} GPUs"
    return words


def _no_pilot(conn: Connection, p: Principal, site: SiteView, now: float) -> str:
    if not site.online:
        seen = site.agent_seen_at
        ago = "was never seen" if seen is None else f"was last seen {now - seen:.0f} s ago"
        return f"site {site.name} is offline (its agent {ago}): start it with `chappe site start`"
    silent = sum(s.state == "silent" for s in site.sessions)
    if silent:
        return f"all pilots at {site.name} ({silent}) have been silent for {limits.SESSION_TTL_S:.0f} s"
    queued = [b for s in ("requested", "submitted") for b in list_batch_jobs(conn, p, site.id, s)]
    if queued:
        return (
            f"no pilot runs at {site.name}: {len(queued)} allocations are waiting for the scheduler"
        )
    return (
        f"no pilot runs at {site.name}, and none is asked for: create a batch job, or look in the site's "
        "directory why its agent asks for none (`chappe batch-job plan`)"
    )
