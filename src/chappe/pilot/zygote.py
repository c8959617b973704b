"""The zygote: `python -m chappe.pilot.zygote`, a process that imports and forks, and does nothing else.

One for each environment and number of threads: OpenMP and BLAS read that number when they are imported. It
has one thread of its own, so that what it forks is whole (a BLAS that it preloads puts its pool to rest
around a fork). Its standard input is a socket to the launcher; each request brings the worker's end of
another socket. A worker is forked twice, so that it is the launcher's child and not ours: the launcher reaps
it, knows how it ended, and keeps it when this process dies.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import socket
import sys
import warnings
from collections.abc import Sequence

from chappe.pilot.launch_wire import Environment, Forked, Ready, encode
from chappe.pilot.worker import serve

_MESSAGE_CHARS = 2_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Preload, then fork a worker for every request until the launcher goes away; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m chappe.pilot.zygote")
    parser.add_argument("--preload", action="append", default=[], help="a module to import first")
    parser.add_argument("--recycle-calls", type=int, required=True)
    parser.add_argument("--recycle-bytes", type=int, required=True)
    options = parser.parse_args(arguments)
    control = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    for module in options.preload:
        try:
            importlib.import_module(module)
        except BaseException as error:  # noqa: BLE001 - a module may even call sys.exit
            words = f"preload: cannot import {module}: {type(error).__name__}: {error}"
            control.sendall(encode(Ready(words[:_MESSAGE_CHARS])))
            return 1
    environment = Environment("", [], {}, options.recycle_calls, options.recycle_bytes)
    # What is there now is shared with all workers until they write to it: the collector would.
    gc.collect()
    gc.freeze()
    # Python warns of forks beside threads. There are none but those of a BLAS, which knows about forks.
    warnings.simplefilter("ignore", DeprecationWarning)
    control.sendall(encode(Ready()))
    while True:
        data, fds, _, _ = socket.recv_fds(control, 1, 1)
        if not data:
            return 0
        for fd in fds:
            control.sendall(encode(Forked(_fork(control, fd, environment))))


def _fork(control: socket.socket, fd: int, environment: Environment) -> int:
    """Make a worker of the launcher's that serves `fd`; its pid, once it is a session's leader."""
    reading, writing = os.pipe()
    between = os.fork()
    if between == 0:
        if os.fork() > 0:
            os._exit(0)
        status = 1
        try:
            os.setsid()
            os.write(writing, str(os.getpid()).encode())
            os.close(reading)
            os.close(writing)
            control.close()
            with socket.socket(fileno=fd) as connection:
                serve(connection, environment)
            status = 0
        except OSError:
            pass  # the launcher is gone
        finally:
            os._exit(status)
    os.close(fd)
    os.close(writing)
    os.waitpid(between, 0)
    try:
        return int(os.read(reading, 32))
    finally:
        os.close(reading)


if __name__ == "__main__":
    sys.exit(main())
