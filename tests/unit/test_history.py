"""The history checker must see what is wrong, or the chaos tests prove nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from chappe.testing.history import Line, check, read_traces
from chappe.wire.events import Event

JOB = "01890a5d-ac96-774b-bcce-b302099a8057"


def _events(*steps: tuple[str | None, str, int]) -> list[Event]:
    return [
        Event(i, "job", JOB, 0.0, 0.0, old=old, new=new, attempt=attempt)
        for i, (old, new, attempt) in enumerate(steps, 1)
    ]


GOOD = (
    (None, "PREPROCESSED", 0),
    ("PREPROCESSED", "RUNNING", 1),
    ("RUNNING", "RUN_DONE", 1),
    ("RUN_DONE", "JOB_FINISHED", 1),
)
TRACE = [Line("begin", 1, 1, 10), Line("beat", 1, 1, 10), Line("end", 1, 1, 10)]


def test_a_good_history_passes() -> None:
    assert check({JOB: "JOB_FINISHED"}, {JOB: TRACE}, _events(*GOOD)) == []


def _gap(events: list[Event], trace: list[Line]) -> None:
    del events[1]


def _ends_twice(events: list[Event], trace: list[Line]) -> None:
    events.append(Event(5, "job", JOB, 0.0, 0.0, old="RUN_DONE", new="JOB_FINISHED", attempt=1))


def _two_at_once(events: list[Event], trace: list[Line]) -> None:
    trace.insert(1, Line("begin", 2, 2, 11))


def _unknown_run(events: list[Event], trace: list[Line]) -> None:
    trace.extend([Line("begin", 2, 2, 11), Line("end", 2, 2, 11)])


def _same_attempt_again(events: list[Event], trace: list[Line]) -> None:
    trace.extend([Line("begin", 1, 2, 11), Line("end", 1, 2, 11)])


def _never_came_to_its_end(events: list[Event], trace: list[Line]) -> None:
    trace.pop()


def _never_ran(events: list[Event], trace: list[Line]) -> None:
    trace.clear()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_gap, "after seq 1 comes 3"),
        (_ends_twice, "2 ends for 0 retries"),
        (_two_at_once, "while another run was alive"),
        (_unknown_run, "attempt 2 ran, and no event says so"),
        (_same_attempt_again, "attempt 1 began after attempt 1"),
        (_never_came_to_its_end, "did not come to its end"),
        (_never_ran, "did not come to its end"),
    ],
)
def test_what_is_wrong_is_seen(
    spoil: Callable[[list[Event], list[Line]], None], words: str
) -> None:
    events, trace = _events(*GOOD), list(TRACE)
    spoil(events, trace)
    assert any(words in w for w in check({JOB: "JOB_FINISHED"}, {JOB: trace}, events))


def test_a_job_that_never_ended_is_seen() -> None:
    wrong = check({JOB: "RUNNING"}, {JOB: TRACE[:2]}, _events(*GOOD[:2]))
    assert wrong == [f"{JOB}: it never ended: RUNNING"]


def test_traces_are_read_in_order(tmp_path: Path) -> None:
    (tmp_path / JOB).write_text("begin 1 1 10\nbeat 1 1 10\nend 1 1 10\n")
    assert read_traces(tmp_path) == {JOB: TRACE}
