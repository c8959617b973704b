"""Processes as the kernel shows them: our children, and who carries a Session's mark.

Every process of an allocation has CHAPPE_SESSION in its environment, every process of a Job also
CHAPPE_JOB_ID and CHAPPE_EPOCH, and where there are several nodes CHAPPE_NODE. /proc/PID/environ shows what
exec was given, so a process cannot lose the mark by accident; one that starts others with an emptied
environment, or writes over its own, can. That is
why the launcher looks at its children first (as subreaper it inherits every orphan) and at marks second.

Two things make a kill safe from hitting a stranger that got a reused pid: our own unreaped children keep
their pid, and others are held by a pidfd from before their environment is read.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from chappe.core.errors import Unavailable

_PR_SET_CHILD_SUBREAPER = 36
_KILL_ROUNDS = 200
_KILL_WAIT_S = 10.0
_LOOK_AGAIN_S = 0.05
_EXEC_LOOKS = 50
_EXEC_LOOK_S = 0.0005


class Marked(NamedTuple):
    """A process of a Session; `job` is empty for the pilot's own processes."""

    pid: int
    job: str
    epoch: int


def become_subreaper() -> None:
    """Make this process inherit every orphaned descendant. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl(PR_SET_CHILD_SUBREAPER): {os.strerror(code)}")


class ChildList:
    """The children of this single-threaded process, zombies included.

    The file is kept open: 1.5 µs a reading instead of 11. Without it (CONFIG_PROC_CHILDREN is off in a few
    kernels) the parents of all processes are read, which takes milliseconds.
    """

    def __init__(self) -> None:
        self._fd = -1
        with suppress(FileNotFoundError):
            self._fd = os.open(
                f"/proc/self/task/{os.getpid()}/children", os.O_RDONLY | os.O_CLOEXEC
            )

    def besides(self, known: Collection[int]) -> list[int]:
        """Our children that are not among `known`, which all are our unreaped children.

        None is missed: the kernel's list only grows while nobody but the caller reaps.
        """
        if self._fd < 0:
            pids = children_by_parent(os.getpid())
            return [pid for pid in pids if pid not in known]
        os.lseek(self._fd, 0, os.SEEK_SET)
        text = b""
        while part := os.read(self._fd, 65536):
            text += part
        if text.count(b" ") == len(
            known
        ):  # the usual case, told without parsing a thousand numbers
            return []
        return [pid for word in text.split() if (pid := int(word)) not in known]


def children_by_parent(parent: int) -> list[int]:
    """The children of `parent`, found by reading the parent of every process."""
    found = []
    for pid in _pids():
        with suppress(OSError):
            # pid (name) state ppid …, where the name may hold spaces and parentheses
            if int(_read(pid, "stat").rpartition(b")")[2].split()[1]) == parent:
                found.append(pid)
    return found


def mark_of(pid: int, session: str, node: str = "") -> Marked | None:
    """What `pid` says of itself, or None: not of this Session (and node), gone, a zombie, or not ours to
    read."""
    data = b"\0" + _environ(pid)
    if b"\0CHAPPE_SESSION=" + session.encode() + b"\0" not in data:
        return None
    epoch = _value(data, b"CHAPPE_EPOCH")
    mark = Marked(pid, _value(data, b"CHAPPE_JOB_ID"), int(epoch) if epoch.isdigit() else 0)
    own = _value(data, b"CHAPPE_NODE")
    # A launcher of another node started it: then it is a rank, on a machine of its own, and bears no name.
    here = own == node or (not own and of_a_job(mark))
    return mark if here or not node else None


def find_marked(session: str, node: str = "") -> list[Marked]:
    """Every process of the Session (and of one of its nodes) that lives now, this one excepted."""
    return [m for pid in _pids() if (m := mark_of(pid, session, node)) and pid != os.getpid()]


def sessions_here() -> set[str]:
    """The Sessions of which a process lives here that is ours to read."""
    return {_value(b"\0" + _environ(pid), b"CHAPPE_SESSION") for pid in _pids()}


def node_of(pid: int) -> str:
    """The node that `pid` says it is on, "" for none."""
    return _value(b"\0" + _environ(pid), b"CHAPPE_NODE")


def of_a_job(process: Marked) -> bool:
    """Whether a Job runs there; false for the pilot's own processes."""
    return process.job != ""


