"""What the launcher knows: the tasks that wait, run and have ended, and what the head has not heard yet.

No I/O and no clock: times are passed in. A task is in exactly one of three places (waiting, runs, ended)
until its end is acked, or it is refused. Events hold only what is not yet written to the head; a new head
gets a snapshot instead, so nothing is kept for a head that is away.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from math import inf

import msgspec

from chappe.core.limits import HELD_PER_SESSION
from chappe.pilot.launch_stages import COMMAND, SCRATCH, CommandEnd, Stage
from chappe.pilot.launch_wire import (
    Done,
    Ended,
    EndReason,
    Events,
    HookEnd,
    Key,
    KillReason,
    RefusalReason,
    Refused,
    Snapshot,
    Started,
    Task,
)
from chappe.pilot.reap import Exit

TASKS_MAX = HELD_PER_SESSION
"""Tasks known at once (waiting, running, or ended and not acked); more are refused as "full"."""

RECORDS_PER_FRAME = 256
"""So many ends with full tails stay under the frame limit, whatever bytes they hold."""


_OUT_OF_TIME = ("exit", "signal", "allocation_end")
"""How a run may end whose time is up, and which was told so."""


class Run:
    """A task that was started. Times `*_at` are CLOCK_BOOTTIME seconds, infinity for never."""

    __slots__ = (
        "began_at",
        "command",
        "done",
        "exit",
        "failure",
        "give_up_at",
        "hook",
        "kill_at",
        "limit_s",
        "note",
        "reason",
        "stage",
        "stage_at",
        "stage_reason",
        "started",
        "takeover_at",
        "task",
        "wall_at",
        "warn_at",
        "warned",
        "watched_at",
    )

    def __init__(self, task: Task, stage: Stage, pid: int, at: float, now: float) -> None:
        self.task = task
        self.started = Started(task.job, task.epoch, task.attempt, pid, at, task.place)
        self.began_at = now
        self.takeover_at = inf if task.takeover_deadline is None else task.takeover_deadline
        self.reason: KillReason | None = None  # why it is being ended; the first reason stays
        self.command: CommandEnd | None = None  # once its command is over
        self.done: Done | None = None  # what a worker said, while it is still to go
        self.hook: HookEnd | None = None  # the last of its hooks that is over
        self.warned = False
        self.note = ""  # what there is to add to its reason
        self.failure = ""  # why its command could not be started after its hook
        self.begin(stage, pid, now)

    def begin(self, stage: Stage, pid: int, now: float) -> None:
        """The process of a stage exists."""
        if pid != self.started.pid:
            self.started = msgspec.structs.replace(self.started, pid=pid)
        self.stage = stage.name
        self.limit_s = stage.limit_s
        self.stage_at = now
        self.stage_reason: KillReason | None = None  # why this stage is being ended
        self.wall_at = now + stage.limit_s
        self.warn_at = inf
        if stage.name == COMMAND and self.task.warn_s is not None:
            ends_at = inf if self.task.ends_at is None else self.task.ends_at
            self.warn_at = min(self.wall_at, ends_at) - self.task.warn_s
        self.kill_at = inf  # when SIGTERM becomes SIGKILL
        self.exit: Exit | None = None  # set once its process ended; others are being killed
        self.give_up_at = inf  # when its end is told though something outlives SIGKILL
        self.watched_at = inf  # the earliest time at which the deadlines have it

    def end(self, reason: KillReason) -> None:
        """The present stage is to end. A hook that takes too long is the hook's matter, not the run's."""
        self.stage_reason = self.stage_reason or reason
        if self.stage == COMMAND or (reason != "timeout" and self.stage != SCRATCH):
            self.reason = self.reason or reason

    def end_reason(self, code: int) -> EndReason:
        """Why it ended, when its command did with `code` (negative for a signal)."""
        reason: EndReason = self.reason or ("exit" if code >= 0 else "signal")
        return "timeout" if self.warned and code != 0 and reason in _OUT_OF_TIME else reason

    @property
    def pid(self) -> int:
        """The main process; unreaped, so still its own number, while `exit` is None."""
        return self.started.pid

    @property
    def due_at(self) -> float:
        """When it next wants attention."""
        if self.exit is not None:
            return self.give_up_at
        return min(self.wall_at, self.takeover_at, self.kill_at, self.warn_at)


class Table:
    """The tasks of one Session on this node."""

    def __init__(self) -> None:
        self.runs: dict[Key, Run] = {}
        self._waiting: dict[Key, Task] = {}
        self._ended: dict[Key, Ended] = {}
        self._ready: deque[Task] = deque()
        self._parked: set[Key] = set()  # of those that wait: no worker for them yet
        self._lanes: dict[int, deque[Task]] = {}  # an entry: the lane is occupied
        self._new_started: dict[Key, Started] = {}
        self._new_ended: list[Ended] = []
        self._new_refused: list[Refused] = []

    @property
    def waiting(self) -> int:
        """Tasks accepted and not yet started."""
        return len(self._waiting)

    @property
    def ready(self) -> int:
        """Tasks that can be started now."""
        return len(self._ready)

    @property
    def unsent(self) -> int:
        """Events that no frame has carried yet."""
        return len(self._new_started) + len(self._new_ended) + len(self._new_refused)

    def add(self, task: Task) -> None:
        """Accept `task`; one already known is answered with its present state."""
        key = task.key
        if key in self.runs:
            self._new_started[key] = self.runs[key].started
        elif key in self._ended:
            self._new_ended.append(self._ended[key])
        elif key not in self._waiting:
            if len(self._waiting) + len(self.runs) + len(self._ended) >= TASKS_MAX:
                self.refuse(task, "full")
                return
            self._waiting[key] = task
            if task.lane in self._lanes:
                self._lanes[task.lane].append(task)
                return
            if task.lane > 0:
                self._lanes[task.lane] = deque()
            self._ready.append(task)

    def next_ready(self) -> Task:
        """Take the task to start now; it must be told `started`, `failed` or `refused` next."""
        task = self._ready.popleft()
        del self._waiting[task.key]
        return task

    def park(self, task: Task) -> None:
        """A task taken by `next_ready` waits for a worker; its lane waits with it."""
        self._waiting[task.key] = task
        self._parked.add(task.key)

    def unpark(self, key: Key) -> bool:
        """There is a worker for a parked task; whether it still wants one."""
        if key not in self._parked:
            return False
        self._parked.discard(key)
        self._ready.appendleft(self._waiting[key])
        return True

    def fail_parked(self, key: Key, message: str, at: float) -> None:
        """There will be no worker for a parked task, if it still wants one."""
        if self.unpark(key):
            self.fail(self.next_ready(), message, at)

    def renew(self, key: Key, deadline: float) -> None:
        """Move the takeover deadline of a task that still waits."""
        if (task := self._waiting.get(key)) is not None:
            task.takeover_deadline = deadline

    def start(self, run: Run) -> None:
        """The process of a task taken by `next_ready` exists."""
        self.runs[run.task.key] = run
        self._new_started[run.task.key] = run.started

    def fail(self, task: Task, message: str, at: float) -> None:
        """A task taken by `next_ready` could not be started."""
        self._end(
            task,
            Ended(
                job=task.job,
                epoch=task.epoch,
                attempt=task.attempt,
                reason="start_failed",
                exit=None,
                signal=None,
                started_at=None,
                ended_at=at,
                tail=message,
            ),
        )

    def refuse(self, task: Task, reason: RefusalReason) -> None:
        """A task that is not in the table is not started and forgotten."""
        self._new_refused.append(Refused(task.job, task.epoch, task.attempt, reason))

    def skip(self, task: Task, reason: RefusalReason) -> None:
        """A task taken by `next_ready` is not started; its lane goes on."""
        self.refuse(task, reason)
        self._free(task.lane)

    def withdraw(self, key: Key, reason: RefusalReason) -> bool:
        """Refuse a waiting task; whether there was one."""
        task = self._waiting.pop(key, None)
        if task is None:
            return False
        if key in self._parked:
            self._parked.discard(key)
            self._free(task.lane)
        elif task in self._ready:
            self._ready.remove(task)
            self._free(task.lane)
        else:
            self._lanes[task.lane].remove(task)
        self.refuse(task, reason)
        return True

    def withdraw_all(self, reason: RefusalReason) -> None:
        """Refuse every waiting task."""
        for task in self._waiting.values():
            self.refuse(task, reason)
        self._waiting.clear()
        self._ready.clear()
        self._parked.clear()
        # A lane whose task runs is still occupied; the others were occupied by what waited.
        running = {run.task.lane for run in self.runs.values()}
        self._lanes = {lane: deque() for lane in self._lanes if lane in running}

    def finish(self, run: Run, at: float, now: float) -> None:
        """A run is over and nothing of it is left; `run.command` says how its command ended, `run.done` what
        the worker that called a function said of it."""
        if run.exit is None:
            raise ValueError(f"{run.task.key} still runs")
        task, command = run.task, run.command
        del self.runs[task.key]
        self._new_started.pop(task.key, None)
        started_at: float | None = run.started.at
        if command is None:
            # It ended in the hook before its command, or between the two.
            code, usage, wall_s, io, tail = None, run.exit.usage, now - run.began_at, None, ""
            reason: EndReason = run.reason or "hook"
            if run.failure:
                reason, started_at, tail = "start_failed", None, run.failure
        else:
            code, usage, wall_s, io, tail = command
            reason = run.end_reason(code)
        self._end(
            task,
            Ended(
                job=task.job,
                epoch=task.epoch,
                attempt=task.attempt,
                reason=reason,
                exit=code if code is not None and code >= 0 else None,
                signal=-code if code is not None and code < 0 else None,
                started_at=started_at,
                ended_at=at,
                wall_s=wall_s,
                user_s=usage.ru_utime,
                system_s=usage.ru_stime,
                max_rss_bytes=usage.ru_maxrss * 1024,
                written_bytes=usage.ru_oublock * 512,
                tail=tail,
                result="" if run.done is None or run.reason is not None else run.done.result,
                hook=run.hook,
                io=io,
                note=run.note,
            ),
        )

    def ack(self, keys: list[Key]) -> None:
        """Forget ends that the head has safe."""
        for key in keys:
            self._ended.pop(key, None)

    def take_events(self) -> Events:
        """At most a frame full of what the head has not heard."""
        started = [
            self._new_started.pop(key) for key in list(self._new_started)[:RECORDS_PER_FRAME]
        ]
        ended = self._new_ended[:RECORDS_PER_FRAME]
        refused = self._new_refused[:RECORDS_PER_FRAME]
        del self._new_ended[:RECORDS_PER_FRAME], self._new_refused[:RECORDS_PER_FRAME]
        return Events(started, ended, refused)

    def drop_events(self) -> None:
        """Keep nothing for a head that is gone: the next one gets a snapshot."""
        self._new_started.clear()
        self._new_ended.clear()
        self._new_refused.clear()

    def snapshot(self, session: str, pid: int) -> Iterator[Snapshot]:
        """The whole table as it is now, in frames; takes the place of all unsent events."""
        self.drop_events()
        running = [run.started for run in self.runs.values()]
        ended = list(self._ended.values())
        waiting = list(self._waiting)
        size = RECORDS_PER_FRAME
        last = max(len(running), len(ended), len(waiting), 1) - 1
        # A generator would see later changes: only the slicing is left to it.
        return (
            Snapshot(
                session,
                pid,
                running[at : at + size],
                ended[at : at + size],
                waiting[at : at + size],
                more=at + size <= last,
            )
            for at in range(0, last + 1, size)
        )

    def _end(self, task: Task, record: Ended) -> None:
        self._ended[task.key] = record
        self._new_ended.append(record)
        self._free(task.lane)

    def _free(self, lane: int) -> None:
        if lane <= 0:
            return
        queue = self._lanes[lane]
        if queue:
            self._ready.append(queue.popleft())
        else:
            del self._lanes[lane]
