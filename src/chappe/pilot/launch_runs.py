"""The launcher's runs: from a ready task, over signals and deadlines, to a told end.

Between the end of a main process and the end of its run lies the *drain*: what it left behind is being killed
(see `reap`). A drain takes microseconds, or as long as the kernel needs; after 10 s it is given up, so that
one process in an uninterruptible wait does not hide the end of its Job for ever.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from math import inf

import msgspec

from chappe.core.faults import reach
from chappe.pilot import memory
from chappe.pilot.launch_stages import (
    COMMAND,
    SCRATCH,
    CommandEnd,
    Stage,
    first,
    following,
    hook_end,
)
from chappe.pilot.launch_table import Run, Table
from chappe.pilot.launch_timer import Deadlines, boot_now
from chappe.pilot.launch_warm import Warm, Worker
from chappe.pilot.launch_wire import BaseEnv, Done, HookEnd, Key, KillOrder, KillReason, Task
from chappe.pilot.procs import Marked, signal_marked
from chappe.pilot.reap import WARM, Exit, Reaper, Usage, kill_group
from chappe.pilot.spawn import Spawner, StartError, read_tail

_SPAWN_BURST = 32
_GIVE_UP_S = 10.0
OUT_OF_MEMORY: KillReason = "memory"
_KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)
"""How a process ends that was killed, and a shell or launcher whose child was."""
_TOO_LARGE = (-signal.SIGXFSZ, 128 + signal.SIGXFSZ)


class Runs:
    """Acts on the runs of `table`; `deadlines` tells when to call `expire`."""

    def __init__(self, session: str, table: Table, deadlines: Deadlines, node: str = "") -> None:
        self.spawner = Spawner(session, node)
        self._session = session
        self._node = node
        self._table = table
        self._deadlines = deadlines
        self._reaper = Reaper(session)
        self.warm = Warm(self.spawner, table, self._reaper, deadlines, self._done)
        self._draining: dict[Key, Run] = {}
        self._scratch: set[str] = set()
        self._oom = memory.OomKills()
        self._weighing = False

    def set_base(self, base: BaseEnv) -> None:
        """Take what all tasks have in common."""
        self.spawner.set_base(base)
        self.warm.environments = base.environments

    def start_ready(self) -> None:
        """Start a burst of what is ready, no more, so that a large batch does not delay a kill."""
        for _ in range(min(_SPAWN_BURST, self._table.ready)):
            task = self._table.next_ready()
            now = boot_now()
            deadline = task.takeover_deadline
            if now > task.start_by or (deadline is not None and now > deadline):
                self._table.skip(task, "late")
                continue
            reach("launcher.before_spawn")
            try:
                worker = self.warm.take(task) if task.call is not None else None
                if worker is None and task.call is not None:
                    continue
                stage = first(task)
                pid = self.spawner.start(stage.task) if worker is None else worker.pid
            except (StartError, OSError) as error:
                self._table.fail(task, str(error), time.time())
                self._leave(task)
                continue
            if task.care is not None and task.care.scratch:
                self._scratch.add(os.path.dirname(task.care.scratch))
            run = Run(task, stage, pid, time.time(), now)
            reach("launcher.after_spawn")
            self._table.start(run)
            self._follow(run)
            if worker is not None:
                self.warm.begin(worker, run)
        self.spawner.settle()

    def reap(self) -> None:
        """Take in every child that ended, and tell the ends of the runs of which nothing is left."""
        for key, exit_ in self._reaper.collect():
            reach("launcher.after_reap")
            if key[0] == WARM:
                self.warm.exited(key[1])
                continue
            run = self._table.runs[key]
            done, used = self.warm.last_words(key)
            run.done = run.done or done
            run.exit = _exit_of(run.done) if run.done is not None else _less(exit_, used)
            self._draining[key] = run
        if not self._draining:
            return
        held = self._reaper.settle(self._table.runs.keys(), self._alive)
        for key, run in list(self._draining.items()):
            if key not in held:
                self._stage_over(run)
            elif run.give_up_at == inf:
                run.give_up_at = boot_now() + _GIVE_UP_S
                self._watch(run)

    def _done(self, worker: Worker, done: Done) -> None:
        """A worker says that its call is over."""
        run = worker.run
        if run is None or run.done is not None:
            kill_group(
                worker.pid, signal.SIGKILL
            )  # it speaks out of turn: the function has its socket
            return
        run.done = done
        if done.leftovers or run.reason is not None:
            # Over once its process is gone, and all that it leaves. What was signalled gets no other call.
            kill_group(worker.pid, signal.SIGKILL)
            return
        worker.used = (worker.used[0] + done.user_s, worker.used[1] + done.system_s)
        run.exit = _exit_of(done)
        self._reaper.forget(run.pid, run.task.key)
        self.warm.free(worker, keep=not done.last)
        self._note(run, done.tail)
        self._table.finish(run, time.time(), boot_now())

    def kill(self, orders: list[KillOrder]) -> None:
        """End these runs, and refuse those that still wait to be started."""
        self.reap()  # what ended before the order came, ended by itself
        for order in orders:
            self._table.withdraw((order.job, order.epoch), "withdrawn")
        runs = self._table.runs
        self._end(
            (run, order.reason, order.grace_s)
            for order in orders
            if (run := runs.get((order.job, order.epoch))) is not None
        )
        self._sweep({(o.job, o.epoch) for o in orders if o.reason == "node_lost"} - runs.keys())

    def _sweep(self, keys: set[Key]) -> None:
        """Kill what is here of Jobs whose main process was on a node that is lost: their other ranks."""
        if keys:
            signal_marked(
                self._session, lambda p: (p.job, p.epoch) in keys, signal.SIGKILL, self._node
            )

    def kill_all(self, reason: KillReason, grace_s: float) -> None:
        """End every run."""
        self.reap()
        self._end([(run, reason, grace_s) for run in self._table.runs.values()])

    def renew(self, key: Key, deadline: float) -> None:
        """Move the takeover deadline of a waiting or running task."""
        self._table.renew(key, deadline)
        run = self._table.runs.get(key)
        if run is not None:
            run.takeover_at = deadline
            self._watch(run)

    def expire(self, keys: Iterable[Key]) -> None:
        """Do what is due for these; a key whose time moved back is watched anew."""
        now = boot_now()
        late: list[tuple[Run, KillReason, float]] = []
        for key in keys:
            run = self._table.runs.get(key)
            if key[0] == WARM:
                self.warm.overdue(key[1])
            elif key == memory.WEIGH:
                self._weigh()
            if run is None:
                continue
            run.watched_at = inf
            if run.due_at > now:
                self._watch(run)
            elif run.exit is not None:
                log("launcher.escapees", job=run.task.job, epoch=run.task.epoch)
                self._stage_over(run)
            elif run.takeover_at <= now:
                late.append((run, "takeover", 0.0))
            elif run.kill_at <= now:
                late.append((run, run.stage_reason or "timeout", 0.0))
            elif run.wall_at <= now:
                late.append((run, "timeout", run.task.grace_s))
            else:
                self._warn(run)
        self._end(late)

    def _warn(self, run: Run) -> None:
        """Its time is nearly up: let it write its checkpoint."""
        run.warn_at = inf
        run.warned = True
        kill_group(run.pid, run.task.warn_signal)
        self._watch(run)

    def clear_scratch(self) -> None:
        """Nothing runs any more and no head will come: remove what is left on the node."""
        if self._scratch:
            from chappe.pilot.scratch import remove  # 1 MB that a launcher hardly ever needs

            for directory in self._scratch:
                remove(directory)

    def watch_all(self) -> None:
        """Enter every run's deadline into `deadlines`, which was cleared."""
        self._weighing = False
        for run in self._table.runs.values():
            run.watched_at = inf
            self._watch(run)
            self._limit(run)

    def _watch(self, run: Run) -> None:
        if run.due_at < run.watched_at:
            run.watched_at = run.due_at
            self._deadlines.add(run.due_at, run.task.key)

    def _alive(self, key: Key) -> bool:
        if key[0] == WARM:
            return self.warm.forking
        run = self._table.runs.get(key)
        return run is not None and run.exit is None

    def _follow(self, run: Run) -> None:
        """A process of `run` was started: wait for its end, and watch its time."""
        count_io = run.stage == COMMAND and run.task.care is not None and run.task.care.count_io
        self._reaper.watch(run.pid, run.task.key, count_io=count_io)
        self._watch(run)
        self._limit(run)

    def _limit(self, run: Run) -> None:
        """Look at its memory from now on, if it has a limit that the kernel does not hold it to."""
        if self._weighed(run) and not self._weighing:
            self._weighing = True
            self._deadlines.add(boot_now() + memory.LOOK_S, memory.WEIGH)

    def _weighed(self, run: Run) -> bool:
        if not run.task.mem_limit_bytes:
            return False
        cells = self.spawner.cells
        return cells is None or not cells.holds(run.task.key)

    def _leave(self, task: Task) -> None:
        if task.mem_limit_bytes and self.spawner.cells is not None:
            self.spawner.cells.leave(task.key)

    def _weigh(self) -> None:
        """End what uses more memory than it may, and look again later, while there is any such limit."""
        at = boot_now()
        limited = [run for run in self._table.runs.values() if self._weighed(run) and not run.exit]
        self._weighing = bool(limited)
        if not limited:
            return
        over = []
        found = memory.by_run({run.pid: run.task.key for run in limited}, self._session)
        for run in limited:
            used, limit = found[run.task.key], run.task.mem_limit_bytes
            if sum(used.values()) > limit and (exact := memory.exact_bytes(used, limit)) > limit:
                run.note = f"used {exact} of {limit} bytes of memory"
                over.append((run, OUT_OF_MEMORY, 0.0))
        self._end(over)
        now = boot_now()
        self._deadlines.add(now + max(memory.LOOK_S, memory.SHARE * (now - at)), memory.WEIGH)

    def _starved(self, run: Run, status: int) -> str:
        """What there is to say, if the kernel killed it for want of memory; "" if it did not."""
        cells = self.spawner.cells if run.task.mem_limit_bytes else None
        if cells is not None and cells.holds(run.task.key):
            if not cells.killed(run.task.key):
                return ""
            self._oom.known()
            return f"killed by the kernel, held to {run.task.mem_limit_bytes} bytes of memory"
        if os.waitstatus_to_exitcode(status) in _KILLED and self._oom.another():
            return "killed by the kernel: its cgroup had no memory left"
        return ""

    def _stage_over(self, run: Run) -> None:
        """Nothing is left of a stage: begin the next, or tell that the run is over."""
        key = run.task.key
        del self._draining[key]
        self._reaper.forget(run.pid, key)
        self._note(run)
        while (stage := following(run)) is not None:
            try:
                pid = self.spawner.start(stage.task)
            except StartError as error:
                _not_begun(run, stage, error.message)
            else:
                run.begin(stage, pid, boot_now())
                self._follow(run)
                self.spawner.settle()
                return
        self._table.finish(run, time.time(), boot_now())
        self._leave(run.task)

    def _note(self, run: Run, tail: str = "") -> None:
        """Keep what the end of a stage says; `tail` are its last words, if they are known."""
        if run.exit is None or run.stage == SCRATCH:
            return
        status, usage = run.exit
        if run.stage != COMMAND:
            run.hook = hook_end(run, status)
            return
        if status != 0 and run.reason is None and (starved := self._starved(run, status)):
            run.end(OUT_OF_MEMORY)
            run.note = starved
        if os.waitstatus_to_exitcode(status) in _TOO_LARGE and self.spawner.bounds.file_bytes:
            most = self.spawner.bounds.file_bytes
            run.note = run.note or f"a file of it would have grown beyond {most} bytes (file_bytes)"
        failed = run.reason is not None or status != 0
        run.command = CommandEnd(
            os.waitstatus_to_exitcode(status),
            usage,
            boot_now() - run.stage_at,
            self._reaper.counted(run.task.key, usage),
            tail or (read_tail(run.task) if failed else ""),
        )

    def _end(self, orders: Iterable[tuple[Run, KillReason, float]]) -> None:
        """Signal each run's group; with a grace also what left it, then watch for its end."""
        asked: dict[Key, Run] = {}
        now = boot_now()
        for run, reason, grace_s in orders:
            if run.exit is not None:
                continue
            run.end(reason)
            if grace_s <= 0:
                run.takeover_at = run.wall_at = run.kill_at = run.warn_at = inf
                kill_group(run.pid, signal.SIGKILL)
                continue
            run.warn_at = inf
            if reason == "timeout":
                run.wall_at = inf
            kill_group(run.pid, signal.SIGTERM)
            kill_group(run.pid, signal.SIGCONT)  # a stopped process cannot heed SIGTERM
            run.kill_at = min(run.kill_at, now + grace_s)
            self._watch(run)
            asked[run.task.key] = run
        if asked:
            signal_marked(
                self._session, lambda process: _left(process, asked), signal.SIGTERM, self._node
            )


