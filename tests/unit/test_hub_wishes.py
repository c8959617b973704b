"""Wishes for logs inside the Hub: told once, answered by the right one, bounded, and gone with the reader."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import msgspec
import pytest

from chappe.core import limits
from chappe.core.errors import Busy, Conflict
from chappe.hub.polls import Polls
from chappe.hub.routes import logs
from chappe.hub.wishes import Wishes
from chappe.link.clock import new_id
from chappe.wire.jobs import JobView
from chappe.wire.logs import LogPiece

HERE = ("session", "one")
WISH: dict[str, Any] = {"job": new_id(), "attempt": 1, "workdir": "w", "start": 0}


def wishes(clock: Callable[[], float] = lambda: 1_000.0) -> Wishes:
    return Wishes(Polls(), clock)


async def test_a_wish_is_told_until_it_was_read() -> None:
    w = wishes()
    with w.ask([HERE], WISH):
        (wish,) = w.of(HERE, 0)
        assert w.of(HERE, 0) == [wish]  # the reply may have been lost
        assert w.of(HERE, wish.no) == []
        assert w.of(("session", "two"), 0) == []
        with w.ask([HERE], WISH):
            assert [other.no > wish.no for other in w.of(HERE, wish.no)] == [True]
    assert len(w) == 0
    assert w.of(HERE, 0) == []


async def test_a_piece_reaches_only_the_one_who_waits_for_it_from_there() -> None:
    w = wishes()
    with w.ask([HERE], WISH) as piece:
        (wish,) = w.of(HERE, 0)
        w.bring(("session", "two"), LogPiece(wish.no, data=b"forged"))
        w.bring(HERE, LogPiece(wish.no + 1, data=b"other"))
        assert not piece.done()
        w.bring(HERE, LogPiece(wish.no, data=b"first"))
        w.bring(HERE, LogPiece(wish.no, data=b"second"))
        assert piece.result().data == b"first"
    w.bring(HERE, LogPiece(wish.no, data=b"late"))  # the reader is gone: nothing is kept
    assert len(w) == 0


async def test_of_two_who_are_asked_the_first_answers_unless_it_is_too_busy() -> None:
    w, there = wishes(), ("agent", 7)
    with w.ask([HERE, there], WISH) as piece:
        (wish,) = w.of(there, 0)
        assert w.of(HERE, 0) == [wish]
        w.bring(HERE, LogPiece(wish.no, problem="busy"))
        w.bring(HERE, LogPiece(wish.no, problem="busy"))
        assert not piece.done()
        w.bring(there, LogPiece(wish.no, problem="no_file", note="not here"))
        assert piece.result().note == "not here"


async def test_readers_are_bounded_for_each_holder_and_in_all() -> None:
    w = wishes()
    with ExitStack() as stack:

        def read(holder: tuple[str, object]) -> None:
            _ = stack.enter_context(w.ask([holder], WISH))

        for _ in range(limits.LOG_READERS_EACH):
            read(HERE)
        with pytest.raises(Busy):
            read(HERE)
        for k in range(limits.LOG_READERS - limits.LOG_READERS_EACH):
            read(("agent", k))
        with pytest.raises(Busy):
            read(("agent", -1))
    assert len(w) == 0
    with w.ask([HERE], WISH):
        assert len(w) == 1


async def test_numbers_rise_over_restarts_and_also_when_the_clock_went_back() -> None:
    before, after = wishes(lambda: 1_000.0), wishes(lambda: 900.0)
    with before.ask([HERE], WISH):
        seen = before.of(HERE, 0)[0].no
    with after.ask([HERE], WISH):
        assert len(after.of(HERE, seen)) == 1


class Answers:
    """A Hub of which only the routes of logs see something."""

    def __init__(self, able: list[tuple[str, object]]) -> None:
        self.hub = self
        self.principal = None
        self.clock = float
        self._able = able

    async def read(self, *_args: object) -> list[tuple[str, object]]:
        return self._able


async def test_a_site_that_is_not_heard_is_an_error_at_once_and_says_where_the_file_is() -> None:
    view = JobView(
        WISH["job"], "j", "JOB_FINISHED", "finished", [], 0.0, 0.0, "s", workdir="jobs/j"
    )
    ask: Any = logs._holders
    with pytest.raises(Conflict, match="below data/jobs/j") as caught:
        await ask(Answers([]), view, False)
    assert caught.value.code == "site_offline"
    assert await ask(Answers([HERE]), view, False) == [HERE]
    silent = msgspec.structs.replace(view, session="one", unreachable=True)
    with pytest.raises(Conflict, match="the job goes on"):
        await ask(Answers([]), silent, True)
    heard = msgspec.structs.replace(view, session="one")
    assert await ask(Answers([]), heard, True) == [HERE]
