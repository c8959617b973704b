"""What waits for a Site, from the counts that are in memory: no Job is ever looked at for it.

An agent that wants to know is answered when the *mark* differs from the one that it knows. It is made of the
counts' sizes in powers of two, and of who has asked for work: so ten thousand Jobs that come one by one make
a dozen answers, and the exact counts come with each.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from chappe.core import limits
from chappe.core.errors import TooLarge
from chappe.core.shapes import Capacity
from chappe.store.acquire import named_in_use
from chappe.store.catalog import SiteEntry
from chappe.store.dialect import sql
from chappe.store.principal import Principal
from chappe.store.tx import Tx, to_json
from chappe.wire.demand import Decision, Demand, PilotOffer, ShapeWaiting

SHAPES_MOST = 500

#: A Session whose `cores` are known has offered room once: it asks for work, or does no more.
OFFERS = sql("""
    SELECT id, state, capacity FROM session
    WHERE site = :site AND state <> 'dead' AND cores IS NOT NULL ORDER BY n LIMIT :most""")

DECIDED = sql("SELECT decided FROM site WHERE n = :site")
SET_DECIDED = sql("UPDATE site SET decided = :no WHERE n = :site")


def demand_of(tx: Tx, site: SiteEntry) -> Demand:
    """What waits for a Site now."""
    entries = [entry for entry in site.shapes if entry.waiting]
    entries.sort(key=lambda entry: (-entry.waiting, entry.n))
    rows = tx.read(OFFERS, site=site.n, most=limits.PAGE_MAX)
    named = any(entry.shape.named for entry in entries)
    used = dict(sorted(named_in_use(tx.catalog, site.n).items())) if named else {}
    pilots = [_offer(row) for row in rows]
    sizes = sorted((entry.n, entry.waiting.bit_length()) for entry in entries)
    mark = to_json((sizes, [(p.session, p.closed) for p in pilots], used))
    return Demand(
        hashlib.sha256(mark.encode()).hexdigest()[:32],
        [ShapeWaiting(entry.shape, entry.waiting) for entry in entries[:SHAPES_MOST]],
        sum(entry.waiting for entry in entries[SHAPES_MOST:]),
        pilots,
        used,
    )


def _offer(row: Any) -> PilotOffer:
    if row.capacity is None or row.state == "silent":
        return PilotOffer(row.id, closed=True)
    cap = msgspec.json.decode(row.capacity, type=Capacity)
    return PilotOffer(row.id, False, cap.node_cores, cap.node_mem_bytes, cap.gpus)


def take_decisions(tx: Tx, p: Principal, site: SiteEntry, decisions: list[Decision]) -> int:
    """Make Events of what the agent decided, each once; the highest number that is taken."""
    if len(decisions) > limits.DECISIONS_PER_SYNC:
        raise TooLarge(
            f"at most {limits.DECISIONS_PER_SYNC} decisions in one sync", field="decisions"
        )
    last = int(tx.read(DECIDED, site=site.n)[0].decided)
    new = [d for d in sorted(decisions, key=lambda d: d.no) if d.no > last]
    for decision in new:
        # The Site last: whom an Event is about is not for the agent to say.
        data = to_json({**decision.data, "id": site.id, "name": site.name})
        if len(data) > limits.DECISION_BYTES:
            raise TooLarge("the decision has too many inputs", field="decisions.data")
        tx.event(p.project_n, "elastic", at=decision.at, data=data)
        last = decision.no
    if new:
        tx.write(SET_DECIDED, site=site.n, no=last)
    return last
