"""Starting one process, as cheaply as Linux can without forking.

`os.posix_spawn` (vfork and exec inside libc) and not `subprocess.Popen` (vfork too): 77 µs against 110 µs of
the launcher's CPU per /bin/true with a directory, an environment, a session of its own and an open log.
What posix_spawn cannot set in the child is set here before it and inherited, which is sound because the
launcher has one thread: the working directory (every path from the head is absolute), the affinity, and the
resource limits, which are the launcher's own again afterwards; and the cgroup (`cells`).
Descriptors need no closing: Python opens all of them close-on-exec, and the launcher marks those that it
inherited. Popen stays as the way for interpreters built against a libc without POSIX_SPAWN_SETSID.

Affinity costs 1 µs when the mask stays the same and about 22 µs when the launcher moves to other cores; a
mask set from outside, after the start, would come too late for the OpenMP runtimes that read it first thing.
"""

from __future__ import annotations

import os
import resource
import signal
import stat
from collections.abc import Generator
from contextlib import contextmanager, nullcontext, suppress
from functools import cached_property

from chappe.core import limits
from chappe.core.errors import ChappeError
from chappe.pilot.cells import Cells
from chappe.pilot.launch_wire import NO_BOUNDS, BaseEnv, Bounds, Task

_DEFAULT_SIGNALS = (signal.SIGPIPE, signal.SIGXFSZ)  # Python ignores them; programs expect them
# O_NONBLOCK changes nothing for a file; it makes a FIFO that a job put there an error, not a wait for ever.
_LOG_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK
_MESSAGE_CHARS = 2_000


class StartError(ChappeError):
    """The process could not be started; the message says what to mend."""

    default_code = "start_failed"


class Spawner:
    """Starts processes of one Session. Call `settle` after a batch of starts."""

    def __init__(self, session: str, node: str = "") -> None:
        self._session = session
        self._node = {"CHAPPE_NODE": node} if node else {}
        self._base: dict[str, str] = {}
        self.shared_log = ""
        self._null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self._shared_fd = -1
        self.bounds = NO_BOUNDS
        self._home = os.sched_getaffinity(0)
        self._placed: list[int] = []
        self._has_setsid = True

    @cached_property
    def cells(self) -> Cells | None:
        """Where the kernel holds runs to their limits; looked for when the first has one."""
        return Cells.found(f"{self._session[-12:]}-{os.getpid()}")

    def set_base(self, base: BaseEnv) -> None:
        """Take the environment and the shared log that all tasks have in common."""
        self._base = base.env
        self.bounds = base.bounds
        if base.shared_log != self.shared_log and self._shared_fd >= 0:
            os.close(self._shared_fd)
            self._shared_fd = -1
        self.shared_log = base.shared_log

    def start(self, task: Task) -> int:
        """Start `task` in a session and process group of its own; its pid. Raises StartError."""
        env = self.environment(task)
        try:
            os.chdir(task.cwd)
        except (OSError, ValueError) as error:
            raise _failure("enter the directory", task.cwd, error) from error
        program = _find_program(task.argv, env)
        self._place(task.cores)
        opened: list[int] = []
        try:
            out = self._open_out(task, opened)
            err = _open_log(task.stderr, opened) if task.stderr else out
            limit = task.mem_limit_bytes
            cell = self.cells.around(task.key, limit) if limit and self.cells else nullcontext()
            with cell:
                return self._spawn(program, task.argv, env, out, err)
        except (OSError, ValueError) as error:
            raise _failure("execute", program, error) from error
        finally:
            for fd in opened:
                os.close(fd)

    def environment(self, task: Task) -> dict[str, str]:
        """What the process of a task finds in its environment."""
        return {
            **self._base,
            **task.env,
            **self._node,
            "CHAPPE_SESSION": self._session,
            "CHAPPE_JOB_ID": task.job,
            "CHAPPE_EPOCH": str(task.epoch),
            "CHAPPE_ATTEMPT": str(task.attempt),
        }

    def start_zygote(self, argv: list[str], env: dict[str, str], control: int) -> int:
        """Start a zygote whose standard input is the socket `control`; its pid. Raises StartError.

        What it prints goes to the log that the Session's Jobs share.
        """
        env = {**self._base, **env, **self._node, "CHAPPE_SESSION": self._session}
        os.chdir("/")
        self._place([])
        try:
            out = self._open_shared() if self.shared_log else self._null
            return self._spawn(argv[0], argv, env, out, out, control)
        except (OSError, ValueError) as error:
            raise _failure("execute", argv[0], error) from error

    def settle(self) -> None:
        """Leave the last task's cores and directory, which the launcher must not occupy."""
        # Fails only when the node's own CPU set was taken away meanwhile; the last cores are then home.
        with suppress(StartError):
            self._place([])
        os.chdir("/")

    def _spawn(
        self,
        program: str,
        argv: list[str],
        env: dict[str, str],
        out: int,
        err: int,
        stdin: int | None = None,
    ) -> int:
        with _bounded(self.bounds):
            return self._exec(program, argv, env, out, err, self._null if stdin is None else stdin)

    def _exec(
        self, program: str, argv: list[str], env: dict[str, str], out: int, err: int, stdin: int
    ) -> int:
        if self._has_setsid:
            actions = [
                (os.POSIX_SPAWN_DUP2, stdin, 0),
                (os.POSIX_SPAWN_DUP2, out, 1),
                (os.POSIX_SPAWN_DUP2, err, 2),
            ]
            try:
                return os.posix_spawn(
                    program,
                    argv,
                    env,
                    file_actions=actions,
                    setsid=True,
                    setsigmask=(),
                    setsigdef=_DEFAULT_SIGNALS,
                )
            except NotImplementedError:
                self._has_setsid = False
        return _popen(program, argv, env, stdin, out, err)

    def _place(self, cores: list[int]) -> None:
        if cores == self._placed:
            return
        try:
            os.sched_setaffinity(0, cores or self._home)
        except (OSError, ValueError, OverflowError) as error:
            raise _failure("be placed on cores", cores, error) from error
        self._placed = cores

    def _open_out(self, task: Task, opened: list[int]) -> int:
        if task.log == "file":
            return _open_log(task.stdout, opened)
        if task.log == "none":
            return self._null
        return self._open_shared()

    def _open_shared(self) -> int:
        if self._shared_fd < 0:
            self._shared_fd = _open_log(self.shared_log, [], 0o600)
        return self._shared_fd


