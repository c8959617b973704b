"""Whether every message of a stream is here: numbers without a gap, each naming the bytes before it.

A producer that numbers its messages (1, 2, 3 … within a stream, such as one spool file) and has each name the
sha256 of the one before can be held to it: what is missing, was changed, or was put in between shows.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection

from chappe.core import cloudevents
from chappe.core.messages import Undecodable
from chappe.store.dialect import sql
from chappe.store.principal import Principal
from chappe.store.producers import MAIN_NAME
from chappe.wire.messages import StreamCheck, StreamPage

#: Messages looked at for one page, unless its first stream has more.
SCAN = 50_000
STREAMS = 200
GAPS = 100

_NEXT = """
    SELECT DISTINCT stream FROM {table} WHERE project = :project AND stream > :after
    ORDER BY stream LIMIT :most"""

STREAMS_NEXT = sql(f"""
    SELECT stream FROM ({_NEXT.format(table="message")}) a
    UNION SELECT stream FROM ({_NEXT.format(table="quarantine")}) b ORDER BY stream LIMIT :most""")

OF_SIMULATION = sql("""
    SELECT DISTINCT stream FROM message
    WHERE project = :project AND simulation = :simulation AND stream > :after
    ORDER BY stream LIMIT :most""")

UNNUMBERED = sql("""
    SELECT count(*) FROM message
    WHERE project = :project AND simulation = :simulation AND stream IS NULL""")

MESSAGES = sql(f"""
    SELECT m.seq, m.sha256, m.raw, m.producer AS who, COALESCE(p.name, '{MAIN_NAME}') AS producer,
           m.simulation
    FROM message m LEFT JOIN producer p ON p.n = m.producer
    WHERE m.project = :project AND m.stream = :stream ORDER BY m.producer, m.seq, m.n""")

IN_QUARANTINE = sql(f"""
    SELECT q.seq, q.sha256, q.producer AS who, COALESCE(p.name, '{MAIN_NAME}') AS producer
    FROM quarantine q LEFT JOIN producer p ON p.n = q.producer
    WHERE q.project = :project AND q.stream = :stream ORDER BY q.producer, q.seq, q.n""")


def check(conn: Connection, p: Principal, simulation: str | None, after: str) -> StreamPage:
    """Check streams after a name: all of the project, or those that a simulation's messages are of."""
    params: dict[str, Any] = {"project": p.project_n, "after": after, "most": STREAMS}
    unnumbered = 0
    if simulation is None:
        names = [row.stream for row in conn.execute(STREAMS_NEXT, params)]
    else:
        params["simulation"] = simulation
        names = [row.stream for row in conn.execute(OF_SIMULATION, params)]
        unnumbered = conn.execute(UNNUMBERED, params).scalar_one()
    found: list[StreamCheck] = []
    looked = 0
    for i, name in enumerate(names):
        checks = _checked(conn, p.project_n, name)
        found += checks
        looked += sum(c.received for c in checks)
        if looked >= SCAN and i + 1 < len(names):
            return StreamPage(found, unnumbered, name)
    return StreamPage(found, unnumbered, names[-1] if len(names) == STREAMS else None)


def _checked(conn: Connection, project: int, stream: str) -> list[StreamCheck]:
    """A stream's name is its producer's: two of them may have chosen the same."""
    whose = {"project": project, "stream": stream}
    by: dict[int, _Walk] = {}
    for row in conn.execute(MESSAGES, whose):
        by.setdefault(row.who, _Walk(stream, row.producer)).message(row)
    for row in conn.execute(IN_QUARANTINE, whose):
        by.setdefault(row.who, _Walk(stream, row.producer)).quarantined(row)
    return [walk.result() for _, walk in sorted(by.items())]


class _Walk:
    """One producer's stream, looked at in the order of its numbers."""

    def __init__(self, stream: str, producer: str) -> None:
        self._stream = stream
        self._producer = producer
        self._hashes: dict[int, str] = {}
        self._named: dict[int, str] = {}
        self._in_quarantine: set[int] = set()
        self._simulations: set[str] = set()
        self._repeated = 0

    def message(self, row: Any) -> None:
        """One of the journal."""
        if row.seq in self._hashes:
            self._repeated += 1
            return
        self._hashes[row.seq] = row.sha256
        if row.simulation is not None:
            self._simulations.add(row.simulation)
        try:
            self._named[row.seq] = cloudevents.read(bytes(row.raw)).prev
        except Undecodable:
            self._named[row.seq] = ""

    def quarantined(self, row: Any) -> None:
        """One of those that could not be read."""
        if row.seq not in self._hashes:
            self._in_quarantine.add(row.seq)
            self._hashes.setdefault(-row.seq, row.sha256)

    def result(self) -> StreamCheck:
        """What the walk has shown."""
        applied = sorted(n for n in self._hashes if n > 0)
        aside = {n for n in self._in_quarantine if n > 0}
        last = max([*applied, *aside], default=0)
        gaps = list(_gaps(sorted({*applied, *aside})))
        broken = [n for n in applied if self._is_broken(n)]
        return StreamCheck(
            self._stream,
            self._producer,
            sent=last,
            received=len({*applied, *aside}),
            applied=len(applied),
            quarantined=len(aside),
            missing=sum(b - a + 1 for a, b in gaps),
            head=self._hashes[applied[-1]] if applied else "",
            simulations=sorted(self._simulations)[:GAPS],
            gaps=gaps[:GAPS],
            broken=broken[:GAPS],
            repeated=self._repeated,
        )

    def _is_broken(self, n: int) -> bool:
        """Whether it names something else than is before it. Beside a gap nobody knows."""
        if n == 1:
            return self._named[n] != ""
        before = self._hashes.get(n - 1) or self._hashes.get(1 - n)
        return before is not None and self._named[n] not in ("", before)


def _gaps(numbers: Iterable[int]) -> Iterable[tuple[int, int]]:
    """The ranges that are missing between 1 and the last of these rising numbers."""
    expected = 1
    for n in numbers:
        if n > expected:
            yield expected, n - 1
        expected = n + 1
