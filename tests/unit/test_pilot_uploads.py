"""Results gather while a request is under way, and an end is let go only once its result was judged."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from chappe.core import limits
from chappe.core.errors import (
    ChappeError,
    Conflict,
    Invalid,
    SessionDead,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from chappe.core.leases import Outcome, Reason
from chappe.link import values
from chappe.link.clock import new_id
from chappe.link.http import HubClient
from chappe.link.journal import End
from chappe.link.transport import BadReply
from chappe.link.values import Seal
from chappe.pilot import uploads
from chappe.pilot.uploads import Uploads
from chappe.wire.results import PutResults, PutResultsReply, ResultUpload, ResultVerdict


class Hub:
    """Answers when told to: `answer` makes the reply of each request, or raises."""

    def __init__(self) -> None:
        self.requests: list[list[str]] = []
        self.sizes: list[int] = []
        self.under_way = 0
        self.answer: Callable[[list[ResultUpload]], Awaitable[list[ResultVerdict]]] = stored

    async def request(self, method: str, path: str, body: bytes, reply: Any) -> Any:
        assert (method, path, reply) == ("POST", "/v1/results", PutResultsReply)
        assert not self.under_way, "two requests at once"
        self.under_way += 1
        try:
            items = msgspec.json.decode(body, type=PutResults).results
            self.requests.append([item.job for item in items])
            self.sizes.append(len(body))
            return PutResultsReply(await self.answer(items))
        finally:
            self.under_way -= 1


async def stored(items: list[ResultUpload]) -> list[ResultVerdict]:
    return [ResultVerdict(item.job, item.epoch, "stored") for item in items]


@pytest.fixture(autouse=True)
def all_results_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REPORT_RESULT_BYTES", 0)


class Rig:
    """Uploads with that Hub, and files to send."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.hub = Hub()
        self.told: list[End] = []
        self.hops = 0
        self._told = asyncio.Event()
        self.seal = Seal(new_id(), directory / "secrets")
        self.uploads = Uploads(cast(HubClient, self.hub), self._disk, self._on_end, self.seal)

    def value(self, job: str, reference: str, exit_: int = 0) -> None:
        """A function ended, and this is what its worker gave."""
        outcome = Outcome(Reason.EXIT, exit=exit_)
        self.uploads.add(End(job, 1, 1, "end", 0.0, outcome, result=reference))

    def _disk(self, work: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        self.hops += 1
        return asyncio.ensure_future(asyncio.to_thread(work, *args))

    def _on_end(self, end: End) -> None:
        self.told.append(end)
        self._told.set()

    def add(self, *names: str, data: bytes | None = b"[1]") -> None:
        for name in names:
            path = self.directory / f"{name}.json"
            if data is not None:
                path.write_bytes(data)
            outcome = Outcome(reason=Reason.EXIT, exit=0)
            self.uploads.add(End(name, 1, 1, "end", 1.0, outcome, result=str(path)))

    async def all(self) -> list[End]:
        """The ends, once none waits any more."""
        async with asyncio.timeout(30):
            while len(self.uploads):
                self._told.clear()
                await self._told.wait()
        return self.told

    def spoilt(self) -> dict[str, str]:
        """What is said of those that count as failures."""
        return {end.job: end.outcome.message for end in self.told if not end.outcome.ok}


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    monkeypatch.setattr(uploads, "jitter_s", lambda *_: 0.0)
    return Rig(tmp_path)


async def test_what_comes_while_a_request_is_under_way_makes_the_next(rig: Rig) -> None:
    asked, go = asyncio.Event(), asyncio.Event()

    async def slowly(items: list[ResultUpload]) -> list[ResultVerdict]:
        asked.set()
        await go.wait()
        return await stored(items)

    rig.hub.answer = slowly
    rig.add("a")
    await asked.wait()
    rig.add("b", "c", "d")
    assert (len(rig.uploads), rig.told) == (4, [])
    go.set()
    ends = await rig.all()
    assert rig.hub.requests == [["a"], ["b", "c", "d"]]
    assert rig.hops == 2
    assert [end.job for end in ends] == ["a", "b", "c", "d"]
    assert all(end.outcome.ok and end.outcome.result_sha256 and not end.result for end in ends)


@pytest.mark.parametrize("pause_s", [0.0, 3600.0])
async def test_a_stream_of_small_results_is_read_many_at_a_time(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, pause_s: float
) -> None:
    monkeypatch.setattr(limits, "REPORT_RESULT_BYTES", 1_000)
    monkeypatch.setattr(uploads, "_STREAM_S", pause_s)
    rig.add(*[f"a{n}" for n in range(100)])
    await rig.all()
    for n in range(20):
        rig.add(f"b{n}")
        await asyncio.sleep(0)
    if pause_s:
        assert (rig.hops, len(rig.uploads)) == (1, 20)
        rig.uploads.cancel()
    else:
        await rig.all()
        assert [end.job for end in rig.told[100:]] == [f"b{n}" for n in range(20)]
    assert rig.hub.requests == []


async def test_it_begins_again_after_all_was_sent(rig: Rig) -> None:
    for name in ("a", "b"):
        rig.add(name)
        await rig.all()
    assert rig.hub.requests == [["a"], ["b"]]


@pytest.mark.parametrize(
    "error", [Unavailable("away"), Unauthenticated("who?"), BadReply("<html>")], ids=repr
)
async def test_while_the_hub_is_away_nothing_is_told(rig: Rig, error: ChappeError) -> None:
    failures = 0

    async def away(items: list[ResultUpload]) -> list[ResultVerdict]:
        nonlocal failures
        failures += 1
        assert rig.told == []
        if failures < 4:
            raise error
        return await stored(items)

    rig.hub.answer = away
    rig.add("a", "b")
    ends = await rig.all()
    assert rig.hub.requests == [["a", "b"]] * 4
    assert [end.job for end in ends] == ["a", "b"]
    assert rig.spoilt() == {}


async def test_bad_ones_do_not_hold_up_good_ones(rig: Rig) -> None:
    async def judge(items: list[ResultUpload]) -> list[ResultVerdict]:
        said = {"c": "invalid", "d": "stale_lease"}
        verdicts = [
            ResultVerdict(item.job, item.epoch, said.get(item.job, "stored"), "no good")
            for item in items
            if item.job != "e"
        ]
        return verdicts[::-1]

    rig.hub.answer = judge
    rig.add("a")
    rig.add("b", data=b"{")
    rig.add("x", data=None)
    rig.add("c", "d", "e", "f")
    ends = {end.job: end for end in await rig.all()}
    assert rig.hub.requests == [["a", "c", "d", "e", "f"]]
    assert set(rig.spoilt()) == {"b", "c", "e", "x"}
    assert "left no x.json" in rig.spoilt()["x"]
    assert "no good" in rig.spoilt()["c"]
    assert "did not say" in rig.spoilt()["e"]
    for job in "adf":  # d's end is reported as it is: the Hub's verdict on it will be stale_lease
        assert ends[job].outcome.ok
        assert ends[job].outcome.result_sha256


@pytest.mark.parametrize("refusal", [TooLarge("too much"), Invalid("not this")], ids=repr)
async def test_a_refusal_of_all_is_narrowed_down(rig: Rig, refusal: ChappeError) -> None:
    async def judge(items: list[ResultUpload]) -> list[ResultVerdict]:
        if any(item.job == "c" for item in items):
            raise refusal
        return await stored(items)

    rig.hub.answer = judge
    rig.add(*"abcde")
    ends = await rig.all()
    assert [end.job for end in ends] == list("abcde")
    assert set(rig.spoilt()) == {"c"}
    assert refusal.message in rig.spoilt()["c"]


@pytest.mark.parametrize("error", [SessionDead("dead"), Conflict("no")], ids=repr)
async def test_the_ends_of_a_dead_session_are_told_as_they_are(
    rig: Rig, error: ChappeError
) -> None:
    async def refuse(_items: list[ResultUpload]) -> list[ResultVerdict]:
        raise error

    rig.hub.answer = refuse
    rig.add("a", "b")
    await rig.all()
    assert rig.hub.requests == [["a", "b"]]
    assert rig.spoilt() == {}


async def test_a_request_keeps_the_bounds(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RESULTS_BYTES", 10_000)
    monkeypatch.setattr(limits, "RESULTS_PER_REQUEST", 3)
    large, small = b'"' + b"x" * 3_000 + b'"', b"[1]"
    rig.add("a", "b", data=large)
    rig.add("c", data=large)
    rig.add(*"defgh", data=small)
    ends = await rig.all()
    assert rig.hub.requests == [["a", "b"], ["c", "d", "e"], ["f", "g", "h"]]
    assert max(rig.hub.sizes) <= 10_000
    assert [end.job for end in ends] == list("abcdefgh")


async def test_the_largest_result_fits(rig: Rig) -> None:
    rig.add("a", "b", data=b'"' + b"x" * (limits.RESULT_BYTES - 2) + b'"')
    await rig.all()
    assert rig.spoilt() == {}
    assert max(rig.hub.sizes) <= limits.RESULTS_BYTES


async def test_cancelled_it_tells_nothing(rig: Rig) -> None:
    asked = asyncio.Event()

    async def never(items: list[ResultUpload]) -> list[ResultVerdict]:
        asked.set()
        await asyncio.Event().wait()
        return await stored(items)

    rig.hub.answer = never
    rig.add("a")
    await asked.wait()
    rig.add("b")
    rig.uploads.cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not rig.hub.under_way
    assert rig.told == []
    assert len(rig.uploads) == 2


async def test_a_small_result_goes_with_the_report_of_its_end(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "REPORT_RESULT_BYTES", 10)
    rig.add("a", data=b"[1]")
    rig.add("b", data=b"[1,2,3,4,5,6]")
    small, large = sorted(await rig.all(), key=lambda end: end.job)
    assert rig.hub.requests == [["b"]]
    assert (small.media, small.body) == ("application/json", b"[1]")
    assert small.outcome.result_sha256 == hashlib.sha256(b"[1]").hexdigest()
    assert (large.media, large.body, bool(large.outcome.result_sha256)) == ("", b"", True)


async def test_a_small_value_is_sealed_at_once_and_a_missing_one_is_a_failure(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "REPORT_RESULT_BYTES", 4_096)
    rig.seal.key()
    rig.value("small", values.inline(values.MSGPACK, b"\x01"))
    assert [end.job for end in rig.told] == ["small"]
    assert (rig.hops, len(rig.uploads)) == (0, 0)
    opened = values.unseal(rig.told[0].body, "small", lambda _, named: named)
    assert (opened.body, opened.statement.attempt) == (b"\x01", 1)
    rig.value("missing", values.MISSING)
    rig.value("raised", values.inline(values.EXCEPTION, b"e"), exit_=1)
    rig.value("lost", values.MISSING, exit_=1)
    ends = {end.job: end.outcome for end in await rig.all()}
    assert "ended without a value" in ends["missing"].message
    assert ends["missing"].exit is None
    assert (ends["raised"].exit, bool(ends["raised"].result_sha256)) == (1, True)
    # It failed anyhow, and says how.
    assert (ends["lost"].exit, ends["lost"].result_sha256, ends["lost"].message) == (1, None, "")
