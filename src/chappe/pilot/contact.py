"""The contact with the Hub: one sync at a time, repeated until it is answered.

A request has a number. Until its answer has been read it is sent again, byte for byte, so that a lost reply
is a lost reply and nothing else. Times of contact count from when a request was *first* sent: the Hub may
have heard it then, and its clocks started.

With nothing to say, the request is a long poll. When something comes to be said meanwhile, `POST
/v1/sync/wake` makes the Hub answer it, and the next request says it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import NamedTuple

import msgspec
from structlog.types import FilteringBoundLogger

from chappe.core.errors import ChappeError, SessionDead, Unauthenticated
from chappe.core.faults import reach
from chappe.link.clock import boottime
from chappe.link.http import NO_RETRY, HubClient
from chappe.pilot.pacing import POLL_S, START_S, Pacer
from chappe.wire.sync import SyncReply, SyncRequest

_WAKE_AGAIN_S = 0.25
_ANSWER_S = 20.0
"""How long an answer may take beyond the time that a long poll is held."""


class Sent(NamedTuple):
    """A request as it went out. `order` names the holdings that stood in it (`Holdings.renewed`)."""

    request: SyncRequest
    order: int
    sent_at: float


class Contact:
    """Asks `build` for a request whenever one is due, and gives each answer to `answered`.

    `waiting` tells how much there is to report, `urgent` whether it is more than starts, `backlog` whether
    more Jobs are at hand than can run. `failed` gets back a request that the Hub will not take;
    `check_token` is called when it does not take the token, and may raise to end the contact.
    """

    def __init__(
        self,
        hub: HubClient,
        log: FilteringBoundLogger,
        *,
        build: Callable[[], Sent],
        waiting: Callable[[], int],
        urgent: Callable[[], bool],
        backlog: Callable[[], bool],
        answered: Callable[[Sent, SyncReply], bool],
        failed: Callable[[Sent], None],
        check_token: Callable[[], None],
    ) -> None:
        self._hub = hub
        self._log = log
        self._build = build
        self._waiting = waiting
        self._urgent = urgent
        self._backlog = backlog
        self._answered = answered
        self._failed = failed
        self._check_token = check_token
        self._pacer = Pacer()
        self._due = asyncio.Event()
        self._poll = 0  # the number of the request that is out and that the Hub may hold, else 0
        self._woken = 0
        self._out: Sent | None = None
        self._wakes: set[asyncio.Task[None]] = set()
        self._took_s = 0.0
        self._quiet_until = 0.0
        self._reached = False

    def due(self) -> None:
        """There is something to say to the Hub."""
        if not self._due.is_set():
            self._due.set()
            self._wake_hub()

    @property
    def asks(self) -> bool:
        """Whether a request for work is on its way, and the Hub, which was in reach, may grant some."""
        return self._out is not None and self._out.request.capacity is not None

    async def run(self) -> None:
        """Keep the contact for ever. Raises SessionDead."""
        try:
            while True:
                await self._rest()
                self._due.clear()
                await self._sync()
        finally:
            for wake in self._wakes:
                wake.cancel()

    async def _rest(self) -> None:
        """Wait while reports gather; a moment with nothing but starts, and after an answer with grants."""
        starts_until = 0.0
        while True:
            now = boottime()
            urgent = self._urgent()
            if urgent:
                until = self._pacer.next_at
            elif self._waiting():
                starts_until = starts_until or now + START_S
                until = max(self._pacer.next_at, starts_until)
                self._due.clear()
            else:
                until = self._quiet_until
            if until <= now:
                return
            if urgent:
                await asyncio.sleep(until - now)
                return
            try:
                async with asyncio.timeout(until - now):
                    await self._due.wait()
            except TimeoutError:
                return
            if not self._waiting():
                return  # no report, and yet something to say: a return, a drain

    async def _sync(self) -> None:
        reach("pilot.before_report_sync")
        sent = self._build()
        body = msgspec.json.encode(sent.request)
        wait_s = sent.request.wait_s
        while True:
            began = boottime()
            self._poll = sent.request.request_no if wait_s > 0 else 0
            self._out = sent
            if self._due.is_set():
                self._wake_hub()  # a repeated poll, and meanwhile there is something to say
            try:
                reply = await self._hub.request(
                    "POST",
                    "/v1/sync",
                    body,
                    SyncReply,
                    timeout_s=wait_s + _ANSWER_S,
                    retry=NO_RETRY,
                )
            except SessionDead:
                raise
            except ChappeError as e:
                self._poll = self._woken = 0
                self._out = None
                if not await self._recover(sent, e):
                    return
            else:
                self._poll = 0
                self._out = None
                self._read(sent, reply, began, wait_s)
                return

    def _read(self, sent: Sent, reply: SyncReply, began: float, wait_s: float) -> None:
        now = boottime()
        if not self._reached:
            # `chappe site check` looks for this line, or for the failures, to tell whether nodes have a way.
            self._reached = True
            self._log.info("hub.reached", url=self._hub.url)
        if wait_s == 0:
            self._took_s = now - began
        granted = self._answered(sent, reply)
        reports = len(sent.request.reports)
        self._quiet_until = self._pacer.answered(
            began, now, self._took_s, granted, reports, backlog=self._backlog()
        )

    async def _recover(self, sent: Sent, error: ChappeError) -> bool:
        """After a failure: whether the same request is to be sent again."""
        now = boottime()
        self._reached = False
        again_at = self._pacer.failed(now, random.random())  # noqa: S311 - jitter, not a secret
        self._log.warning(
            "sync.failed", error=error.message, code=error.code, again_s=again_at - now
        )
        await asyncio.sleep(again_at - now)
        if isinstance(error, Unauthenticated):
            self._check_token()
            return True
        if error.transient:
            return True
        # The Hub will never take this one. What it said is said anew, under a new number.
        self._failed(sent)
        return False

    def _wake_hub(self) -> None:
        if self._poll and self._poll != self._woken:
            self._woken = self._poll
            task = asyncio.create_task(self._send_wakes(self._poll))
            self._wakes.add(task)
            task.add_done_callback(self._wakes.discard)

    async def _send_wakes(self, poll: int) -> None:
        """Ask for the answer of a poll until it comes: a wake may overtake the poll."""
        pause_s = _WAKE_AGAIN_S
        while self._poll == poll:
            try:
                await self._hub.request("POST", "/v1/sync/wake", timeout_s=POLL_S, retry=NO_RETRY)
            except ChappeError as e:
                # The poll ends by itself; what is due goes a little later.
                self._log.warning("wake.failed", error=e.message)
            await asyncio.sleep(pause_s)
            pause_s *= 2