def signal_marked(
    session: str, chosen: Callable[[Marked], bool], signum: int, node: str = ""
) -> list[int]:
    """Send `signum` to the Session's processes (of a node) that are `chosen`; the pids that got it."""
    reached = []
    for pid in _pids():
        if pid == os.getpid() or mark_of(pid, session, node) is None:
            continue
        with _hold(pid) as send:
            process = mark_of(pid, session, node)
            if process is not None and chosen(process) and send(signum):
                reached.append(pid)
    return reached


def kill_marked(
    session: str, chosen: Callable[[Marked], bool] = of_a_job, node: str = ""
) -> list[int]:
    """Kill the Session's processes (of a node) that are `chosen`, until no more appear; their pids.

    Those that are or become our children are reaped. Blocks until they are gone: usually milliseconds.
    Raises Unavailable when some outlive 10 s of SIGKILL (a hung file system) or new ones keep appearing.
    """
    killed: dict[int, None] = {}
    deadline = time.clock_gettime(time.CLOCK_BOOTTIME) + _KILL_WAIT_S
    for _ in range(_KILL_ROUNDS):
        pids = signal_marked(session, chosen, signal.SIGKILL, node)
        if not pids:
            return list(killed)
        killed.update(dict.fromkeys(pids))
        for pid in pids:
            _await_end(pid, deadline)
        if time.clock_gettime(time.CLOCK_BOOTTIME) >= deadline:
            break
    raise Unavailable(
        f"processes of session {session} outlive SIGKILL: {find_marked(session)}; is a file system hung?"
    )


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _environ(pid: int) -> bytes:
    """The environment of `pid`; empty if it has none, is a zombie or gone, or is not ours to read.

    In the middle of exec a process has for microseconds neither arguments nor environment: then look again,
    or a process that just escaped would pass for one without a mark.
    """
    try:
        for _ in range(_EXEC_LOOKS):
            if environ := _read(pid, "environ"):
                return environ
            os.readlink(f"/proc/{pid}/exe")  # raises for zombies and kernel threads
            if _read(pid, "cmdline"):
                return _read(pid, "environ")
            time.sleep(_EXEC_LOOK_S)
    except OSError:
        return b""
    return b""


def _read(pid: int, name: str) -> bytes:
    with open(f"/proc/{pid}/{name}", "rb") as file:
        return file.read()


def _value(environ: bytes, name: bytes) -> str:
    _, _, rest = environ.partition(b"\0" + name + b"=")
    return rest.partition(b"\0")[0].decode(errors="replace")


@contextmanager
def _hold(pid: int) -> Iterator[Callable[[int], bool]]:
    """A function that signals `pid` and no later process of that number, where the kernel has pidfds."""
    fd = -1
    # Gone already, or a kernel before 5.3: then kill(2), microseconds after its environment was read.
    with suppress(OSError):
        fd = os.pidfd_open(pid)

    def send(signum: int) -> bool:
        try:
            if fd < 0:
                os.kill(pid, signum)
            else:
                signal.pidfd_send_signal(fd, signum)
        except (ProcessLookupError, PermissionError):
            return False
        return True

    try:
        yield send
    finally:
        if fd >= 0:
            os.close(fd)


def _await_end(pid: int, deadline: float) -> None:
    """Wait until `pid` is no more than a zombie, and reap it if it is our child."""
    left = max(0.0, deadline - time.clock_gettime(time.CLOCK_BOOTTIME))
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    except OSError:
        # A kernel before 5.3 tells nobody but the parent of a death: look again a little later.
        time.sleep(min(left, _LOOK_AGAIN_S))
    else:
        try:
            ended = select.poll()
            ended.register(fd, select.POLLIN)
            ended.poll(left * 1000)
        finally:
            os.close(fd)
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
