"""Decoding again what is in quarantine, when a later version may read it.

What can be read now is accepted as if it had just come by its own door, at its own time; what still cannot
stays as it is. A conflict is no matter of reading, and stays too.
"""

from __future__ import annotations

from typing import Any

from chappe.core import limits
from chappe.core.errors import TooLarge
from chappe.store import audit
from chappe.store.dialect import sql
from chappe.store.journal import CONFLICT, Arrival, accept_all, item
from chappe.store.principal import Principal
from chappe.store.tx import Tx, to_json
from chappe.wire.messages import Requeue, Requeued

_ROWS = f"""
    SELECT q.n, q.producer, q.uid, q.received_at, q.source, q.carrier, q.raw, s.door, s.name
    FROM quarantine q JOIN source s ON s.n = q.source
    WHERE q.project = :project AND q.n > :after AND q.reason <> '{CONFLICT}'"""

ALL = sql(f"""{_ROWS} AND (CAST(:reason AS text) IS NULL OR q.reason = :reason)
    ORDER BY q.n LIMIT :most""")

THESE = sql(f"""{_ROWS} AND q.n IN (SELECT value FROM ints(:numbers) v)
    ORDER BY q.n LIMIT :most""")

TAKE_OUT = sql("DELETE FROM quarantine WHERE n IN (SELECT value FROM ints(:numbers) v)")

#: They are counted anew when they are accepted.
UNCOUNT = sql("""
    UPDATE source SET received = received - v.many, quarantined = quarantined - v.many
    FROM rows(:rows, n int, many int) v WHERE source.n = v.n""")


def requeue(tx: Tx, p: Principal, body: Requeue) -> Requeued:
    """Decode some of what is in quarantine again. Ask again with the cursor until there is none."""
    numbers = body.numbers
    if numbers is not None and len(numbers) > limits.IDS_PER_FILTER:
        raise TooLarge(
            f"{len(numbers)} numbers, the limit is {limits.IDS_PER_FILTER}", field="numbers"
        )
    most = limits.REQUEUE_AT_ONCE
    params: dict[str, Any] = {"project": p.project_n, "after": body.after, "most": most}
    if numbers is None:
        rows = tx.read(ALL, reason=body.reason, **params)
    else:
        rows = tx.read(THESE, numbers=to_json(numbers), **params)
    arrivals: list[Arrival] = []
    read: list[int] = []
    by_source: dict[int, int] = {}
    for row in rows:
        again = item(bytes(row.raw), row.uid)
        if again.message is None:
            continue
        read.append(row.n)
        by_source[row.source] = by_source.get(row.source, 0) + 1
        arrivals.append(
            Arrival(
                p.project_n,
                row.producer,
                row.door,
                row.name,
                row.received_at,
                [again],
                carrier_n=row.carrier,
            )
        )
    verdicts: list[str] = []
    if read:
        tx.write(TAKE_OUT, numbers=to_json(read))
        tx.write_rows(UNCOUNT, list(by_source.items()))
        verdicts = [each[0].verdict for each in accept_all(tx, arrivals)]
        audit.record(tx, p, p.project_n, "messages.requeue", str(len(read)))
    stored, duplicate = verdicts.count("stored"), verdicts.count("duplicate")
    cursor = rows[-1].n if len(rows) == most else None
    return Requeued(len(rows), stored, duplicate, len(rows) - stored - duplicate, cursor)
