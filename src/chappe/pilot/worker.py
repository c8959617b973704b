"""A warm worker: one process that calls one function after the other.

The zygote forked it with everything imported; the launcher, which is its parent, feeds it. It has no secrets
and no way to the Hub: it gets a file with code that the signature covered, and says what came of the call.
Whatever a function does to its process (threads, chdir, signal handlers, a crash) it does to this one, and
the launcher learns of its death from the kernel. After a call the environment, the directory and the output
are put back; module state stays, which is what makes it warm.
"""

from __future__ import annotations

import gc
import hashlib
import os
import random
import resource
import signal
import socket
import sys
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import cloudpickle

from chappe.core import limits
from chappe.pilot.encode import encode, encode_exception
from chappe.pilot.launch_wire import (
    Call,
    Done,
    Environment,
    FrameReader,
    Task,
    Work,
    decode_work,
)
from chappe.pilot.launch_wire import encode as frame

_FUNCTIONS_MOST = 32
_LOG_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK
# What stands behind os.environ. To copy that through its own interface costs 25 µs a call.
_ENVIRON: dict[bytes, bytes] = vars(os.environ)["_data"]
_PAGE = os.sysconf("SC_PAGE_SIZE")


class CodeProblem(RuntimeError):
    """The function cannot be loaded here: its bytes, or the Python that pickled it, do not fit."""


class Worker:
    """Serves one launcher over `connection`; `environment` says when it has served long enough."""

    def __init__(self, connection: socket.socket, environment: Environment) -> None:
        self._connection = connection
        self._environment = environment
        self._functions: OrderedDict[str, Callable[..., Any]] = OrderedDict()
        self._calls = 0
        self._env: dict[str, str] = {}
        self._set: dict[bytes, bytes] = {}
        self._began_bytes = _rss_bytes()
        self._null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self._shared = ("", -1)

    def run(self) -> None:
        """Serve until the launcher goes away or the worker has served long enough."""
        reader = FrameReader()
        while data := self._connection.recv(1 << 20):
            for payload in reader.feed(data):
                done = self._work(decode_work(payload))
                self._connection.sendall(frame(done))
                if done.last:
                    return

    def _work(self, work: Work) -> Done:
        task, call = work.task, work.task.call
        if call is None:
            raise CodeProblem("a worker was given a program to start")
        before = _usage()
        exit_, result, text = 0, "", ""
        try:
            self._enter(work, task)
            function = self._function(call)
            args, kwargs = cloudpickle.loads(call.arguments)
            result = encode(function(*args, **kwargs), call)
            del args, kwargs
        except BaseException as error:  # noqa: BLE001 - whatever a function raises is its outcome
            exit_ = 1
            result, text = encode_exception(error)
            del error
        self._leave(text)
        self._calls += 1
        leftovers = _has_children()
        after = _usage()
        return Done(
            exit=exit_,
            user_s=after[0] - before[0],
            system_s=after[1] - before[1],
            max_rss_bytes=int(after[2]) * 1024,
            written_bytes=int(after[3] - before[3]) * 512,
            tail=text[-limits.TAIL_BYTES :] if task.log != "file" else "",
            result=result,
            last=leftovers
            or call.own_process
            or self._calls >= self._environment.recycle_calls
            or self._has_grown(int(after[2]) * 1024),
            leftovers=leftovers,
        )

    # --- around a call

    def _enter(self, work: Work, task: Task) -> None:
        """Make this process what the task asks for: environment, directory, cores, output."""
        self._set_environment(work.env)
        os.chdir(task.cwd)
        if task.cores and set(task.cores) != os.sched_getaffinity(0):
            for thread in os.listdir("/proc/self/task"):
                with suppress(OSError):  # a thread that ended meanwhile
                    os.sched_setaffinity(int(thread), task.cores)
        out = self._open(task, work.shared_log)
        os.dup2(out, 1)
        os.dup2(out, 2)
        if task.log == "file":
            os.close(out)
        if task.stderr:
            err = os.open(task.stderr, _LOG_FLAGS, 0o666)
            os.dup2(err, 2)
            os.close(err)

    def _set_environment(self, env: dict[str, str]) -> None:
        """Make `env` the environment. Calls differ in a few variables, and each costs a microsecond."""
        if self._set != _ENVIRON:  # the call before has changed it
            os.environ.clear()
            self._env = {}
        last, self._env = self._env, env
        for name in last.keys() - env.keys():
            del os.environ[name]
        for name, value in env.items():
            if last.get(name) != value:
                os.environ[name] = value
        self._set = _ENVIRON.copy()

    def _open(self, task: Task, shared_log: str) -> int:
        if task.log == "file":
            return os.open(task.stdout, _LOG_FLAGS, 0o666)
        if task.log == "none" or not shared_log:
            return self._null
        path, fd = self._shared
        if path != shared_log:
            if fd >= 0:
                os.close(fd)
            fd = os.open(shared_log, _LOG_FLAGS, 0o600)
            self._shared = (shared_log, fd)
        return fd

    def _leave(self, text: str) -> None:
        """Put back what a call may have changed, and write what it printed, with its traceback."""
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):  # closed, or replaced by something that cannot
                stream.flush()
        if text:
            with suppress(OSError):
                os.write(2, text.encode(errors="replace"))
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
        with suppress(OSError):
            os.dup2(self._null, 1)
            os.dup2(self._null, 2)
            os.chdir("/")
        restore_signals()

    def _has_grown(self, peak_bytes: int) -> bool:
        """Whether it is time to give memory back. The peak says when it is worth a look."""
        most = self._began_bytes + self._environment.recycle_bytes
        return peak_bytes > most and _rss_bytes() > most

    def _function(self, call: Call) -> Callable[..., Any]:
        """The function, loaded once and kept, which keeps what it caches between calls."""
        check_python(call)
        found = self._functions.get(call.sha256)
        if found is None:
            found = self._functions[call.sha256] = load_function(call)
            while len(self._functions) > _FUNCTIONS_MOST:
                self._functions.popitem(last=False)
        self._functions.move_to_end(call.sha256)
        return found


