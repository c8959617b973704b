"""The agent's process: arguments, log, crash points, and one line to whoever started it."""

from __future__ import annotations

import argparse
import asyncio
import os
from pathlib import Path

import msgspec
import structlog

from chappe.core.errors import ChappeError
from chappe.link.faults import arm_from_env
from chappe.site import agent
from chappe.site import log as agent_log
from chappe.site.paths import SitePaths

LOG_FILE = "agent.log"

log = structlog.get_logger()


class FirstLine(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a new agent writes to `--ready-fd`: it is ready, or why it is not."""

    ready: bool
    code: str = ""
    message: str = ""


def main(argv: list[str]) -> int:
    """Run the agent; 0 after an orderly stop, 1 otherwise (the log and the ready line say why)."""
    parser = argparse.ArgumentParser(prog="python -m chappe.site", description=__doc__)
    parser.add_argument("--dir", required=True, type=Path, help="the Site's directory")
    parser.add_argument(
        "--ready-fd", type=int, default=-1, help="where to write one line when ready"
    )
    parser.add_argument("--log-stderr", action="store_true", help="log to stderr as well")
    args = parser.parse_args(argv)
    ready_fd: int = args.ready_fd

    def say(line: FirstLine) -> None:
        nonlocal ready_fd
        if ready_fd >= 0:
            os.write(ready_fd, msgspec.json.encode(line) + b"\n")
            os.close(ready_fd)
            ready_fd = -1

    try:
        arm_from_env()
        umask = os.umask(0o077)  # what an agent writes is its owner's business
        paths = SitePaths.of(args.dir)
        paths.logs.mkdir(exist_ok=True)
        agent_log.configure(paths.logs / LOG_FILE, also_stderr=args.log_stderr)
        asyncio.run(agent.serve(paths.root, umask, lambda: say(FirstLine(ready=True))))
    except ChappeError as e:
        log.critical("the agent ends", code=e.code, error=e.message)
        say(FirstLine(ready=False, code=e.code, message=e.message))
        return 1
    except OSError as e:
        log.critical("the agent ends", error=str(e))
        say(FirstLine(ready=False, code="os_error", message=str(e)))
        return 1
    return 0
