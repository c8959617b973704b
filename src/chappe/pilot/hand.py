"""A hand: `python -m chappe.pilot.hand --dir SESSION_DIR --node NAME`, on each further node of an allocation.

It keeps a launcher on its node, as the head keeps one on its own, and carries orders to it and events back
over TLS. It decides nothing and holds no lease. Three things may break, and each is mended by beginning
anew, with a snapshot of what the launcher knows:

- the head, or the way to it: the hand tries all its addresses again, while the launcher and its Jobs go on
  until the time that the head last allowed (`Keep`) has passed;
- the hand itself: the head starts another, which finds the launcher;
- the launcher: what it had started is ended, then the hand begins again with a new one.

A hand that a network or a stopped process cuts off cannot keep its Jobs too long: the head's last word on it
has reached the launcher, or has a time in it that passes all the same.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import ssl
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from structlog.types import FilteringBoundLogger

from chappe.core.errors import ChappeError, Invalid, Unavailable
from chappe.link.clock import boottime
from chappe.link.faults import arm_from_env
from chappe.pilot import hand_wire as wire
from chappe.pilot import hosts
from chappe.pilot import session as sessions
from chappe.pilot.hosts import Hosts
from chappe.pilot.job_env import base_env
from chappe.pilot.keeper import Keeper
from chappe.pilot.launch_client import LauncherGone
from chappe.pilot.launch_wire import (
    Ack,
    Events,
    FrameError,
    HeadFrame,
    Keep,
    Kill,
    Renew,
    Snapshot,
    Start,
    Stop,
    Withdraw,
)
from chappe.pilot.log import LogFile, open_log
from chappe.pilot.own_node import own_node
from chappe.pilot.procs import become_subreaper
from chappe.pilot.session import Session

SILENCE_S = 30.0
"""A head that said nothing for so long is not there: it speaks every few seconds."""

EXIT_UNUSABLE = 2
_CONNECT_S = 10.0
_RETRY_MIN_S = 0.1
_RETRY_MAX_S = 2.0


class _Stopped(Exception):
    """The Session is over."""


class Hand:
    """One node's hand."""

    def __init__(
        self, session: Session, directory: Path, node: str, log: FilteringBoundLogger, file: LogFile
    ) -> None:
        self._session = session
        self._directory = directory
        self._node = node
        self._log = log
        self._file = file
        self._hosts: Hosts = hosts.known(session.hosts, session.session, node)
        self._made = own_node(session.options, self._hosts, node)
        self._writer: asyncio.StreamWriter | None = None
        self._stopping = False
        self._offset_s = 0.0
        # One for all connections: it owns the launcher's process.
        self._keeper = Keeper(
            session, directory, base_env(session, os.environ), log, file, self._send, node
        )

    async def run(self) -> None:
        """Serve until the head says that it is over, or nobody wants this hand any more."""
        wait_s, patient_until = _RETRY_MIN_S, self._patience()
        while True:
            try:
                reader, self._writer = await self._connect()
            except (OSError, ChappeError) as e:
                if wire.gone_for_good(self._directory) or boottime() > patient_until:
                    self._log.warning("hand.ends", node=self._node, error=str(e))
                    return
                await asyncio.sleep(wait_s)
                wait_s = min(_RETRY_MAX_S, 2 * wait_s)
                continue
            try:
                await self._serve(reader)
            except _Stopped:
                return
            except (ChappeError, OSError, EOFError, TimeoutError) as e:
                self._log.warning("hand.cut", node=self._node, error=f"{type(e).__name__}: {e}")
            finally:
                self._writer.close()
            wait_s, patient_until = _RETRY_MIN_S, self._patience()

    def _patience(self) -> float:
        return boottime() + 2 * self._session.options.head_grace_s + SILENCE_S

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """To the first address of the head that answers and is the head."""
        place = wire.read_place(self._directory)
        if place is None:
            raise Unavailable("the head does not say where it is")
        tls = wire.tls(self._directory, server=False)
        own = self._hosts.address(self._node)
        failures = []
        for address in place.addresses:
            try:
                async with asyncio.timeout(_CONNECT_S):
                    return await asyncio.open_connection(
                        address, place.port, ssl=tls, local_addr=None if own is None else (own, 0)
                    )
            except (OSError, ssl.SSLError, TimeoutError) as e:
                failures.append(f"{address}: {type(e).__name__} {e}")
        raise Unavailable(f"the head cannot be reached: {'; '.join(failures)}")

    async def _serve(self, reader: asyncio.StreamReader) -> None:
        """One connection, with the launcher that is there, to the end of either."""
        before = boottime()
        made = self._made
        slots = self._session.options.slots
        self._send(wire.Hello(self._session.session, self._node, made, made.mem_bytes, slots))
        async with asyncio.timeout(SILENCE_S):
            welcome = await wire.hear_head(reader)
        if not isinstance(welcome, wire.Welcome):
            raise FrameError("the head did not welcome us")
        self._offset_s = before - welcome.now
        keeper = self._keeper
        try:
            snapshot = await keeper.open()
            empty = Snapshot(self._session.session, keeper.pid, [], [], [], more=False)
            for part in _parts(snapshot or empty):
                self._send(part)
            await self._carry(reader, keeper)
        finally:
            keeper.leave()

    async def _carry(self, reader: asyncio.StreamReader, keeper: Keeper) -> None:
        gone = keeper.gone
        obeying = asyncio.create_task(self._obey_all(reader, keeper))
        tasks: list[asyncio.Future[None]] = [obeying, asyncio.create_task(keeper.send_orders())]
        waits: list[asyncio.Future[Any]] = [gone, *tasks]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if not obeying.done() and not self._stopping:
                raise LauncherGone("the launcher is gone")
            await obeying
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _obey_all(self, reader: asyncio.StreamReader, keeper: Keeper) -> None:
        while True:
            async with asyncio.timeout(SILENCE_S):
                frame = await wire.hear_head(reader)
            if isinstance(frame, Stop):
                self._stopping = True
                await keeper.stop(kill=frame.kill)
                self._log.info("hand.end", node=self._node)
                raise _Stopped
            if not isinstance(frame, wire.Welcome):
                self._obey(frame, keeper)

    def _obey(self, frame: HeadFrame, keeper: Keeper) -> None:
        match frame:
            case Start(tasks):
                for task in tasks:
                    task.start_by += self._offset_s
                    if task.takeover_deadline is not None:
                        task.takeover_deadline += self._offset_s
                    if task.ends_at is not None:
                        task.ends_at += self._offset_s
                keeper.start(tasks)
            case Kill(orders):
                for order in orders:
                    keeper.kill([(order.job, order.epoch)], order.reason, order.grace_s)
            case Withdraw(keys):
                keeper.withdraw(keys)
            case Renew(deadlines):
                keeper.renew({(job, epoch): at + self._offset_s for job, epoch, at in deadlines})
            case Keep(until):
                keeper.keep(until + self._offset_s)
                self._send(Events([], [], []))  # we are there
            case Ack(keys):
                keeper.ack(keys)

    def _send(self, message: wire.ToHead) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(wire.encode(message))


