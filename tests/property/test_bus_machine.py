"""The bus against a naive model, whatever is done with it; at the end it is drained and scored.

The score is that of a total queue: of what was published and committed nothing is lost, nothing comes out
that was not put in, or more often than it was, and what those had who vanished is recovered.
"""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from chappe.core.access import Reach
from chappe.core.errors import ChappeError
from chappe.core.queues import Queue, Topology
from chappe.store import queue_views
from chappe.store.queue_views import Desk
from chappe.store.queues import Message, Queues
from chappe.store.tx import Tx
from chappe.testing.clock import BEGIN
from chappe.testing.place import Databases, Place, PostgresPlace, SqlitePlace
from chappe.testing.store import StoreRig
from chappe.wire.bus import Replay, Revive
from tests.property.naive_bus import NaiveBus
from tests.property.test_settling import directory_in_memory

T = TypeVar("T")
DEEP = os.environ.get("CHAPPE_HYPOTHESIS") == "deep"
TOPICS = ("job.ended", "job.started", "sim.ended", "sim")
TOPOLOGY = Topology(
    [
        Queue("all", ("#",), attempts=3, lease_s=60.0, backoff_s=5.0),
        Queue("ends", ("*.ended",), attempts=2, lease_s=30.0, backoff_s=1.0),
        Queue("sims", ("sim.#",), attempts=1, lease_s=10.0),
    ],
    TOPICS,
)
QUEUE_NAMES = tuple(TOPOLOGY.queues)
ROWS = "SELECT queue, position, state, tries, COALESCE(reason, '') FROM bus_delivery"


class Undone(ChappeError):
    """The command fails, and with it all it has done."""


