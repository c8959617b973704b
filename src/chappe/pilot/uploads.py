"""Results on their way to the Hub: checked, sent, and only then are the ends of their Jobs reported.

One request at a time, each with all results that have gathered since the one before it. After quiet a result
goes at once. After a request for several the next one waits a moment, four times as long as the Hub took:
a request costs the Hub 1 ms and us more, whatever it carries, and several at once are the sign of a stream
of short Jobs, of which nobody waits for a single one. The Hub judges each result by itself.

A result of a few KiB saves all that: it goes with the report of its end, and is stored in the same commit.
Of a stream of such results ten milliseconds' worth are read in one hop to the disk thread and back, which
costs more than the reading.

The Hub refuses an end that claims a result which it does not have. While it is away, results wait in their
files and ends in the journal, and are tried again for as long as the pilot lives.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

import msgspec

from chappe.core import limits
from chappe.core.errors import ChappeError, Unauthenticated
from chappe.core.faults import reach
from chappe.core.rates import Rate
from chappe.link.clock import boottime
from chappe.link.http import HubClient
from chappe.link.journal import End
from chappe.link.results import Result, ResultProblem
from chappe.link.retry import jitter_s
from chappe.link.transport import BadReply
from chappe.link.values import Seal, delivered, delivered_at_once
from chappe.pilot.parents import Disk
from chappe.wire.results import Kept, PutResults, PutResultsReply, ResultUpload, ResultVerdict

_RETRY_MOST_S = 10.0
_GATHER_FACTOR = 4.0
_GATHER_MOST_S = 0.25
_STREAM_PER_S = 50.0
_STREAM_S = 0.01
_FRAME_BYTES = 400
"""More than what surrounds the bytes of one result in a request."""

Checked = tuple[End, Result | ResultProblem]


class Uploads:
    """Sends results, a request at a time. `on_end` gets each end when it may be reported."""

    def __init__(
        self, hub: HubClient, disk: Disk, on_end: Callable[[End], None], seal: Seal
    ) -> None:
        self._seal = seal
        self._hub = hub
        self._disk = disk
        self._on_end = on_end
        self._waiting: deque[End] = deque()
        self._count = 0
        self._rate = Rate()
        self._running: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        """Ends whose results the Hub does not have yet."""
        return self._count

    def add(self, end: End) -> None:
        """A Job is to have left the file, or the function's value, that `end.result` names."""
        if self._tell_at_once(end):
            return
        self._waiting.append(end)
        self._count += 1
        if self._running is None:
            self._running = asyncio.create_task(self._run())
            self._running.add_done_callback(_over)

    def _tell_at_once(self, end: End) -> bool:
        """A small value is sealed here and now: it need not wait for what the disk thread is about."""
        try:
            result = delivered_at_once(end, self._seal)
        except ResultProblem:
            return False  # it says so again
        if result is None or len(result.data) > limits.REPORT_RESULT_BYTES:
            return False
        reach("pilot.before_result_put")
        self._on_end(_told(end, result, result.data))
        return True

    def cancel(self) -> None:
        """Stop sending; files and journal stay as they are."""
        self._waiting.clear()
        if self._running is not None:
            self._running.cancel()

    async def _run(self) -> None:
        try:
            while self._waiting:
                most = min(len(self._waiting), limits.RESULTS_PER_REQUEST)
                ends = [self._waiting.popleft() for _ in range(most)]
                checked: list[Checked] = await self._disk(_check, ends, self._seal)
                rest = ends[len(checked) :]
                self._waiting.extendleft(reversed(rest))
                reach("pilot.before_result_put")
                per_s = self._rate.add(len(checked), boottime())
                good = []
                for end, result in checked:
                    if isinstance(result, ResultProblem):
                        self._done(_spoilt(end, result.message))
                    elif len(result.data) <= limits.REPORT_RESULT_BYTES:
                        self._done(_told(end, result, result.data))
                    else:
                        good.append((end, result))
                if not good and not rest and per_s >= _STREAM_PER_S:
                    await asyncio.sleep(_STREAM_S)
                elif good:
                    began = boottime()
                    await self._send(good)
                    gather_s = min(_GATHER_MOST_S, _GATHER_FACTOR * (boottime() - began))
                    if len(good) > 1 and not rest and most < limits.RESULTS_PER_REQUEST:
                        await asyncio.sleep(gather_s)
        finally:
            self._running = None

    async def _send(self, batch: Sequence[tuple[End, Result]]) -> None:
        """Send a batch until it is answered, and let go of its ends."""
        body = msgspec.json.encode(PutResults([_upload(end, result) for end, result in batch]))
        failures = 0
        while True:
            try:
                reply = await self._hub.request("POST", "/v1/results", body, PutResultsReply)
            except ChappeError as e:
                if e.transient or isinstance(e, Unauthenticated | BadReply):
                    failures += 1
                    await asyncio.sleep(jitter_s(failures, 0.5, _RETRY_MOST_S))
                    continue
                if e.status == 409:
                    # The Session is dead, which the Hub will say to the contact too.
                    verdict, message = Kept.STALE_LEASE, ""
                elif len(batch) == 1:
                    verdict, message = Kept.INVALID, e.message
                else:
                    # Something in it, or its size, makes the Hub or a proxy refuse all of it: find it.
                    half = len(batch) // 2
                    await self._send(batch[:half])
                    await self._send(batch[half:])
                    return
                verdicts = [ResultVerdict(end.job, end.epoch, verdict, message) for end, _ in batch]
            else:
                verdicts = reply.verdicts
            break
        self._judged(batch, verdicts)

    def _judged(
        self, batch: Sequence[tuple[End, Result]], verdicts: Sequence[ResultVerdict]
    ) -> None:
        by_key = {(v.job, v.epoch): v for v in verdicts}
        for end, result in batch:
            verdict = by_key.get((end.job, end.epoch))
            if verdict is None:
                self._done(_spoilt(end, "the hub did not say whether it took the result"))
            elif verdict.verdict == Kept.INVALID:
                self._done(_spoilt(end, f"the hub refused the result: {verdict.message}"))
            else:
                # If the Job is not ours any more, the Hub's verdict on the end will say so.
                self._done(_told(end, result))

    def _done(self, end: End) -> None:
        self._count -= 1
        self._on_end(end)