def _parts(snapshot: Snapshot) -> list[Snapshot]:
    """In frames that are not too long."""
    size = 256
    many = max(len(snapshot.running), len(snapshot.ended), len(snapshot.waiting), 1)
    return [
        msgspec.structs.replace(
            snapshot,
            running=snapshot.running[at : at + size],
            ended=snapshot.ended[at : at + size],
            waiting=snapshot.waiting[at : at + size],
            more=at + size < many,
        )
        for at in range(0, many, size)
    ]


def alone(session: str, node: str) -> socket.socket | None:
    """Something that only one hand of a node can hold; None when another does."""
    held = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        held.bind(f"\0chappe-hand-{session}-{node}")
    except OSError:
        held.close()
        return None
    return held


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a hand to its end; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m chappe.pilot.hand", description=__doc__)
    parser.add_argument("--dir", type=Path, required=True, help="the Session's directory")
    parser.add_argument("--node", required=True, help="what the head calls this node")
    given = parser.parse_args(arguments)
    directory: Path = given.dir.absolute()
    try:
        arm_from_env()
        session = sessions.load(directory)
    except (Invalid, OSError) as e:
        print(f"chappe.pilot.hand: {e}", file=sys.stderr)
        return EXIT_UNUSABLE
    held = alone(session.session, given.node)
    if held is None:
        return 0
    # A command such as ssh passes no environment on.
    os.environ["CHAPPE_SESSION"] = session.session
    os.environ["CHAPPE_NODE"] = given.node
    become_subreaper()
    log, file = open_log(directory / f"hand-{given.node}.log", session.session)
    try:
        hand = Hand(session, directory, given.node, log, file)
        asyncio.run(_run(hand))
    except (ChappeError, OSError) as e:
        log.exception("hand.died", error=str(e))
        # Not by way of the interpreter's end, where asyncio would kill the launcher as our child.
        os._exit(1)
    return 0


async def _run(hand: Hand) -> None:
    # The allocation's end is the head's business: it stops us when all is reported.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: None)
    await hand.run()


if __name__ == "__main__":
    sys.exit(main())
