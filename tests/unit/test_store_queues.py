"""Queues in the store: with the transaction or not at all, once per lease, bounded, nothing silently gone.

What happens in whatever order is attacked in property/test_bus_machine.py; here is what stands by itself.
"""

from __future__ import annotations

from typing import Any

import pytest

from chappe.core import limits
from chappe.core.access import Reach
from chappe.core.errors import Conflict, Invalid, NotFound, TooLarge
from chappe.core.queues import Queue, Topology
from chappe.store import queue_views
from chappe.store.queue_views import Desk
from chappe.store.queues import Message, Queues, Verdict
from chappe.store.tx import Tx
from chappe.testing.store import StoreRig
from chappe.wire.bus import Replay, Revive

TOPOLOGY = Topology(
    [Queue("one", ("a.*",), attempts=2, backoff_s=4.0), Queue("two", ("#",), attempts=1)],
    ["a.x", "a.y", "b"],
)
BUS, DESK = Queues(TOPOLOGY), Desk(TOPOLOGY)


def publish(rig: StoreRig, *bodies: Any, topic: str = "b", **more: Any) -> None:
    for body in bodies:
        rig.do(lambda tx, body=body: BUS.publish(tx, topic, body, **more))


def take(rig: StoreRig, queue: str = "two", most: int = 10) -> list[Message]:
    return rig.do(BUS.take, queue, most).messages


def log(rig: StoreRig) -> list[int]:
    return [row["position"] for row in rig.sql("SELECT position FROM bus_log ORDER BY position")]


def test_it_is_there_with_what_else_the_command_did_and_for_each_queue(rig: StoreRig) -> None:
    publish(rig, {"simulation": "é\0"}, topic="a.x", project=rig.user.project_n)
    (message,) = take(rig, "one")
    assert (message.topic, message.decode(), message.tries) == ("a.x", {"simulation": "é\0"}, 1)
    assert message.project == rig.user.project_n
    assert len(take(rig, "two")) == 1
    assert take(rig, "one") == []  # it is leased


@pytest.mark.parametrize("after", [True, False])
def test_it_is_not_there_when_the_command_failed(rig: StoreRig, after: bool) -> None:
    def fail(tx: Tx) -> None:
        if not after:
            BUS.publish(tx, "b", 1)
        raise Conflict("no")

    with pytest.raises(Conflict):
        rig.do(fail)
    publish(rig, 2)
    assert [m.decode() for m in take(rig)] == [2]
    assert log(rig) == [1]


def test_what_cannot_be_published_is_refused(rig: StoreRig) -> None:
    with pytest.raises(NotFound, match=r"no topic 'a\.z'"):
        publish(rig, 1, topic="a.z")
    with pytest.raises(TooLarge, match="262144 bytes"):
        publish(rig, "x" * limits.BUS_BODY_BYTES)
    with pytest.raises(NotFound, match="there is no queue 'three'"):
        take(rig, "three")


def test_the_effect_goes_with_the_acknowledgement(rig: StoreRig) -> None:
    """The consumer that lost its lease sees that it may not have one."""
    publish(rig, 1, topic="a.x")
    (first,) = take(rig, "one")
    rig.do(BUS.forsake)
    (second,) = take(rig, "one")
    assert not rig.do(BUS.ack, first)
    assert rig.do(BUS.nack, first, "late") is Verdict.STALE
    assert rig.do(BUS.reject, first, "late") is Verdict.STALE
    assert not rig.do(BUS.release, first)
    assert rig.do(BUS.ack, second)
    assert not rig.do(BUS.ack, second)


def test_l9_a_poison_message_stops_nobody_and_says_why_it_died(rig: StoreRig) -> None:
    publish(rig, "poison", "good", topic="a.x")
    done = []
    for _ in range(5):
        for message in take(rig, "one"):
            if message.decode() == "poison":
                rig.do(
                    BUS.nack, message, f"ValueError: \0\udcff in try {message.tries}{'!' * 2_000}"
                )
            else:
                done.append(rig.do(BUS.ack, message))
        rig.clock.advance(60.0)
    assert done == [True]
    (dead,) = rig.ask(DESK.dead, rig.user, Reach.HUB, "one", 10, None).messages
    assert (dead.position, dead.tries, dead.topic, dead.body) == (1, 2, "a.x", '"poison"')
    assert dead.reason.startswith("ValueError: \ufffd? in try 2!!")
    assert len(dead.reason) == limits.BUS_REASON_CHARS


def test_what_kills_its_consumer_is_poison_too(rig: StoreRig) -> None:
    publish(rig, "kills", topic="a.x")
    for tries in (1, 2):
        assert [m.tries for m in take(rig, "one")] == [tries]
        rig.do(BUS.forsake)  # as the next Hub does
    assert take(rig, "one") == []
    (dead,) = rig.ask(DESK.dead, rig.user, Reach.HUB, None, 10, None).messages
    assert dead.reason == "its consumer was lost, or took longer than its lease"