def _over(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.result()


def _check(ends: Sequence[End], seal: Seal) -> list[Checked]:
    """Read and check result files, on the disk thread, as many from the first as fit a request."""
    checked: list[Checked] = []
    left = limits.RESULTS_BYTES
    for end in ends:
        try:
            result = delivered(end, seal)
        except ResultProblem as problem:
            checked.append((end, problem))
            continue
        left -= len(result.data) * 4 // 3 + _FRAME_BYTES
        if left < 0:
            break
        checked.append((end, result))
    return checked


def _upload(end: End, result: Result) -> ResultUpload:
    return ResultUpload(end.job, end.epoch, result.sha256, result.media, result.data)


def _told(end: End, result: Result, body: bytes = b"") -> End:
    """The end that speaks of its result, which the Hub has, or gets with the report as its `body`."""
    outcome = msgspec.structs.replace(end.outcome, result_sha256=result.sha256)
    media = result.media if body else ""
    return msgspec.structs.replace(end, outcome=outcome, result="", media=media, body=body)


def _spoilt(end: End, why: str) -> End:
    """The program ended well and its result is not to be had: that is a failure, without an exit status
    of its own, so that nobody takes it for success."""
    if not end.outcome.ok:
        return msgspec.structs.replace(end, result="")  # it failed anyhow, and says how
    message = f"the program exited with status 0, but {why}"
    hook = end.outcome.hook
    if hook is not None:
        # Nor can its hook have it finished without the result.
        hook = msgspec.structs.replace(hook, state=None)
    outcome = msgspec.structs.replace(end.outcome, exit=None, message=message, hook=hook)
    return msgspec.structs.replace(end, outcome=outcome, result="")
