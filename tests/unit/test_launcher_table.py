"""What the launcher knows, without a process."""

from __future__ import annotations

import os
from resource import RUSAGE_SELF, getrusage

import pytest

from chappe.pilot import launch_table
from chappe.pilot.launch_stages import CommandEnd, first
from chappe.pilot.launch_table import Run, Table
from chappe.pilot.launch_wire import Ended, Refused, Snapshot, Task
from chappe.pilot.reap import Exit


def task(job: str, lane: int = 0, **fields: float) -> Task:
    return Task(job, 1, 1, ["x"], {}, "/", 0.0, lane=lane, **fields)  # type: ignore[arg-type]


def begun(task: Task, pid: int, at: float, now: float) -> Run:
    return Run(task, first(task), pid, at, now)


def end_command(run: Run, status: int) -> None:
    usage = getrusage(RUSAGE_SELF)
    run.exit = Exit(status, usage)
    run.command = CommandEnd(os.waitstatus_to_exitcode(status), usage, 2.0, None, "")


def start(table: Table) -> Run:
    run = begun(table.next_ready(), 100, 1.0, 10.0)
    table.start(run)
    return run


def finish(table: Table, run: Run, status: int = 0) -> Ended:
    end_command(run, status)
    table.finish(run, 3.0, 12.0)
    return table.take_events().ended[-1]


def whole(table: Table) -> list[Snapshot]:
    return list(table.snapshot("s", 1))


def test_lane_0_is_ready_at_once_and_a_lane_in_turn() -> None:
    table = Table()
    for job, lane in (("a", 0), ("b", 0), ("c", 1), ("d", 1), ("e", 2)):
        table.add(task(job, lane))
    assert (table.ready, table.waiting) == (4, 5)
    runs = [start(table) for _ in range(4)]
    assert [run.task.job for run in runs] == ["a", "b", "c", "e"]
    finish(table, runs[0])
    assert table.ready == 0
    finish(table, runs[2])
    assert start(table).task.job == "d"
    assert table.waiting == 0


def test_a_start_that_fails_or_is_late_lets_the_lane_go_on() -> None:
    table = Table()
    for job in "abc":
        table.add(task(job, 1))
    table.fail(table.next_ready(), "words", 1.0)
    table.skip(table.next_ready(), "late")
    assert start(table).task.job == "c"
    events = table.take_events()
    assert [(e.job, e.reason, e.tail) for e in events.ended] == [("a", "start_failed", "words")]
    assert events.refused == [Refused("b", 1, 1, "late")]


def test_each_known_task_is_answered_with_its_state() -> None:
    table = Table()
    table.add(task("runs", 1))
    table.add(task("waits", 1))
    run = start(table)
    table.take_events()
    for job in ("runs", "waits"):
        table.add(task(job, 1))
    events = table.take_events()
    assert (events.started, events.ended, events.refused) == ([run.started], [], [])
    end = finish(table, run)
    table.add(task("runs", 1))
    assert table.take_events().ended == [end]
    table.ack([end.key, ("unknown", 1)])
    table.add(task("runs", 1))
    assert table.waiting == 2


def test_a_start_is_not_told_beside_its_end() -> None:
    table = Table()
    table.add(task("short"))
    finish(table, start(table))
    assert table.unsent == 0
    table.add(task("long"))
    run = start(table)
    assert [s.job for s in table.take_events().started] == ["long"]
    assert finish(table, run).wall_s == 2.0


@pytest.mark.parametrize(
    ("status", "reason", "expected"),
    [
        (0, None, ("exit", 0, None)),
        (3 << 8, None, ("exit", 3, None)),
        (11, None, ("signal", None, 11)),
        (0, "cancelled", ("cancelled", 0, None)),
        (9, "timeout", ("timeout", None, 9)),
    ],
)
def test_an_end_says_why(status: int, reason: str | None, expected: tuple[object, ...]) -> None:
    table = Table()
    table.add(task("job"))
    run = start(table)
    run.reason = reason  # type: ignore[assignment]
    end = finish(table, run, status)
    assert (end.reason, end.exit, end.signal) == expected


def test_a_run_that_runs_cannot_be_finished() -> None:
    table = Table()
    table.add(task("job"))
    with pytest.raises(ValueError, match="still runs"):
        table.finish(start(table), 0.0, 0.0)


def test_withdrawing_frees_the_lane_only_of_its_head() -> None:
    table = Table()
    for job in "abcd":
        table.add(task(job, 1))
    assert table.withdraw(("c", 1), "withdrawn")
    assert not table.withdraw(("c", 1), "withdrawn")
    assert table.ready == 1
    assert table.withdraw(("a", 1), "withdrawn")
    run = start(table)
    assert run.task.job == "b"
    assert table.ready == 0
    finish(table, run)
    assert start(table).task.job == "d"


def test_withdrawing_all_leaves_running_lanes_occupied() -> None:
    table = Table()
    for job, lane in (("a", 1), ("b", 1), ("c", 2), ("d", 0)):
        table.add(task(job, lane))
    run = start(table)
    table.withdraw_all("stopping")
    assert (table.waiting, table.ready) == (0, 0)
    assert {r.job for r in table.take_events().refused} == {"b", "c", "d"}
    for job, lane in (("e", 1), ("f", 2)):
        table.add(task(job, lane))
    assert start(table).task.job == "f"
    finish(table, run)
    assert start(table).task.job == "e"


def test_more_than_the_limit_is_refused_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch_table, "TASKS_MAX", 3)
    table = Table()
    for job in "abcd":
        table.add(task(job))
    assert table.take_events().refused == [Refused("d", 1, 1, "full")]
    end = finish(table, start(table))
    table.add(task("d"))
    assert table.take_events().refused == [Refused("d", 1, 1, "full")], "an end counts until acked"
    table.ack([end.key])
    table.add(task("d"))
    assert table.unsent == 0


def test_events_come_in_frames_of_bounded_size() -> None:
    table = Table()
    for i in range(600):
        table.add(task(f"job{i}"))
        table.fail(table.next_ready(), "", 0.0)
    sizes = []
    while table.unsent:
        sizes.append(len(table.take_events().ended))
    assert sizes == [256, 256, 88]


def test_a_snapshot_is_the_table_at_one_moment() -> None:
    table = Table()
    for i in range(600):
        table.add(task(f"job{i}"))
    runs = [start(table) for _ in range(300)]
    for run in runs[:280]:
        end_command(run, 0)
        table.finish(run, 3.0, 12.0)
    parts = table.snapshot("s", 1)
    for run in runs[280:]:
        finish(table, run)
    seen = list(parts)
    assert [part.more for part in seen] == [True, False]
    assert sum(len(part.running) for part in seen) == 20
    assert len({end.key for part in seen for end in part.ended}) == 280
    assert len({key for part in seen for key in part.waiting}) == 300
    assert [part.more for part in whole(Table())] == [False]
    assert [part.more for part in whole(table)] == [True, False]


def test_renewing_a_waiting_task_moves_its_deadline() -> None:
    table = Table()
    table.add(task("job", takeover_deadline=5.0))
    table.renew(("job", 1), 50.0)
    table.renew(("unknown", 1), 50.0)
    assert start(table).takeover_at == 50.0


def test_a_run_wants_attention_at_its_first_deadline() -> None:
    run = begun(task("job", wall_limit_s=60.0, takeover_deadline=500.0), 1, 0.0, 100.0)
    assert run.due_at == 160.0
    run.kill_at = 130.0
    assert run.due_at == 130.0
    run.exit = Exit(0, getrusage(RUSAGE_SELF))
    assert run.due_at == float("inf")
