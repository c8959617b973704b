"""Simulations in the store: the same as brute force says of the journal, however messages came."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from chappe.core import messages
from chappe.core.lateness import State, learned_slack_ns
from chappe.core.messages import Message, decode
from chappe.core.simulations import Fold
from chappe.core.timestamps import NS
from chappe.store import feed, journal, simulations
from chappe.store.feed import EventFilter
from chappe.store.journal import Arrival, item
from chappe.testing.naive_fold import naive_tries, naive_views
from chappe.testing.simulations import Course, Dialect, campaign, disturbed, scenario
from chappe.testing.store import StoreRig
from chappe.wire.events import Event


def accept(rig: StoreRig, raws: Sequence[bytes], producer: int = 0) -> None:
    items = [item(r) for r in raws]
    rig.do(
        journal.accept,
        Arrival(rig.user.project_n, producer, "https", "me", rig.clock(), items),
    )


def arrive(rig: StoreRig, raws: Sequence[bytes], seed: int) -> None:
    """In pieces of any size."""
    rng, left = random.Random(seed), list(raws)
    while left:
        size = rng.choice([1, 7, 100])
        accept(rig, left[:size])
        del left[:size]


def events(rig: StoreRig) -> list[Event]:
    p = rig.user
    head = rig.store.head(p.project_n)
    found, _ = rig.ask(feed.page, p, 0, head, 5_000, EventFilter(frozenset({"simulation"})))
    return found


def tell(type: str, at: int, job: str = "1", simulation: str = "S", **fields: Any) -> bytes:
    made = {
        "msgProducer": "chappe",
        "msgType": type,
        "msgUID": f"{type}-{at}-{job}-{simulation}",
        "msgTimestamp": f"2026-01-01T{at // 3600:02d}:{at // 60 % 60:02d}:{at % 60:02d}Z",
        "simuid": simulation,
        "jobuid": job,
    }
    return json.dumps(made | fields).encode()


def same_as_brute_force(rig: StoreRig, told: Sequence[Message]) -> None:
    """All that is stored, held against the naive fold, with each simulation's own slack."""
    rows = {
        row[0]: row
        for row in rig.sql(
            "SELECT uid, state, identity <> '' AS known, try_no, active, purged, messages, counts, took,"
            " fold, progress, started_at, ended_at, name FROM simulation"
        )
    }
    tries = naive_tries(told)
    assert set(rows) == {m.simulation for m in told if m.simulation}
    now_ns = int(rig.clock() * NS)
    for uid, row in rows.items():
        slack_ns = learned_slack_ns(msgspec.json.decode(row[8], type=dict[int, int]))
        (view,) = naive_views([m for m in told if m.simulation == uid], now_ns, slack_ns)
        assert row[1] == view.state
        assert msgspec.json.decode(row[7]) == view.counts
        assert (row[6], row[10], row[13]) == (
            view.messages,
            view.progress,
            view.fields.get("name", ""),
        )
        assert row[11] == (None if view.started_ns is None else view.started_ns / NS)
        assert row[12] == (None if view.ended_ns is None else view.ended_ns / NS)
        assert msgspec.json.decode(row[9], type=Fold).types == view.types
        number, active, purged = tries.get(uid, (0, not view.purged, view.purged))
        assert tuple(row[2:6]) == (uid in tries, number, active, purged)


@pytest.mark.parametrize("seed", range(3))
def test_i3_stored_simulations_are_what_the_set_of_messages_says(rig: StoreRig, seed: int) -> None:
    made = campaign(seed, 6)
    arrive(rig, disturbed(made.arriving(), seed), seed)
    now_ns = int(rig.clock() * NS)
    told = [messages.received(decode(raw), now_ns) for raw in made.arriving()]
    same_as_brute_force(rig, told)
    rows = rig.sql("SELECT uid, state, active FROM simulation")
    assert {row[0]: row[1] for row in rows} == made.states
    assert {row[0] for row in rows if row[2]} == made.active
    count = {"period": "1001", "action": "7000", "command": "1900"}
    stored = Counter(row[0] for row in rig.sql("SELECT family FROM fact"))
    for family, code in count.items():
        codes = {code, "9000"} if code == "1900" else {code}
        assert stored[family] == sum(m.code in codes for m in told)


