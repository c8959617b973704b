"""Long polls: no hint is missed, and each ends when it should."""

from __future__ import annotations

import asyncio

from chappe.hub.polls import Poll, Polls

FAR_S = 60.0


def far() -> float:
    return asyncio.get_running_loop().time() + FAR_S


async def test_a_hint_from_before_the_wait_is_not_missed() -> None:
    polls = Polls()
    with polls.poll("a", 1, ("site",)) as poll:
        polls.hint(["site"])
        assert await poll.wait(far())


async def test_hints_go_to_their_group_only() -> None:
    polls = Polls()
    with polls.poll("a", 1, ("x", "y")) as a, polls.poll("b", 1, ("y",)) as b:
        polls.hint(["x", "nobody's"])
        assert await a.wait(far())
        assert not await b.wait(asyncio.get_running_loop().time())


async def test_time_runs_out() -> None:
    with Polls().poll("a", 1, ()) as poll:
        assert not await poll.wait(asyncio.get_running_loop().time())


async def test_a_later_request_ends_the_earlier_one() -> None:
    polls = Polls()
    with polls.poll("a", 1, ("g",)) as first, polls.poll("a", 2, ("g",)) as second:
        assert not await first.wait(far())
        polls.hint(["g"])
        assert await second.wait(far())
    assert len(polls) == 0


async def test_the_same_request_again_takes_the_place_of_the_first() -> None:
    polls = Polls()
    with polls.poll("a", 1, ()) as first, polls.poll("a", 1, ()) as second:
        assert first.over
        assert not second.over


async def test_an_earlier_request_that_comes_late_does_not_wait() -> None:
    polls = Polls()
    with polls.poll("a", 2, ("g",)) as second, polls.poll("a", 1, ("g",)) as first:
        assert first.over
        assert not second.over
        polls.hint(["g"])
        assert await second.wait(far())
    assert len(polls) == 0


async def test_a_wake_ends_the_poll() -> None:
    polls = Polls()
    with polls.poll("a", 1, ()) as poll:
        polls.wake("a")
        assert not await poll.wait(far())
    with polls.poll("a", 2, ()) as poll:
        assert not poll.over


async def test_a_wake_that_overtakes_its_poll_ends_it_once() -> None:
    polls = Polls()
    polls.wake("a")
    with polls.poll("b", 1, ()) as other:
        assert not other.over
    with polls.poll("a", 1, ()) as poll:
        assert poll.over
    with polls.poll("a", 2, ()) as poll:
        assert not poll.over


async def test_wakes_for_polls_that_never_come_are_bounded() -> None:
    polls = Polls()
    for i in range(20_000):
        polls.wake(i)
    assert len(polls._early) == 10_000


async def test_a_stop_ends_all_and_those_that_come_after() -> None:
    polls = Polls()
    waiting: list[Poll] = []
    with polls.poll("a", 1, ()) as a, polls.poll("b", 1, ()) as b:
        waiting += [a, b]
        polls.stop()
        assert not await a.wait(far())
        assert not await b.wait(far())
    with polls.poll("c", 1, ()) as c:
        assert not await c.wait(far())
    assert len(polls) == 0