def test_a_page_of_dead_letters_leads_to_the_next_and_owners_see_their_own(rig: StoreRig) -> None:
    for project in (rig.user.project_n, 0):
        publish(rig, 1, 2, 3, project=project)
    for message in take(rig):
        rig.do(BUS.reject, message, "no")

    def pages(reach: Reach) -> list[int]:
        found: list[int] = []
        cursor = None
        while True:
            page = rig.ask(DESK.dead, rig.user, reach, None, 2, cursor)
            found += [m.position for m in page.messages]
            if page.next is None:
                return found
            cursor = page.next

    assert pages(Reach.HUB) == [1, 2, 3, 4, 5, 6]
    assert pages(Reach.PROJECT) == [1, 2, 3]

    def revive(body: Revive) -> int:
        return rig.do(DESK.revive, rig.user, Reach.PROJECT, body).revived

    assert revive(Revive("two", [2, 5, 77])) == 1
    assert revive(Revive("two")) == 2
    assert pages(Reach.HUB) == [4, 5, 6]
    assert {m.position for m in take(rig)} == {1, 2, 3}
    acts = rig.sql("SELECT action, subject FROM audit WHERE action LIKE 'bus.%'")
    assert [tuple(dict(row).values()) for row in acts] == [("bus.revive", "two")] * 2


@pytest.mark.parametrize("cursor", ["", "one", "one:x", "one:-1", "one:" + "9" * 30])
def test_a_cursor_that_is_none(rig: StoreRig, cursor: str) -> None:
    if cursor:
        with pytest.raises(Invalid, match="cursor"):
            rig.ask(DESK.dead, rig.user, Reach.HUB, None, 2, cursor)


def test_a_long_replay_is_done_in_steps(rig: StoreRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BUS_REPLAY", 3)
    publish(rig, *range(8))
    publish(rig, "other", topic="a.x")
    for message in take(rig):
        rig.do(BUS.ack, message)
    after, steps = 2, []
    while True:
        reply = rig.do(DESK.replay, rig.user, "two", Replay(after))
        steps.append((reply.replayed, reply.after, reply.complete))
        after = reply.after
        if reply.complete:
            break
    assert steps == [(3, 5, False), (3, 8, False), (1, 9, True)]
    assert [m.position for m in take(rig)] == [3, 4, 5, 6, 7, 8, 9]


def test_the_log_is_cut_where_nobody_holds_it(
    rig: StoreRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_views, "PURGED_AT_ONCE", 3)
    publish(rig, *range(7))
    kept = take(rig)[4]
    for message in take_again(rig):
        if message.position != kept.position:
            rig.do(BUS.ack, message)

    def cut() -> list[int]:
        place: int | None = 0
        while place is not None:
            place = rig.do(queue_views.cut, place)
        return log(rig)

    assert cut() == [1, 2, 3, 4, 5, 6, 7]
    monkeypatch.setattr(limits, "BUS_KEPT", 5)
    assert cut() == [3, 4, 5, 6, 7]
    rig.clock.advance(limits.BUS_KEPT_S + 1)
    assert cut() == [kept.position]
    publish(rig, "new")
    assert log(rig) == [5, 8]  # a position is never used twice


def take_again(rig: StoreRig) -> list[Message]:
    """What was taken, under new leases."""
    for row in rig.sql("SELECT queue FROM bus_delivery WHERE state = 'leased'"):
        assert row["queue"] == "two"

    def release(tx: Tx) -> None:
        tx.conn.exec_driver_sql("UPDATE bus_delivery SET state = 'ready', until = NULL")

    rig.do(release)
    return take(rig)


def test_dead_letters_are_forgotten_after_their_term(rig: StoreRig) -> None:
    publish(rig, 1, 2)
    for message in take(rig):
        rig.do(BUS.reject, message, "no")
    assert rig.do(queue_views.forget) == 0
    rig.clock.advance(limits.BUS_DEAD_KEPT_S + 1)
    assert rig.do(queue_views.forget) == 2
    (view,) = [v for v in rig.ask(DESK.queues, rig.clock()).queues if v.name == "two"]
    assert (view.depth, view.dead, view.forgotten) == (0, 0, 2)


def test_what_a_queue_shows(rig: StoreRig) -> None:
    publish(rig, 1, 2, 3)
    publish(rig, 4, delay_s=100.0)
    rig.clock.advance(30.0)
    rig.do(BUS.take, "two", 1)
    detail = rig.ask(DESK.queue, "two", rig.clock())
    view = detail.queue
    assert (view.ready, view.leased, view.delayed, view.depth, view.dead) == (2, 1, 1, 4, 0)
    assert view.oldest_s == 30.0
    assert [(m.position, m.state) for m in detail.messages] == [
        (1, "leased"),
        (2, "ready"),
        (3, "ready"),
        (4, "delayed"),
    ]
    other = Desk(Topology([Queue("new", ("b",))], ["b"]))
    names = {v.name: v.declared for v in rig.ask(other.queues, rig.clock()).queues}
    assert names == {"new": True, "two": False}  # of another version, and still holding something


def test_a_project_that_is_not_ones_own_has_no_dead_letters(rig: StoreRig) -> None:
    publish(rig, 1, project=rig.user.project_n + 1)
    for message in take(rig):
        rig.do(BUS.reject, message, "no")
    assert rig.ask(DESK.dead, rig.user, Reach.PROJECT, None, 10, None).messages == []
    reply = rig.do(DESK.revive, rig.user, Reach.PROJECT, Revive("two"))
    assert reply.revived == 0
