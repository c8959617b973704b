"""The history checker: whether every Job ended exactly once, and never ran twice at once.

It believes two witnesses. The Jobs themselves write a *trace*: one file per Job, to which each run appends
a line when it begins, while it lives and when it ends (`TRACER`). And the Hub's EventLog. A line that one
run writes after another run of the same Job began is proof of two live runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from chappe.core.states import FINAL, State, legal
from chappe.wire.events import Event

_FINAL = frozenset(str(state) for state in FINAL)

#: An App's shell text that traces its run into the directory `$TRACE`. It lives for `$BEATS` beats of
#: `$BEAT_S` seconds each, or until the file `$GATE` exists. One `echo` is one append of a short line, so
#: lines of two runs never mix.
TRACER = r"""
say() { echo "$1 $CHAPPE_ATTEMPT $CHAPPE_EPOCH $$" >> "$TRACE/$CHAPPE_JOB_ID"; }
say begin
i=0
while [ "$i" -lt "$BEATS" ] && [ ! -e "$GATE" ]; do sleep "$BEAT_S"; say beat; i=$((i + 1)); done
say end
"""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a trace: `what` is begin | beat | end."""

    what: str
    attempt: int
    epoch: int
    pid: int


def read_traces(directory: Path) -> dict[str, list[Line]]:
    """All traces, by Job id, lines in the order in which they were appended."""
    traces: dict[str, list[Line]] = {}
    for path in directory.iterdir():
        lines = []
        for text in path.read_text().splitlines():
            what, attempt, epoch, pid = text.split()
            lines.append(Line(what, int(attempt), int(epoch), int(pid)))
        traces[path.name] = lines
    return traces


def check(
    jobs: Mapping[str, str],
    traces: Mapping[str, Sequence[Line]],
    events: Iterable[Event],
    *,
    ended: bool = True,
) -> list[str]:
    """What is wrong with the history of these Jobs (id → state); empty when nothing is.

    `ended` False allows Jobs that are not final yet.
    """
    wrong = _gaps(events := list(events))
    by_job: dict[str, list[Event]] = {}
    for event in events:
        if event.kind == "job":
            by_job.setdefault(event.subject, []).append(event)
    for job, state in jobs.items():
        own = by_job.get(job, [])
        wrong += [f"{job}: {words}" for words in _check_events(own, state, ended=ended)]
        wrong += [f"{job}: {words}" for words in _check_trace(traces.get(job, []), own, state)]
    wrong += [f"{job}: a trace of a job that nobody submitted" for job in traces if job not in jobs]
    return wrong


def _gaps(events: Sequence[Event]) -> list[str]:
    """Events are in order and without gaps (promise I5)."""
    return [f"after seq {a.seq} comes {b.seq}" for a, b in pairwise(events) if b.seq != a.seq + 1]


def _check_events(events: Sequence[Event], state: str, *, ended: bool) -> list[str]:
    """The Events are a legal chain that leads to `state`, with one end (promises I6, I7, I11)."""
    wrong = []
    now: State | None = None
    attempt = 0
    for event in events:
        old = None if event.old is None else State(event.old)
        new = State(str(event.new))
        if old != now:
            wrong.append(f"event {event.seq} leaves {old}, but it was {now}")
        if not legal(old, new):
            wrong.append(f"event {event.seq}: {old} → {new} is not legal")
        if event.attempt < attempt:
            wrong.append(f"event {event.seq}: attempt {event.attempt} after {attempt}")
        now, attempt = new, max(attempt, event.attempt)
    if str(now) != state:
        wrong.append(f"it shows {state}, its events end in {now}")
    ends = sum(event.new in _FINAL for event in events)
    reopened = sum(event.old in _FINAL for event in events)
    if ends > reopened + 1:
        wrong.append(f"{ends} ends for {reopened} retries")
    if ended and state not in _FINAL:
        wrong.append(f"it never ended: {state}")
    return wrong


def _check_trace(trace: Sequence[Line], events: Sequence[Event], state: str) -> list[str]:
    """No two runs at once (promise I9), each run known to the Hub, and an end where it says so."""
    wrong = []
    current: Line | None = None
    runs: list[Line] = []
    for line in trace:
        if line.what == "begin":
            if runs and line.attempt <= runs[-1].attempt:
                wrong.append(f"attempt {line.attempt} began after attempt {runs[-1].attempt}")
            runs.append(line)
            current = line
        elif current is None or line.pid != current.pid:
            wrong.append(f"a {line.what} of attempt {line.attempt} while another run was alive")
    known = {event.attempt for event in events if event.new == State.RUNNING}
    wrong += [
        f"attempt {run.attempt} ran, and no event says so"
        for run in runs
        if run.attempt not in known
    ]
    if state == State.JOB_FINISHED and not (trace and trace[-1].what == "end"):
        wrong.append("it is said to have finished, and its last run did not come to its end")
    return wrong
