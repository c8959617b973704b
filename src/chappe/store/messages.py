"""Reading the journal: messages by position, what waits in quarantine, and what each source counted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection

from chappe.core import cloudevents, limits
from chappe.core.errors import Invalid
from chappe.store.dialect import sql
from chappe.store.principal import Principal
from chappe.store.producers import MAIN_NAME, named
from chappe.store.rows import no_such
from chappe.wire.messages import (
    MessagePage,
    MessageStats,
    MessageView,
    QuarantinePage,
    QuarantineView,
    SourceStats,
)

#: At most so many positions are looked at for one page, however few messages of them pass.
SCAN = 20_000
QUANTILES = (0.5, 0.9, 0.99)

_FROM = "JOIN source s ON s.n = m.source LEFT JOIN producer p ON p.n = m.producer"
_NAMED = f"COALESCE(p.name, '{MAIN_NAME}') AS producer, s.door, s.name AS source"
_VIEW = f"""
    SELECT m.n, m.uid, {_NAMED}, m.type, m.code, COALESCE(m.simulation, '') AS simulation,
           COALESCE(m.job, '') AS job, m.at_ns, m.received_at, length(m.raw) AS size_bytes, m.sha256,
           COALESCE(m.stream, '') AS stream, m.seq"""
_QUARANTINED = f"""
    SELECT m.n, m.uid, {_NAMED}, m.reason, m.words AS message, m.received_at,
           length(m.raw) AS size_bytes, m.sha256"""

ONE = sql(f"""{_VIEW}, m.raw FROM message m {_FROM}
    WHERE m.project = :project AND m.uid = :uid
    AND m.producer IN (SELECT value FROM ints(:producers) v) ORDER BY m.producer LIMIT 1""")

PRODUCERS = sql("SELECT n FROM producer WHERE project = :project")

LAST = sql("SELECT COALESCE(max(n), 0) FROM message WHERE project = :project")

QUARANTINED = sql(f"""{_QUARANTINED} FROM quarantine m {_FROM}
    WHERE m.project = :project AND m.n > :after
    AND (CAST(:reason AS text) IS NULL OR m.reason = :reason) ORDER BY m.n LIMIT :most""")

ONE_QUARANTINED = sql(f"""{_QUARANTINED}, m.raw FROM quarantine m {_FROM}
    WHERE m.project = :project AND m.n = :n""")

SOURCES = sql("""
    SELECT n, door, name AS source, received, stored, duplicate, quarantined, last_at
    FROM source WHERE project = :project ORDER BY door, name""")

LATENCIES = sql("""
    SELECT l.source, l.bucket, l.count AS many FROM source s CROSS JOIN source_latency l ON l.source = s.n
    WHERE s.project = :project ORDER BY l.source, l.bucket""")

REASONS = sql("""
    SELECT reason, count(*) AS many FROM quarantine WHERE project = :project GROUP BY reason""")

#: Of all projects, for /metrics.
COUNTED = sql("""
    SELECT door, CAST(sum(stored) AS bigint) AS stored, CAST(sum(duplicate) AS bigint) AS duplicate,
           CAST(sum(quarantined) AS bigint) AS quarantined
    FROM source GROUP BY door ORDER BY door""")


@dataclass(slots=True, frozen=True)
class MessageFilter:
    """Which messages: all conditions that are given must hold."""

    simulation: str | None = None
    job: str | None = None
    type: str | None = None
    code: str | None = None
    producer: str | None = None


def page(
    conn: Connection, p: Principal, f: MessageFilter, cursor: int | None, newest: bool, limit: int
) -> MessagePage:
    """Messages by position, rising from after the cursor, or with `newest` falling from before it."""
    _check(limit)
    params: dict[str, Any] = {"project": p.project_n, "most": limit}
    where = ["m.project = :project"]
    for name in ("simulation", "job", "type", "code"):
        value = getattr(f, name)
        if value is not None:
            where.append(f"m.{name} = :{name}")
            params[name] = value
    if f.producer is not None:
        where.append("m.producer = :producer")
        params["producer"] = named(conn, p.project_n, f.producer)
    last = conn.execute(LAST, {"project": p.project_n}).scalar_one()
    if newest:
        before = last + 1 if cursor is None else min(cursor, last + 1)
        low, high = max(1, before - SCAN), before - 1
    else:
        after = cursor or 0
        low, high = after + 1, min(after + SCAN, last)
    if f.simulation is not None:
        # These have an index of their own.
        low, high = (1, high) if newest else (low, last)
    where.append("m.n BETWEEN :low AND :high")
    order = "DESC" if newest else "ASC"
    text = f"{_VIEW} FROM message m {_FROM} WHERE {' AND '.join(where)} ORDER BY m.n {order} LIMIT :most"
    rows = conn.execute(sql(text), params | {"low": low, "high": high}).fetchall()
    looked = rows[-1].n if len(rows) == limit else (low if newest else high)
    more = looked > 1 if newest else looked < last
    return MessagePage([_view(row) for row in rows], looked if more else None)


def one(conn: Connection, p: Principal, uid: str, producer: str | None) -> MessageView:
    """A message with its bytes; of several producers' the project's own, unless one is named."""
    if producer is not None:
        numbers = [named(conn, p.project_n, producer)]
    else:
        known = conn.execute(PRODUCERS, {"project": p.project_n})
        numbers = [0, *(row.n for row in known)]
    params = {"project": p.project_n, "uid": uid, "producers": _json(numbers)}
    row = conn.execute(ONE, params).first()
    if row is None:
        raise no_such("message", uid)
    raw = bytes(row.raw)
    message = cloudevents.read(raw)
    view = _view(row)
    return msgspec.structs.replace(
        view,
        marks=[str(mark) for mark in message.marks],
        fields=message.fields,
        raw=raw.decode(errors="replace"),
    )


def _view(row: Any) -> MessageView:
    fields = {k: v for k, v in row._mapping.items() if k not in ("at_ns", "raw")}
    return MessageView(**fields, at=row.at_ns / 1e9, at_ns=str(row.at_ns) if row.at_ns else "")


def quarantine(
    conn: Connection, p: Principal, reason: str | None, after: int, limit: int
) -> QuarantinePage:
    """What is in quarantine, by number, from after the cursor."""
    _check(limit)
    params = {"project": p.project_n, "after": after, "reason": reason, "most": limit}
    rows = conn.execute(QUARANTINED, params).fetchall()
    found = [QuarantineView(**row._mapping) for row in rows]
    return QuarantinePage(found, found[-1].n if len(found) == limit else None)


def one_quarantined(conn: Connection, p: Principal, number: str) -> QuarantineView:
    """One of them, with its bytes."""
    is_one = number.isascii() and number.isdecimal() and len(number) <= 18
    params = {"project": p.project_n, "n": int(number) if is_one else 0}
    row = conn.execute(ONE_QUARANTINED, params).first()
    if row is None:
        raise no_such("message in quarantine", number)
    fields = dict(row._mapping)
    return QuarantineView(**fields | {"raw": bytes(row.raw).decode(errors="replace")})


def stats(conn: Connection, p: Principal) -> MessageStats:
    """What each source counted, how long its messages took, and what waits in quarantine."""
    whose = {"project": p.project_n}
    buckets: dict[int, list[tuple[int, int]]] = {}
    for row in conn.execute(LATENCIES, whose):
        buckets.setdefault(row.source, []).append((row.bucket, row.many))
    sources = []
    for row in conn.execute(SOURCES, whose):
        fields = {k: v for k, v in row._mapping.items() if k != "n"}
        times = buckets.get(row.n, [])
        sources.append(
            SourceStats(
                **fields, timed=sum(count for _, count in times), latency_ms=quantiles(times)
            )
        )
    reasons = {row.reason: row.many for row in conn.execute(REASONS, whose)}
    last = conn.execute(LAST, whose).scalar_one()
    return MessageStats(sources, reasons, sum(s.stored for s in sources), last)


def quantiles(buckets: list[tuple[int, int]]) -> tuple[float, float, float] | None:
    """Upper bounds of the median, the 90th and the 99th percentile in milliseconds; None without any."""
    total = sum(count for _, count in buckets)
    if not total:
        return None
    found = []
    for q in QUANTILES:
        seen = 0
        for bucket, count in buckets:
            seen += count
            if seen >= q * total:
                found.append(float(1 << bucket))
                break
    return (found[0], found[1], found[2])


def _check(limit: int) -> None:
    if not 1 <= limit <= limits.PAGE_MAX:
        raise Invalid(f"limit must be 1 to {limits.PAGE_MAX}", field="limit")


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