class BusMachine(RuleBasedStateMachine):
    """Publishers, consumers that forget, repeat themselves and vanish, an operator, two clocks, restarts."""

    place: ClassVar[Callable[[Path], Place]] = staticmethod(
        lambda path: SqlitePlace(path / "hub.db")
    )

    def __init__(self) -> None:
        super().__init__()
        self._directory = directory_in_memory()
        self.rig = StoreRig(type(self).place(Path(self._directory.name)))
        self.bus, self.desk = Queues(TOPOLOGY), Desk(TOPOLOGY)
        self.model = NaiveBus(TOPOLOGY, now=BEGIN)
        self.known: list[Message] = []
        self.bodies = 0
        #: How often each (queue, body) was put in, and came out.
        self.put: Counter[tuple[str, int]] = Counter()
        self.out: Counter[tuple[str, int]] = Counter()

    def teardown(self) -> None:
        try:
            self._drain()
        finally:
            self.rig.close()
            self.rig.place.leave()
            self._directory.cleanup()

    def do(self, fn: Callable[..., T], *args: Any, **more: Any) -> T:
        """A command, at the model's time since boot."""

        def command(tx: Tx) -> T:
            tx.boot = self.model.boot
            return fn(tx, *args, **more)

        return self.rig.do(command)

    # -- publishers --------------------------------------------------------------------------------

    @rule(topic=st.sampled_from(TOPICS), delay_s=st.sampled_from([0.0, 0.0, 0.0, 20.0, 100.0]))
    def publish(self, topic: str, delay_s: float) -> None:
        self.bodies += 1
        position = self.do(self.bus.publish, topic, self.bodies, delay_s=delay_s)
        assert position == self.model.publish(topic, self.bodies, delay_s)
        for queue in TOPOLOGY.route(topic):
            self.put[queue, self.bodies] += 1

    @rule(topic=st.sampled_from(TOPICS))
    def publish_in_a_command_that_fails(self, topic: str) -> None:
        def fail(tx: Tx) -> None:
            self.bus.publish(tx, topic, -1)
            raise Undone("no")

        with pytest.raises(Undone):
            self.rig.do(fail)

    # -- consumers ---------------------------------------------------------------------------------

    @rule(queue=st.sampled_from(QUEUE_NAMES), most=st.integers(1, 4))
    def take(self, queue: str, most: int) -> None:
        taken = self.do(self.bus.take, queue, most)
        found = [(m.position, m.decode()) for m in taken.messages]
        assert found == self.model.take(queue, most)
        assert all(m.lease == self.model.leases for m in taken.messages)
        if len(found) < most:
            assert taken.wait_s == self._next(queue)
        self.known += taken.messages

    def _next(self, queue: str) -> float | None:
        model = self.model
        clocks = {"leased": model.boot, "delayed": model.now}
        timed = [r for r in model.rows if r.queue == queue and r.state in clocks]
        return min((row.until - clocks[row.state] for row in timed), default=None)

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def ack(self, data: st.DataObject) -> None:
        """Also what was acknowledged before, given back, or lost to another."""
        m = data.draw(st.sampled_from(self.known))
        done = self.do(self.bus.ack, m)
        assert done == self.model.ack(self.model.held(m.queue, m.position, m.lease))
        self.out[m.queue, m.decode()] += done

    @precondition(lambda self: self.known)
    @rule(data=st.data(), delay_s=st.sampled_from([None, 0.0, 15.0]))
    def nack(self, data: st.DataObject, delay_s: float | None) -> None:
        m = data.draw(st.sampled_from(self.known))
        verdict = self.do(self.bus.nack, m, "not yet", delay_s)
        held = self.model.held(m.queue, m.position, m.lease)
        assert verdict == self.model.nack(held, "not yet", delay_s)

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        m = data.draw(st.sampled_from(self.known))
        held = self.model.held(m.queue, m.position, m.lease)
        assert self.do(self.bus.release, m) == self.model.release(held)

    # -- operators ---------------------------------------------------------------------------------

    @rule(queue=st.sampled_from(QUEUE_NAMES), data=st.data())
    def replay(self, queue: str, data: st.DataObject) -> None:
        last = len(self.model.log)
        after = data.draw(st.integers(0, last))
        until = data.draw(st.integers(after, last))
        before = {(r.queue, r.position) for r in self.model.rows}
        reply = self.do(self.desk.replay, self.rig.user, queue, Replay(after, until))
        assert (reply.replayed, reply.complete) == (self.model.replay(queue, after, until), True)
        for row in self.model.rows:
            if (row.queue, row.position) not in before:
                self.put[queue, self.model.log[row.position - 1].body] += 1

    @rule(queue=st.sampled_from(QUEUE_NAMES))
    def revive(self, queue: str) -> None:
        dead = [r for r in self.model.rows if (r.queue, r.state) == (queue, "dead")]
        reply = self.do(self.desk.revive, self.rig.user, Reach.HUB, Revive(queue))
        assert reply.revived == len(dead)
        for row in dead:
            row.state, row.tries = "ready", 0

    @rule()
    def cut(self) -> None:
        """What some queue holds stays; nothing here is old enough otherwise."""
        self.do(queue_views.cut, 0)

    # -- time --------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([1.0, 5.0, 10.0, 31.0, 61.0]))
    def time_passes(self, seconds: float) -> None:
        self.model.boot += seconds
        self.model.now = self.rig.clock.advance(seconds)

    @rule(seconds=st.sampled_from([-3_600.0, 3_600.0]))
    def the_calendar_jumps(self, seconds: float) -> None:
        """Delays are of the calendar; no lease ends by it."""
        self.rig.clock.now += seconds
        self.model.now += seconds

    @rule()
    def the_hub_restarts(self) -> None:
        self.rig.restart()
        self.do(self.bus.forsake)
        for queue in QUEUE_NAMES:
            if any(r.queue == queue and r.state == "leased" for r in self.model.rows):
                self.model.come_back(queue, float("inf"))

    # -- what holds always -------------------------------------------------------------------------

    @invariant()
    def it_is_what_the_model_says(self) -> None:
        stored = {tuple(row) for row in self._rows()}
        assert stored == {row.seen for row in self.model.rows}

    @invariant()
    def the_counts_are_true(self) -> None:
        for view in self.rig.ask(self.desk.queues, self.model.now).queues:
            states = Counter(r.state for r in self.model.rows if r.queue == view.name)
            assert (view.ready, view.leased, view.delayed, view.dead) == tuple(
                states[state] for state in ("ready", "leased", "delayed", "dead")
            )
            assert view.depth == view.ready + view.leased + view.delayed

    def _rows(self) -> list[Any]:
        return [tuple(row.values()) if isinstance(row, dict) else row for row in self.rig.sql(ROWS)]

    def _drain(self) -> None:
        """Whoever has something vanishes, time passes, a person revives the dead: all comes out."""
        for queue in QUEUE_NAMES:
            for _ in range(3):
                self.model.boot += 1e6
                self.model.now = self.rig.clock.advance(1e6)
                while messages := self.do(self.bus.take, queue, 100).messages:
                    for message in messages:
                        assert self.do(self.bus.ack, message)
                        self.out[queue, message.decode()] += 1
                self.do(self.desk.revive, self.rig.user, Reach.HUB, Revive(queue))
        assert self._rows() == []
        lost, unexpected = self.put - self.out, self.out - self.put
        assert (lost, unexpected) == (Counter(), Counter())


def test_the_bus_does_what_the_model_does() -> None:
    run_state_machine_as_test(
        BusMachine,
        settings=settings(
            max_examples=2_000 if DEEP else 16,
            stateful_step_count=60 if DEEP else 40,
            derandomize=not DEEP,
        ),
    )


def test_on_postgresql_too(databases: Databases, monkeypatch: pytest.MonkeyPatch) -> None:
    place = staticmethod(functools.partial(PostgresPlace, databases))
    monkeypatch.setattr(BusMachine, "place", place)
    run_state_machine_as_test(
        BusMachine,
        settings=settings(
            max_examples=200 if DEEP else 5, stateful_step_count=40, derandomize=not DEEP
        ),
    )
