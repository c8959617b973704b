"""Choosing Jobs for a pilot: the heads of the Shapes that fit, merged by priority and age.

Shapes that do not fit are skipped by their counts in memory, so Jobs that cannot run here cost nothing,
however many they are. What a Job needs of its Site's named resources is counted over all that the Site's
pilots hold, or over all Sites where the Hub counts: a licence is used from the grant on.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from chappe.core import limits
from chappe.core.rooms import Room, may_reserve
from chappe.core.shapes import Capacity, misfit
from chappe.store.catalog import Catalog, ShapeEntry
from chappe.store.dialect import sql
from chappe.store.jobrow import COLUMNS, WIDTH, to_row
from chappe.store.principal import Principal
from chappe.store.tables import WAITS
from chappe.store.tx import Tx, to_json
from chappe.wire.submission import Submission
from chappe.wire.sync import Grant, SyncReply, SyncRequest

HEADS = sql(f"""
    SELECT n, priority, state, app, site, changed_at FROM job WHERE shape = :shape AND {WAITS}
    ORDER BY priority DESC, n LIMIT :most""")

NEXT_HEADS = sql(f"""
    SELECT n, priority, state, app, site, changed_at FROM job WHERE shape = :shape AND {WAITS}
        AND (priority, -n) < (:priority, -:n)
    ORDER BY priority DESC, n LIMIT :most""")

#: Shapes of which an urgent Job waits: one look into an index each.
URGENT = sql(f"""
    SELECT v.value AS shape FROM ints(:shapes) v WHERE EXISTS (
        SELECT 1 FROM job WHERE shape = v.value AND {WAITS} AND priority >= :least)""")

RESERVING_MOST = 16
"""Shapes at most whose first Jobs are looked at, to find one that is not to be overtaken."""

LEASE = sql("""
    UPDATE job SET session = :session, granted_request = :request, epoch = epoch + 1
    WHERE n IN (SELECT value FROM ints(:ns) v)""")

#: Only for Jobs that could have run elsewhere: an index holds the Site.
SET_SITE = sql("UPDATE job SET site = :site WHERE n IN (SELECT value FROM ints(:ns) v)")

GRANTED = sql(f"""
    SELECT {COLUMNS}, job.spec, job.idx, job.priority
    FROM ints(:ns) v CROSS JOIN job ON job.n = v.value""")

SUBMISSION_IDS = sql("""
    SELECT n, id FROM submission WHERE n IN (SELECT value FROM ints(:ns) v)""")

SUBMISSIONS = sql("""
    SELECT id, statement, sig FROM submission WHERE n IN (SELECT value FROM ints(:ns) v)""")


def acquire_grants(tx: Tx, p: Principal, session: Any, req: SyncRequest, reply: SyncReply) -> None:
    """Grant what fits into `req.capacity`, and put it into `reply`."""
    capacity = req.capacity
    if capacity is None or reply.drain or p.site_n is None:
        return
    chosen = choose(tx, p.site_n, capacity)
    if not chosen:
        return
    for shape_n, count in Counter(entry.n for entry, _ in chosen).items():
        tx.waiting(shape_n, -count)
    ns, moved = [], []
    for _, head in chosen:
        n, _, state, app, site, _ = head
        if site != p.site_n:
            tx.count(p.project_n, site or 0, app or "", state, -1)
            tx.count(p.project_n, p.site_n, app or "", state, 1)
            moved.append(n)
        ns.append(n)
    if moved:
        tx.write(SET_SITE, site=p.site_n, ns=to_json(moved))
    tx.write(LEASE, session=session.n, request=req.request_no, ns=to_json(ns))
    fill_grants(tx, ns, req, reply)


def choose(tx: Tx, site_n: int, capacity: Capacity) -> list[tuple[ShapeEntry, Any]]:
    """The Jobs to grant, best first."""
    settling = tx.settling()
    if tx.catalog.shared:
        named = {**capacity.named, **tx.catalog.shared}
        capacity = msgspec.structs.replace(capacity, named=named)
    possible = [
        entry
        for entry in tx.catalog.sites[site_n].shapes
        if entry.waiting
        and settling.isdisjoint(entry.shape.sites)
        and misfit(entry.shape, capacity) is None
    ]
    used = named_in_use(tx.catalog, site_n) if any(e.shape.named for e in possible) else None
    room = Room(capacity, limits.GRANTS_PER_SYNC, used)
    fitting = [entry for entry in possible if room.most(entry.shape) > 0]
    if room.urgent is not None:
        fitting += _urgent(tx, room, possible, fitting)
    if not fitting:
        return []
    overtaken = _overtaken(possible, fitting) if capacity.reserve or used is not None else []
    queues = [_heads(tx, entry, room, len(fitting)) for entry in fitting]
    queues += [_heads(tx, entry, room, len(overtaken), 1) for entry in overtaken]
    return _merge(tx, room, capacity.reserve, fitting + overtaken, queues)


def _urgent(
    tx: Tx, room: Room, possible: list[ShapeEntry], fitting: list[ShapeEntry]
) -> list[ShapeEntry]:
    """The Shapes that have room only in what is kept for urgent Jobs, and have such a Job."""
    others = {entry.n for entry in fitting}
    able = {
        entry.n: entry
        for entry in possible
        if entry.n not in others and room.most(entry.shape, urgent=True) > 0
    }
    if not able:
        return []
    return [able[n] for (n,) in tx.read(URGENT, shapes=to_json(list(able)), least=room.urgent)]


def _overtaken(possible: list[ShapeEntry], fitting: list[ShapeEntry]) -> list[ShapeEntry]:
    """The Shapes, the largest first, whose Jobs have no room now while smaller ones have."""
    smaller = {entry.n for entry in fitting}
    rest = [entry for entry in possible if entry.n not in smaller]
    rest.sort(key=lambda e: (e.shape.nodes, e.shape.cores, e.shape.mem_bytes), reverse=True)
    return rest[:RESERVING_MOST]


def _merge(
    tx: Tx, room: Room, reserve: bool, entries: list[ShapeEntry], queues: list[Iterator[Any]]
) -> list[tuple[ShapeEntry, Any]]:
    heap: list[tuple[int, int, int, Any]] = []
    for i, queue in enumerate(queues):
        head = next(queue, None)
        if head is not None:
            heap.append((-head.priority, head.n, i, head))
    heapq.heapify(heap)
    chosen: list[tuple[ShapeEntry, Any]] = []
    waits: tuple[ShapeEntry, Any] | None = None
    while heap and room.left:
        _, _, i, head = heap[0]
        if waits is not None and room.fits(entries[i].shape, head.priority):
            # This one would overtake one that has waited long enough.
            if room.reserve(waits[0].shape):
                chosen.append(waits)
                break
            waits = None
        if not room.take(entries[i].shape, head.priority):
            # No room for this Shape any more; smaller ones may still fit.
            heapq.heappop(heap)
            if may_reserve(tx.now - head.changed_at) and not room.keep_named(entries[i].shape):
                waits = waits or ((entries[i], head) if reserve else None)
            continue
        chosen.append((entries[i], head))
        head = next(queues[i], None)
        if head is None:
            heapq.heappop(heap)
        else:
            heapq.heapreplace(heap, (-head.priority, head.n, i, head))
    return chosen


def named_in_use(catalog: Catalog, site_n: int) -> Counter[str]:
    """How much of its named resources the Jobs use that a Site's Sessions hold; of those that the Hub
    counts, how much all Jobs use."""
    wanted = {n: entry.shape.named for n, entry in catalog.shapes.items() if entry.shape.named}
    used: Counter[str] = Counter()
    for held in catalog.leases.values():
        for row in held.values():
            here = row.site == site_n
            if not here and not catalog.shared:
                break  # a Session's Jobs are all at its Site
            for name, count in wanted.get(row.shape, ()):
                if here or name in catalog.shared:
                    used[name] += count
    return used


def _heads(tx: Tx, entry: ShapeEntry, room: Room, shapes: int, least: int = 4) -> Iterator[Any]:
    """A Shape's Jobs, best first, read in chunks that shrink with the number of Shapes."""
    share = room.left if shapes == 1 else 2 * room.left // shapes + 1
    most = max(least, min(room.most(entry.shape), share))
    rows: Sequence[Any] = tx.read(HEADS, shape=entry.n, most=most)
    while rows:
        yield from rows
        if len(rows) < most:
            return
        last = rows[-1]
        rows = tx.read(NEXT_HEADS, shape=entry.n, priority=last.priority, n=last.n, most=most)


