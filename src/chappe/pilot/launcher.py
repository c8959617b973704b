"""The launcher process: `python -m chappe.pilot.launcher --socket PATH --session ID`.

It starts, watches and reaps the processes of one Session on one node, and outlives its head: the pilot's head
talks to the Hub, grows, and may crash or be restarted, while what runs stays the child of this small process.
It never forks, has no threads and no event loop library; starting a process from a small parent by vfork
costs the same however large the head is.

This module is only the root: it takes the command line, then puts the parts together.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from chappe.core.limits import HEAD_GRACE_S


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a launcher until it is told to stop or its head stays away; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m chappe.pilot.launcher")
    parser.add_argument(
        "--socket", type=Path, required=True, help="unix socket; its directory is 0700"
    )
    parser.add_argument("--session", required=True, help="Session id: the mark in /proc")
    parser.add_argument("--head-grace-s", type=float, default=HEAD_GRACE_S)
    parser.add_argument(
        "--listen-fd", type=int, help="an inherited listening socket, bound to PATH"
    )
    options = parser.parse_args(arguments)

    # msgspec takes typing_extensions, where it is installed, for names that Python 3.11's typing has too;
    # to say that it is absent saves 5 MB and 20 ms of the 15 MB and 60 ms that this process takes.
    sys.modules.setdefault("typing_extensions", None)  # type: ignore[arg-type]
    from chappe.core.errors import ChappeError
    from chappe.link.faults import arm_from_env
    from chappe.pilot.launch_link import listen
    from chappe.pilot.launch_loop import Launcher
    from chappe.pilot.procs import become_subreaper

    try:
        arm_from_env()
        listener = (
            listen(options.socket)
            if options.listen_fd is None
            else socket.socket(fileno=options.listen_fd)
        )
    except (ChappeError, OSError) as error:
        parser.exit(2, f"launcher at {options.socket}: {error}\n")
    _keep_descriptors_from_jobs()
    become_subreaper()
    os.chdir("/")
    node = os.environ.get("CHAPPE_NODE", "")
    Launcher(options.session, listener, options.head_grace_s, node).run()
    return 0


def _keep_descriptors_from_jobs() -> None:
    """Mark every inherited descriptor close-on-exec; Python does so only with those that it opens."""
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if fd > 2 and os.path.lexists(f"/proc/self/fd/{fd}"):
            os.set_inheritable(fd, False)


if __name__ == "__main__":
    sys.exit(main())
