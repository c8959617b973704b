"""Throughput, utilisation, waiting and run times of the Jobs that ended in a period.

The index of ended Jobs gives the period; of at most SAMPLE Jobs, evenly chosen, the Events say when they
could run, began and ended, by the clocks of those who saw it. So the cost has a bound, whatever the period.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from sqlalchemy import Connection

from chappe.core.errors import Invalid, TooLarge
from chappe.core.shapes import Shape
from chappe.store.dialect import sql
from chappe.store.principal import Principal
from chappe.store.tables import ENDED
from chappe.store.tx import to_json
from chappe.wire.stats import Spread, Stats, StatsGroup

#: Jobs that are looked at, Jobs that a period may hold, and Sessions that are counted.
SAMPLE = 20_000
MOST = 1_000_000
SESSIONS = 10_000
BY = ("site", "app")

MANY = sql(f"""
    SELECT count(*) FROM (SELECT 1 FROM job WHERE project = :project AND {ENDED}
        AND ended_at >= :since AND ended_at < :until LIMIT :most) found""")

CHOSEN = sql(f"""
    SELECT n FROM job WHERE project = :project AND {ENDED}
        AND ended_at >= :since AND ended_at < :until AND n % :one_in = 0 LIMIT :most""")

JOBS = sql("""
    SELECT job.n, job.phase, job.shape, COALESCE(site.id, '') AS site, COALESCE(job.app, '') AS app
    FROM ints(:ns) v CROSS JOIN job ON job.n = v.value LEFT JOIN site ON site.n = job.site""")

SHAPES = sql("SELECT n, body FROM shape WHERE n IN (SELECT value FROM ints(:ns) v)")

#: When each Job last became runnable, last began and last ended.
TIMES = sql("""
    SELECT e.job,
           max(CASE WHEN e.new IN ('PREPROCESSED', 'RESTART_READY') THEN e.occurred_at END) AS ready,
           max(CASE WHEN e.new = 'RUNNING' THEN e.occurred_at END) AS began,
           max(CASE WHEN e.new IN ('JOB_FINISHED', 'FAILED', 'CANCELLED') THEN e.occurred_at END) AS ended
    FROM ints(:ns) v CROSS JOIN event e ON e.job = v.value AND e.kind = 'job' GROUP BY e.job""")

OFFERED = sql("""
    SELECT site.id AS site, s.cores, s.created_at, s.state, s.heard_at
    FROM session s JOIN site ON site.n = s.site
    WHERE s.project = :project AND s.cores IS NOT NULL AND s.created_at < :until
      AND (s.state = 'live' OR s.heard_at >= :since) ORDER BY s.n DESC LIMIT :most""")


@dataclass(slots=True)
class _Group:
    phases: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    waits: list[float] = field(default_factory=list)
    runs: list[float] = field(default_factory=list)
    core_s: float = 0.0


def stats(
    conn: Connection, p: Principal, since: float, until: float, by: Sequence[str], now: float
) -> Stats:
    """What ended from `since` on and before `until`, told apart `by` site, app, both or neither."""
    until = min(until, now)
    if not since < until:
        raise Invalid("the period is empty: `since` must lie before `until` and now", field="since")
    if set(by) - set(BY):
        raise Invalid(
            f"by {', '.join(BY)} or both, not {min(set(by) - set(BY))[:40]!r}", field="by"
        )
    period = {"project": p.project_n, "since": since, "until": until}
    jobs = conn.execute(MANY, {**period, "most": MOST + 1}).scalar_one()
    if jobs > MOST:
        raise TooLarge(f"more than {MOST} jobs ended in that time: take less of it", field="since")
    one_in = max(math.ceil(jobs / SAMPLE), 1)
    groups = _sample(conn, {**period, "one_in": one_in, "most": 2 * SAMPLE}, by)
    offered = None
    if "app" not in by:
        offered = _offered(conn, period, now, apart="site" in by)
        for site in offered:
            groups.setdefault((site, None), _Group())  # pilots that had nothing to do
    hours = (until - since) / 3600
    told = [_told(*key, group, one_in, hours, offered) for key, group in groups.items()]
    told.sort(key=lambda g: (g.site or "", g.app or ""))
    return Stats(since, until, jobs, one_in, told)


_Key = tuple[str | None, str | None]


def _sample(conn: Connection, period: dict[str, Any], by: Sequence[str]) -> dict[_Key, _Group]:
    ns = to_json([row.n for row in conn.execute(CHOSEN, period)])
    times = {row.job: row for row in conn.execute(TIMES, {"ns": ns})}
    rows = conn.execute(JOBS, {"ns": ns}).fetchall()
    cores = _cores(conn, {row.shape for row in rows})
    groups: dict[_Key, _Group] = defaultdict(_Group)
    for row in rows:
        key = (row.site if "site" in by else None, row.app if "app" in by else None)
        group = groups[key]
        group.phases[row.phase] += 1
        at = times.get(row.n)
        if at is None or at.began is None or at.ended is None:
            continue
        # Different clocks may disagree by a little.
        run_s = max(at.ended - at.began, 0.0)
        group.runs.append(run_s)
        group.core_s += run_s * cores[row.shape]
        if at.ready is not None:
            group.waits.append(max(at.began - at.ready, 0.0))
    return groups


def _cores(conn: Connection, shapes: set[int]) -> dict[int, int]:
    found = conn.execute(SHAPES, {"ns": to_json(list(shapes))})
    decoded = ((n, msgspec.json.decode(body, type=Shape)) for n, body in found)
    return {n: shape.cores * shape.nodes for n, shape in decoded}


def _offered(
    conn: Connection, period: dict[str, Any], now: float, *, apart: bool
) -> dict[str | None, float]:
    """Core-seconds that pilots had in the period, by Site or in all."""
    core_s: dict[str | None, float] = defaultdict(float)
    for row in conn.execute(OFFERED, {**period, "most": SESSIONS}):
        end = now if row.state == "live" else row.heard_at
        held_s = min(end, period["until"]) - max(row.created_at, period["since"])
        core_s[row.site if apart else None] += row.cores * max(held_s, 0.0)
    return core_s


def _told(
    site: str | None,
    app: str | None,
    group: _Group,
    one_in: int,
    hours: float,
    offered: dict[str | None, float] | None,
) -> StatsGroup:
    used_s = group.core_s * one_in
    offered_s = None if offered is None else offered.get(site, 0.0)
    return StatsGroup(
        site,
        app,
        group.phases["finished"] * one_in,
        group.phases["failed"] * one_in,
        group.phases["cancelled"] * one_in,
        sum(group.phases.values()) * one_in / hours,
        used_s / 3600,
        spread(group.waits),
        spread(group.runs),
        None if offered_s is None else offered_s / 3600,
        used_s / offered_s if offered_s else None,
    )


def spread(times: list[float]) -> Spread | None:
    """Median and upper percentiles (nearest rank); None of nothing."""
    if not times:
        return None
    rising = sorted(times)

    def rank(share: float) -> float:
        return rising[math.ceil(len(rising) * share) - 1]

    return Spread(len(rising), rank(0.5), rank(0.9), rank(0.99))
