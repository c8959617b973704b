"""Reading a Job's output, page by page: the last lines, all of it, or as it is written."""

from __future__ import annotations

import codecs
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

from chappe.core.states import FINAL_PHASES, State
from chappe.link.http import HubClient
from chappe.sdk.errors import Conflict, Invalid
from chappe.wire.events import Event
from chappe.wire.logs import LogPage, LogStream

TAIL = 200
"""How many lines there are unless the caller says otherwise."""

_WAIT_S = 20
_ANSWER_S = 25.0

Changes = Callable[[str], AsyncGenerator[Event]]


@dataclass(frozen=True)
class Part:
    """Which output of a Job, and which part of it (see `JobHandle`'s `logs`)."""

    stderr: bool = False
    tail: int | None = None
    start: int | None = None
    attempt: int | None = None

    def __post_init__(self) -> None:
        if self.tail is not None and self.start is not None:
            raise Invalid("give `tail` or `start`, not both", field="tail")


async def pages(
    hub: HubClient, changes: Changes, job: str, part: Part, *, follow: bool
) -> AsyncGenerator[LogPage]:
    """The pages of a log, up to the length that it had in the beginning; with `follow` until the Job has
    ended: then also the attempts to come, unless one was named. Raises Conflict, NotFound, Unavailable."""
    attempt, start = part.attempt, part.start
    tail = TAIL if part.tail is None else part.tail
    until: int | None = None
    while True:
        params: dict[str, str | int | None] = {
            "stream": (LogStream.STDERR if part.stderr else LogStream.STDOUT).value,
            "start": start,
            "tail": tail if start is None else None,
            "attempt": attempt,
            "wait_s": _WAIT_S if follow else 0,
        }
        try:
            page = await hub.request(
                "GET",
                f"/v1/jobs/{job}/logs",
                reply=LogPage,
                params=params,
                timeout_s=_WAIT_S + _ANSWER_S,
            )
        except Conflict as e:
            if (
                not follow
                or e.code != "not_started"
                or not await _begins(changes(job), attempt or 1)
            ):
                raise
            continue
        if page.data or page.note:
            yield page
        until = page.size if until is None else until
        attempt, start = page.attempt, page.next
        if follow and page.over:
            if part.attempt is not None or not await _begins(changes(job), attempt + 1):
                return
            attempt, start = attempt + 1, 0
        elif not follow and (page.over or page.next >= until or not page.data):
            return


async def _begins(events: AsyncGenerator[Event], attempt: int) -> bool:
    """Wait until this attempt has begun; False when the Job ended without it."""
    try:
        async for event in events:
            if event.attempt >= attempt and event.new == State.RUNNING:
                return True
            if event.phase in FINAL_PHASES:
                return event.attempt >= attempt
    finally:
        await events.aclose()
    return False


class Text:
    """Bytes of successive pages as text: characters that a page's end cuts in two are put together."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._attempt = 0

    def of(self, page: LogPage) -> str:
        """The text of the next page."""
        if page.attempt != self._attempt:
            self._attempt = page.attempt
            self._decoder.reset()
        return self._decoder.decode(page.data, final=page.over)