def _exit_of(done: Done) -> Exit:
    """The end of a call, in the terms of a process."""
    usage = Usage(done.user_s, done.system_s, done.max_rss_bytes // 1024, done.written_bytes // 512)
    return Exit(done.exit << 8, usage)


def _less(exit_: Exit, used: tuple[float, float]) -> Exit:
    """The end of a process, without what it used before its last call."""
    u = exit_.usage
    usage = Usage(
        max(0.0, u.ru_utime - used[0]), max(0.0, u.ru_stime - used[1]), u.ru_maxrss, u.ru_oublock
    )
    return Exit(exit_.status, usage)


def _not_begun(run: Run, stage: Stage, message: str) -> None:
    """A stage after the first could not be started."""
    run.stage = stage.name
    if stage.name == COMMAND:
        run.failure = message
    elif stage.name != SCRATCH:
        run.hook = HookEnd(stage.name, f"could not be started: {message}")


def _left(process: Marked, runs: dict[Key, Run]) -> bool:
    """Whether a run's process is outside the group that its main process leads."""
    run = runs.get((process.job, process.epoch))
    if run is None:
        return False
    try:
        return os.getpgid(process.pid) != run.pid
    except ProcessLookupError:
        return False


def log(event: str, **fields: object) -> None:
    """One JSON line to stderr, the pilot's log. A full disk is passed over: what runs matters more."""
    line = msgspec.json.encode({"at": time.time(), "event": event, "pid": os.getpid(), **fields})
    try:
        os.write(2, line + b"\n")
    except OSError:
        return