def fill_grants(tx: Tx, ns: list[int], req: SyncRequest, reply: SyncReply) -> None:
    """Put the grants of these Jobs into `reply`, with submissions that the pilot does not have."""
    if not ns:
        return
    by_n = {found.n: found for found in tx.read(GRANTED, ns=to_json(ns))}
    granted = [by_n[n] for n in ns]  # the best first; sorting rows so wide is dear in SQL
    rows = [to_row(found) for found in granted]
    # Thousands of grants come from a few submissions, whose statements are long.
    submissions = {row.submission for row in rows if row.submission is not None}
    ids = dict(tx.read(SUBMISSION_IDS, ns=to_json(list(submissions)))) if submissions else {}
    for row, found in zip(rows, granted, strict=True):
        tx.catalog.leases[found.session].setdefault(row.id, row)
        spec, idx, priority = found[WIDTH:]
        reply.grants.append(
            Grant(
                row.id,
                row.epoch,
                row.attempt + 1,
                msgspec.Raw(spec.encode()),
                None if row.submission is None else ids[row.submission],
                idx,
                priority,
            )
        )
    have = set(req.have_submissions)
    missing = [n for n, id in ids.items() if id not in have]
    if missing:
        for id, statement, sig in tx.read(SUBMISSIONS, ns=to_json(missing)):
            reply.submissions.append(Submission(id, msgspec.Raw(statement.encode()), sig))
