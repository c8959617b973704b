"""What the end of a Job's ranks is called."""

from __future__ import annotations

from math import inf
from typing import Any

import msgspec
import pytest

from chappe.core.jobs import Resources, RetryOn
from chappe.core.leases import Reason, retry_class
from chappe.link.clock import new_id
from chappe.pilot.ends import doubtful, end_of, of_allocation, of_cancelled
from chappe.pilot.holding import Holding
from chappe.pilot.launch_wire import Ended
from chappe.pilot.launchers import LAUNCHERS
from chappe.pilot.lifetime import Lifetime
from chappe.pilot.placement import Placement
from chappe.pilot.session import Options
from chappe.testing.nodes import plain
from chappe.wire.sync import Grant

KILLED = "mpiexec noticed that process rank 1 with PID 7 on node n1 exited on signal 9 (Killed)."
LOST = "lost communication with a remote daemon.\n  Remote daemon: [[1,0],2] on node n1\n"


def ranks(launcher: str | None = "openmpi", nodes: int = 2) -> Holding:
    need = Resources(nodes=nodes, ranks=2 * nodes)
    spec = msgspec.json.encode({"resources": need})
    h = Holding(Grant(new_id(), 1, 1, msgspec.Raw(spec), None, 0), 0.0, 1)
    h.slot = Placement([plain(range(2), name=f"n{k}") for k in range(nodes)]).take(h.need)
    h.started_by = None if launcher is None else LAUNCHERS[launcher]
    return h


def ended(h: Holding, tail: str = "", **fields: Any) -> Ended:
    given = {"reason": "exit", "exit": 137, "signal": None, **fields}
    return Ended(h.job, 1, 1, started_at=1.0, ended_at=2.0, tail=tail, **given)


@pytest.mark.parametrize(
    ("tail", "reason", "message"),
    [
        (KILLED, "rank_killed", "rank 1 on node n1 was killed by signal 9"),
        (LOST, "node_lost", "its node n1 was lost"),
        ("Process name: [[7,1],2]\n Exit code: 3\n", "exit", "rank 2 exited with 3"),
        ("a traceback of its own", "exit", ""),
    ],
)
def test_the_launcher_s_last_words_name_the_reason(tail: str, reason: str, message: str) -> None:
    h = ranks()
    outcome = end_of(h, ended(h, tail)).outcome
    assert (outcome.reason, outcome.message, outcome.tail) == (reason, message, tail)


def test_a_node_that_is_out_of_reach_is_the_reason_whatever_the_launcher_says() -> None:
    h = ranks()
    assert h.slot is not None
    h.slot.shares[1].node.up = False
    outcome = end_of(h, ended(h, KILLED)).outcome
    assert outcome.reason is Reason.NODE_LOST
    assert "n1" in outcome.message


def test_words_of_a_job_without_a_launcher_are_its_own() -> None:
    h = ranks(None)
    assert end_of(h, ended(h, KILLED)).outcome.reason is Reason.EXIT


@pytest.mark.parametrize("fields", [{"exit": 0}, {"reason": "timeout"}, {"reason": "cancelled"}])
def test_an_end_that_is_well_or_was_wanted_keeps_its_name(fields: dict[str, Any]) -> None:
    h = ranks()
    assert h.slot is not None
    h.slot.shares[1].node.up = False
    given = ended(h, KILLED, **fields)
    assert end_of(h, given).outcome.reason == fields.get("reason", "exit")
    assert not doubtful(h, given)


@pytest.mark.parametrize("fields", [{"exit": 143}, {"exit": None, "signal": 15}])
def test_what_sigterm_ended_may_have_been_the_allocation_s(fields: dict[str, Any]) -> None:
    h = ranks(None, nodes=1)
    given = ended(h, reason="exit" if fields["exit"] else "signal", **fields)
    assert doubtful(h, given)
    assert end_of(h, of_allocation(given)).outcome.reason is Reason.ALLOCATION_END
    other = ended(h, exit=1)
    assert of_allocation(other) is other
    asked_for = ended(h, reason="timeout", **fields)
    assert of_allocation(asked_for) is asked_for


def test_only_ranks_of_several_nodes_are_in_doubt() -> None:
    wide, narrow = ranks(), ranks(nodes=1)
    assert doubtful(wide, ended(wide))
    assert not doubtful(narrow, ended(narrow))
    wide.ending = "cancelled"
    assert not doubtful(wide, ended(wide))


def test_an_allocation_that_was_cancelled_is_no_end_of_its_time() -> None:
    h = ranks()
    end = of_cancelled(end_of(h, ended(h, reason="allocation_end", exit=None, signal=15)))
    assert end.outcome.reason is Reason.ALLOCATION_CANCELLED
    assert retry_class(end.outcome.reason) is RetryOn.LOST
    well = end_of(h, ended(h, exit=0))
    assert of_cancelled(well) is well


@pytest.mark.parametrize(("ends_at", "cancelled"), [(inf, True), (5_000.0, True), (300.0, False)])
def test_only_a_sigterm_long_before_the_end_is_a_cancel(ends_at: float, cancelled: bool) -> None:
    life = Lifetime(Options(), ends_at)
    assert not life.cancelled
    life.sigterm(100.0)
    assert life.cancelled == cancelled


def test_a_killed_rank_is_an_error_and_a_lost_node_a_loss() -> None:
    assert retry_class(Reason.RANK_KILLED) is RetryOn.ERROR
    assert retry_class(Reason.NODE_LOST) is RetryOn.LOST
