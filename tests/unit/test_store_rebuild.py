"""What is shown follows from the journal: whatever is spoilt is found and made right, while more comes."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from chappe.store import feed, journal, rebuild
from chappe.store.feed import EventFilter
from chappe.store.journal import Arrival, item
from chappe.store.rebuild import Comparison, Refold
from chappe.store.tx import Tx
from chappe.testing.simulations import campaign, disturbed
from chappe.testing.store import StoreRig

SHOWN = (
    "SELECT uid, producer, state, try_no, active, purged, messages, progress, name FROM simulation"
    " ORDER BY uid, producer",
    "SELECT s.uid, s.producer, j.id, j.state FROM sim_job j JOIN simulation s ON s.n = j.simulation"
    " ORDER BY 1, 2, 3",
    "SELECT s.uid, f.family, f.message FROM fact f JOIN simulation s ON s.n = f.simulation"
    " ORDER BY 1, 2, 3",
    "SELECT s.simulation, s.job, s.name, m.at_ns, m.message, m.value FROM metric m"
    " JOIN series s ON s.n = m.series ORDER BY 1, 2, 3, 4, 5",
)

#: Ways to spoil what is stored, and what is then found to differ of at least one simulation.
SPOILT = {
    "a fold is not JSON": ("UPDATE simulation SET fold = 'x'", "simulation"),
    "a count": (
        """UPDATE simulation SET fold = replace(fold, '"messages":', '"messages":9')""",
        "simulation",
    ),
    "a job is gone": ("DELETE FROM sim_job", "jobs"),
    "facts are gone": ("DELETE FROM fact", "facts"),
    "a fact is invented": ("INSERT INTO fact SELECT n, 'period', 1 FROM simulation", "facts"),
    "simulations are gone": ("DELETE FROM simulation", "missing"),
    "a simulation is invented": ("UPDATE simulation SET uid = 'x' || uid", "invented"),
    "latencies": ("UPDATE simulation SET took = '{}'", "latency"),
    "a value": ("UPDATE metric SET value = 17", "series"),
    "values are gone": ("DELETE FROM metric", "series"),
}


def metrics(count: int) -> list[bytes]:
    made = []
    for i in range(count):
        fields = {
            "msgUID": f"metric-{i}",
            "msgType": "metric",
            "msgTimestamp": f"2026-01-02T03:04:{i % 60:02d}Z",
            "simuid": f"sim-{i % 3}",
            "name": "energy",
            "value": i / 8,
        }
        made.append(json.dumps(fields).encode())
    return made


def accept(rig: StoreRig, raws: Sequence[bytes], producer: int = 0) -> None:
    items = [item(raw) for raw in raws]
    project = rig.user.project_n
    rig.do(journal.accept, Arrival(project, producer, "https", "me", rig.clock(), items))


def shown(rig: StoreRig) -> list[list[tuple[object, ...]]]:
    return [[tuple(row) for row in rig.sql(query)] for query in SHOWN]


def compared(rig: StoreRig) -> list[Refold]:
    """All pages."""
    found: list[Refold] = []
    after: str | None = ""
    while after is not None:
        page: Comparison = rig.ask(rebuild.compare, rig.user.project_n, after)
        found += page.differing
        after = page.cursor
    return found


def corrected(rig: StoreRig) -> None:
    for refold in compared(rig):
        rig.do(rebuild.correct, rig.user, refold)


def spoil(rig: StoreRig, statement: str) -> None:
    def run(tx: Tx) -> None:
        tx.dirty = True
        tx.conn.exec_driver_sql(statement)
        tx.catalog.simulations = None

    rig.do(run)


@pytest.fixture
def told(rig: StoreRig) -> list[bytes]:
    """What was told: several simulations and tries, some of it by two producers, with series."""
    raws = disturbed(campaign(3, 4).arriving(), 3) + metrics(30)
    accept(rig, raws)
    accept(rig, raws[:40], producer=5)
    return raws


def test_nothing_differs_of_what_was_applied(rig: StoreRig, told: list[bytes]) -> None:
    assert compared(rig) == []
    rig.restart()
    assert compared(rig) == []


@pytest.mark.parametrize("name", SPOILT)
def test_what_is_spoilt_is_found_and_made_right(
    rig: StoreRig, told: list[bytes], name: str
) -> None:
    statement, differs = SPOILT[name]
    before = shown(rig)
    spoil(rig, statement)
    found = compared(rig)
    assert differs in {what for refold in found for what in refold.differs}
    for refold in found:
        rig.do(rebuild.correct, rig.user, refold)
    assert compared(rig) == []
    for after, then in zip(shown(rig), before, strict=True):
        assert set(after) ^ set(then) == set()
    head = rig.store.head(rig.user.project_n)
    page, _ = rig.ask(feed.page, rig.user, 0, head, 5_000, EventFilter(frozenset({rebuild.KIND})))
    assert sorted(e.data["id"] for e in page) == sorted(r.entry.key[2] for r in found)


def test_messages_that_come_meanwhile_are_in_it_and_in_it_once(
    rig: StoreRig, told: list[bytes]
) -> None:
    more = disturbed(campaign(4, 3).arriving(), 4) + metrics(60)[30:]
    accept(rig, more[: len(more) // 2])
    spoil(rig, "UPDATE simulation SET took = '{}'")
    found = compared(rig)
    accept(rig, more[len(more) // 2 :])

    def beside(tx: Tx) -> None:
        # In the very transaction that corrects, too.
        items = [item(raw) for raw in metrics(63)[60:]]
        journal.accept(tx, Arrival(rig.user.project_n, 0, "https", "me", rig.clock(), items))
        for refold in found:
            rebuild.correct(tx, rig.user, refold)

    rig.do(beside)
    accept(rig, metrics(70)[63:])
    assert compared(rig) == []
    rig.restart()
    assert compared(rig) == []


def test_pages_look_at_every_simulation(
    rig: StoreRig, told: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(rig, "DELETE FROM fact")
    everything = {r.entry.key for r in compared(rig)}
    for name, value in (("SCAN", 1), ("AT_ONCE", 2)):
        monkeypatch.setattr(rebuild, name, value)
        assert {r.entry.key for r in compared(rig)} == everything