def check_python(call: Call) -> None:
    """Raise CodeProblem unless this Python can load what `call` was pickled by."""
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if call.python != here:
        raise CodeProblem(
            f"{call.name} was pickled by Python {call.python}, and environment "
            f"{call.environment!r} runs {here}: use the same version on both sides"
        )


def load_function(call: Call) -> Callable[..., Any]:
    """The function, from the file with its code. Raises CodeProblem, and whatever loading it raises."""
    check_python(call)
    with open(call.code, "rb") as file:
        code = file.read(limits.CODE_BYTES + 1)
    if hashlib.sha256(code).hexdigest() != call.sha256:
        raise CodeProblem(f"{call.code} is not the code that was signed")
    found: Callable[..., Any] = cloudpickle.loads(code)
    return found


def serve(connection: socket.socket, environment: Environment) -> None:
    """Be a worker; the caller ends the process afterwards."""
    restore_signals()
    # Siblings are forked from one state: without this they would draw the same random numbers.
    random.seed()
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()
    Worker(connection, environment).run()


def restore_signals() -> None:
    """What a fresh process does with signals; Python's own for SIGINT."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0)
    gc.enable()


def _usage() -> tuple[float, float, float, float]:
    """User and system seconds, peak memory (KiB) and blocks written, of this process and its children."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    others = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (
        own.ru_utime + others.ru_utime,
        own.ru_stime + others.ru_stime,
        max(own.ru_maxrss, others.ru_maxrss),
        own.ru_oublock + others.ru_oublock,
    )


def _rss_bytes() -> int:
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * _PAGE


def _has_children() -> bool:
    """Whether a call left processes behind; those that have ended are reaped."""
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if pid == 0:
            return True
