"""The pilot's root: `python -m chappe.pilot --dir SESSION_DIR` puts the parts together and runs the head.

Exit status 0: all is done, or the allocation is; 3: the Hub declared the Session dead; 2: session.json
cannot be used; any other: another pilot should be started in this allocation, and takes over what runs.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import signal
import sys
from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import Any

from structlog.types import FilteringBoundLogger

from chappe.core.errors import ChappeError, Invalid
from chappe.link.clock import boottime, now
from chappe.link.faults import arm_from_env
from chappe.link.http import HubClient
from chappe.link.journal import FILE
from chappe.link.relayed import RelayedClient
from chappe.pilot import session as sessions
from chappe.pilot.head import EXIT_AGAIN, Head
from chappe.pilot.hosts import Hosts
from chappe.pilot.hosts import find as find_hosts
from chappe.pilot.journal import open_journal
from chappe.pilot.lifetime import Lifetime
from chappe.pilot.log import LogFile, open_log
from chappe.pilot.nodes import Node
from chappe.pilot.own_node import own_node
from chappe.pilot.placement import Placement, Urgent, tags_of
from chappe.pilot.procs import become_subreaper
from chappe.pilot.session import Session

EXIT_UNUSABLE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a pilot to its end; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m chappe.pilot", description=__doc__)
    parser.add_argument("--dir", type=Path, required=True, help="the Session's directory")
    directory: Path = parser.parse_args(arguments).dir.absolute()
    try:
        arm_from_env()
        session = sessions.load(directory)
        token = sessions.read_token(session)
        ends_at = sessions.ends_at(session, directory, now())
    except (Invalid, OSError) as e:
        print(f"chappe.pilot: {e}", file=sys.stderr)
        return EXIT_UNUSABLE
    # All that we start bears the Session's mark; so do we, for whoever looks for what is left of it.
    os.environ["CHAPPE_SESSION"] = session.session
    become_subreaper()
    log, file = open_log(directory / "pilot.log", session.session)
    lifetime = Lifetime(session.options, inf if ends_at is None else boottime() + ends_at - now())
    return asyncio.run(_run(session, directory, token, lifetime, log, file))


async def _run(
    session: Session,
    directory: Path,
    token: str,
    lifetime: Lifetime,
    log: FilteringBoundLogger,
    file: LogFile,
) -> int:
    try:
        journal, damage = open_journal(directory / FILE, now())
        if damage:
            log.error("journal.damaged", message=damage)
        hosts = await find_hosts(session.hosts, session.session)
        if hosts is not None:
            # What we start bears the mark of our node; the others' is none of our business.
            os.environ["CHAPPE_NODE"] = hosts.names[0]
        placement = _placement(session, hosts)
        async with _hub(session, token) as hub:
            head = Head(session, directory, hub, journal, placement, lifetime, log, file, hosts)
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGTERM, head.sigterm)
            loop.set_exception_handler(lambda _, context: _broken(head, log, context))
            log.info(
                "begin",
                cores=placement.node_cores,
                mem_bytes=placement.node_mem_bytes,
                gpus=placement.node_gpus,
            )
            _settle_in()
            return await head.run()
    except Exception as e:
        log.exception("died", error=str(e), exc_info=not isinstance(e, ChappeError | OSError))
        print(f"chappe.pilot: {type(e).__name__}: {e}", file=sys.stderr, flush=True)
        # Not by way of the interpreter's end, where asyncio would kill the launcher as our child.
        os._exit(EXIT_AGAIN)


def _hub(session: Session, token: str) -> HubClient:
    """The way to the Hub that session.json says."""
    if session.relay is not None:
        return RelayedClient(session.relay, token, user_agent="chappe-pilot")
    return HubClient(session.url, token, ca_file=session.ca_file, user_agent="chappe-pilot")


def _settle_in() -> None:
    """Set the interpreter for thousands of Jobs at a time, which are no garbage, and for two threads: at the
    default of 5 ms the loop would wait for so long when the disk thread is busy, and it for the loop."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    sys.setswitchinterval(0.0005)


def _broken(head: Head, log: FilteringBoundLogger, context: dict[str, Any]) -> None:
    """Something that nobody awaits failed: a connection that did not end well, or a fault of ours."""
    error = context.get("exception")
    log.error("loop.error", message=context.get("message"), exc_info=error)
    if error is not None and not isinstance(error, ChappeError | OSError):
        head.fail(error)


def _placement(session: Session, hosts: Hosts | None) -> Placement:
    """The nodes that are there from the beginning: this one. Raises TopologyProblem."""
    name = "" if hosts is None else hosts.names[0]
    found = own_node(session.options, hosts, name)
    node = Node(found, found.mem_bytes, session.options.slots or None, name)
    # Lanes are numbered from the present: none is ever used by two heads.
    options = session.options
    urgent = Urgent(options.urgent_cores, options.urgent_priority) if options.urgent_cores else None
    tags = {} if hosts is None else tags_of(hosts.names, options.node_tags)
    return Placement([node], first_lane=int(boottime() * 1e6) + 1, urgent=urgent, tags=tags)


if __name__ == "__main__":
    sys.exit(main())