@contextmanager
def _bounded(bounds: Bounds) -> Generator[None]:
    """These soft limits, for as long as a process is being started."""
    before = []
    try:
        for which, most in (
            (resource.RLIMIT_FSIZE, bounds.file_bytes),
            (resource.RLIMIT_NPROC, bounds.processes),
        ):
            if most:
                soft, hard = resource.getrlimit(which)
                before.append((which, soft, hard))
                under = most if soft == resource.RLIM_INFINITY else min(most, soft)
                resource.setrlimit(which, (under, hard))
        yield
    finally:
        for which, soft, hard in before:
            resource.setrlimit(which, (soft, hard))


def read_tail(task: Task) -> str:
    """The last bytes of the task's own stderr (or merged) file; empty if it has none or it is unreadable."""
    path = task.stderr or (task.stdout if task.log == "file" else "")
    wanted = min(task.tail_bytes, limits.TAIL_BYTES)
    if not path or wanted <= 0:
        return ""
    # The job may have put a FIFO or a link in its place: neither may hold the launcher up.
    with suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            status = os.fstat(fd)
            if stat.S_ISREG(status.st_mode):
                data = os.pread(fd, wanted, max(0, status.st_size - wanted))
                return data.decode(errors="replace")
        finally:
            os.close(fd)
    return ""


def _failure(act: str, what: object, error: Exception) -> StartError:
    # Not an OSError: a NUL or a lone surrogate in a name, an argument or a variable.
    words = error.strerror if isinstance(error, OSError) else str(error)
    return StartError(f"cannot {act} {what!r}: {words}"[:_MESSAGE_CHARS])


def _open_log(path: str, opened: list[int], mode: int = 0o666) -> int:
    try:
        fd = os.open(path, _LOG_FLAGS, mode)
    except (OSError, ValueError) as error:
        raise _failure("open the log", path, error) from error
    opened.append(fd)
    return fd


def _find_program(argv: list[str], env: dict[str, str]) -> str:
    if not argv or not argv[0]:
        raise StartError("the command is empty")
    name = argv[0]
    if "/" in name:
        return name
    path = env.get("PATH", os.defpath)
    for directory in path.split(os.pathsep):
        candidate = f"{directory or '.'}/{name}"
        if os.access(candidate, os.X_OK) and os.path.isfile(candidate):
            return candidate
    raise StartError(f"the command {name!r} is not found in PATH {path!r}"[:_MESSAGE_CHARS])


def _popen(
    program: str, argv: list[str], env: dict[str, str], null: int, out: int, err: int
) -> int:
    import subprocess  # 1.4 MB that most interpreters need not load

    process = subprocess.Popen(
        argv,
        executable=program,
        env=env,
        stdin=null,
        stdout=out,
        stderr=err,
        start_new_session=True,
    )
    # The launcher reaps all its children itself: a Popen that believed it had to would take one away.
    process.returncode = 0
    return process.pid
