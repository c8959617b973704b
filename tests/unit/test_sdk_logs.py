"""Reading logs page by page: where it goes on, through restarts, and when it is over."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, cast

import pytest

from chappe.core.errors import Conflict, NotFound
from chappe.link.http import HubClient
from chappe.sdk.errors import Invalid
from chappe.sdk.logs import TAIL, Part, Text, pages
from chappe.wire.events import Event
from chappe.wire.logs import LogPage, LogStream

JOB = "01a1f8ae-4bcb-73bb-8f1b-9beb788236d9"


def page(
    start: int, data: bytes, size: int = 0, *, attempt: int = 1, over: bool = False
) -> LogPage:
    end = start + len(data)
    return LogPage(JOB, attempt, LogStream.STDOUT, start, end, max(size, end), data, over)


class Hub:
    """A Hub that answers with these, one after the other, and remembers what it was asked."""

    def __init__(self, *answers: LogPage | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[dict[str, Any]] = []

    async def request(self, *_args: object, params: dict[str, Any], **_more: object) -> LogPage:
        self.asked.append({k: v for k, v in params.items() if v is not None})
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def told(*states: tuple[str, str, int]) -> Any:
    async def changes(_job: str) -> AsyncGenerator[Event]:
        for state, phase, attempt in states:
            yield Event(0, "job", JOB, 0.0, 0.0, new=state, phase=phase, attempt=attempt)

    return changes


async def read(hub: Hub, changes: Any, follow: bool, **part: Any) -> bytes:
    found = pages(cast(HubClient, hub), changes, JOB, Part(**part), follow=follow)
    data = b"".join([p.data async for p in found])
    assert hub.answers == []
    return data


async def test_without_following_it_ends_at_the_length_of_the_beginning() -> None:
    hub = Hub(page(0, b"ab", 4), page(2, b"cdef", 9))
    assert await read(hub, told(), False, start=0) == b"abcdef"
    assert [a["start"] for a in hub.asked] == [0, 2]
    hub = Hub(page(5, b"tail", 9))
    assert await read(hub, told(), False) == b"tail"
    assert hub.asked[0]["tail"] == TAIL


async def test_an_empty_log_is_no_circle() -> None:
    assert await read(Hub(page(0, b"")), told(), False, start=0) == b""


async def test_it_follows_from_before_the_start_through_a_restart_to_the_end() -> None:
    hub = Hub(
        Conflict("not yet", code="not_started"),
        page(0, b"one"),
        page(3, b"", over=True),
        page(0, b"two", attempt=2),
        page(3, b"!", attempt=2, over=True),
    )
    turns = iter(
        [
            told(("PREPROCESSED", "runnable", 0), ("RUNNING", "running", 1)),
            # The end of the first attempt is seen in the log before the Hub has heard of it.
            told(("RUNNING", "running", 1), ("RUN_ERROR", "running", 1), ("RUNNING", "running", 2)),
            told(("JOB_FINISHED", "finished", 2)),
        ]
    )

    def changes(job: str) -> AsyncGenerator[Event]:
        found: AsyncGenerator[Event] = next(turns)(job)
        return found

    assert await read(hub, changes, True) == b"onetwo!"
    assert [(a.get("attempt"), a.get("start")) for a in hub.asked] == [
        (None, None),
        (None, None),
        (1, 3),
        (2, 0),
        (2, 3),
    ]


async def test_a_job_that_ends_without_a_start_ends_the_reading() -> None:
    hub = Hub(Conflict("not yet", code="not_started"))
    with pytest.raises(Conflict, match="not yet"):
        await read(hub, told(("CANCELLED", "cancelled", 0)), True)


async def test_one_attempt_is_followed_when_one_is_named_and_errors_are_raised() -> None:
    assert await read(Hub(page(0, b"x", over=True)), told(), True, attempt=1) == b"x"
    with pytest.raises(NotFound):
        await read(Hub(NotFound("no log", code="no_log")), told(), True)
    with pytest.raises(Invalid):
        Part(tail=1, start=1)


def test_characters_that_a_page_cuts_are_put_together_and_attempts_kept_apart() -> None:
    text, raw = Text(), "né\n".encode()
    assert text.of(page(0, raw[:2])) + text.of(page(2, raw[2:])) == "né\n"
    assert text.of(page(0, raw[:2])) == "n"
    assert text.of(page(0, b"x", attempt=2)) == "x"
    assert text.of(page(0, b"\xff", attempt=2, over=True)) == "\ufffd"