def test_a_restart_or_a_small_memory_changes_nothing(
    rig: StoreRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulations, "KEPT", 5)
    made = campaign(11, 6)
    raws = disturbed(made.arriving(), 11)
    arrive(rig, raws[: len(raws) // 2], 1)
    rig.restart()
    arrive(rig, raws[len(raws) // 2 :], 2)
    now_ns = int(rig.clock() * NS)
    same_as_brute_force(rig, [messages.received(decode(r), now_ns) for r in made.arriving()])
    cache = rig.store.writer.catalog.simulations
    assert cache is not None
    assert len(cache.entries) <= 2
    assert cache.size == sum(1 + len(e.jobs) for e in cache.entries.values())


def test_a_transaction_that_fails_leaves_nothing_in_memory(rig: StoreRig) -> None:
    accept(rig, [tell("simulation.started", 1)])

    def fails(tx: Any) -> None:
        journal.accept(
            tx,
            Arrival(rig.user.project_n, 0, "https", "me", 1.0, [item(tell("job.fatal", 2))]),
        )
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        rig.do(fails)
    accept(rig, [tell("job.ended", 3)])
    assert [tuple(r) for r in rig.sql("SELECT state, messages FROM simulation")] == [("queued", 2)]


def test_one_event_for_each_simulation_and_transaction(rig: StoreRig) -> None:
    accept(
        rig,
        [
            tell("simulation.started", 1, name="N", jobWarningDelay="NONE"),
            tell("metric", 2, name="e", value=1.5),
        ],
    )
    accept(rig, [tell("metric", 2, name="e", value=1.5)])  # a duplicate changes nothing
    accept(rig, [tell("job.fatal", 3)])
    first, second = events(rig)
    assert (first.subject, first.old, first.new, first.phase) == ("S", "queued", "running", None)
    assert first.data["types"] == {"simulation.started": 1, "metric": 1}
    assert first.data["metrics"] == {"e": 1.5}
    assert (second.old, second.new, second.data["messages"]) == ("running", "error", 3)


def test_l15_the_clock_tells_what_is_late_and_an_end_undoes_it(rig: StoreRig) -> None:
    start_s = 1_767_225_601  # 2026-01-01T00:00:01Z
    rig.clock.now = float(start_s)
    accept(rig, [tell("simulation.started", 1, jobWarningDelay="3600")])
    due_at = rig.ask(simulations.next_look)
    assert due_at == start_s + 3600 + 3900
    rig.clock.now = due_at - 1
    assert rig.do(simulations.look_again) == 0
    rig.clock.now = due_at + 0.001
    assert rig.do(simulations.look_again) == 1
    assert rig.do(simulations.look_again) == 0
    assert rig.ask(simulations.next_look) is None
    accept(rig, [tell("job.ended", 3_000)])
    assert [(e.old, e.new) for e in events(rig)] == [
        ("queued", "running"),
        ("running", "late"),
        ("late", "queued"),
    ]


def test_a_job_that_another_follows_lost_its_end(rig: StoreRig) -> None:
    rig.clock.now = 1_767_225_601.0 + 600
    accept(rig, [tell("simulation.started", 1)])
    accept(rig, [tell("job.started", 600, "2")])
    rig.clock.now = rig.ask(simulations.next_look) or 0.0
    rig.clock.now += 0.001
    rig.do(simulations.look_again)
    rows = [tuple(r) for r in rig.sql("SELECT id, state FROM sim_job ORDER BY id")]
    assert rows == [("1", "lost_end"), ("2", "running")]
    (counts,) = rig.sql("SELECT counts FROM simulation")
    assert msgspec.json.decode(counts[0]) == {"compute.lost_end": 1, "compute.running": 1}


def test_l12_late_messages_do_not_resurrect_what_was_purged(rig: StoreRig) -> None:
    made = scenario(Course.PURGED, 1, Dialect.MODERN)
    arrive(rig, made.arriving(), 1)
    accept(rig, made.arriving())
    (uid,) = made.states
    accept(rig, [tell("job.started", 80_000, "9", uid)])
    assert [tuple(r) for r in rig.sql("SELECT active, purged FROM simulation")] == [(0, 1)]
    (count,) = rig.sql("SELECT count(*) FROM message")
    assert count[0] == len(made.said) + 1


def test_l16_what_comes_again_is_not_counted_again(rig: StoreRig) -> None:
    made = scenario(Course.OK, 2, Dialect.MODERN)
    for _ in range(3):
        accept(rig, made.arriving())
    (count,) = rig.sql("SELECT count(*) FROM fact WHERE family = 'action'")
    assert count[0] == sum(s.code == "7000" for s in made.said)


def test_a_forged_simulation_of_another_producer_touches_nothing(rig: StoreRig) -> None:
    accept(rig, [tell("simulation.started", 1, jobWarningDelay="NONE")])
    accept(rig, [tell("simulation.purged", 2)], producer=7)
    accept(rig, [tell("job.fatal", 2)], producer=7)
    rows = rig.sql("SELECT producer, state, purged FROM simulation ORDER BY producer")
    assert [tuple(r) for r in rows] == [(0, State.RUNNING, 0), (7, State.ERROR, 1)]


def test_l2_what_cannot_be_applied_is_not_acknowledged(
    rig: StoreRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of a handler was acknowledged all the same: the message was kept, and its effects were not."""

    def fails(*_: object) -> None:
        raise OSError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(journal, "PROJECTIONS", [*journal.PROJECTIONS, fails])
        with pytest.raises(OSError, match="disk"):
            accept(rig, [tell("simulation.started", 1)])
    assert rig.sql("SELECT 1 FROM message") == rig.sql("SELECT 1 FROM simulation") == []
    accept(rig, [tell("simulation.started", 1)])
    assert [tuple(r) for r in rig.sql("SELECT uid, messages FROM simulation")] == [("S", 1)]
