"""Results on their way to the Hub: checked, sent, and only then is the end of their Job reported.

The Hub refuses an end that claims a result which it does not have. While it is away, results wait in their
files and ends in the journal, and are tried again for as long as the pilot lives.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from pathlib import Path

import msgspec

from chappe.core.errors import ChappeError
from chappe.core.faults import reach
from chappe.link.http import HubClient
from chappe.link.journal import End
from chappe.link.results import ResultProblem, check_result
from chappe.link.retry import jitter_s
from chappe.pilot.parents import Disk

_AT_ONCE = 8
_RETRY_MOST_S = 10.0


class Uploads:
    """Sends results, a bounded number at a time. `on_end` gets each end when it may be reported."""

    def __init__(self, hub: HubClient, disk: Disk, on_end: Callable[[End], None]) -> None:
        self._hub = hub
        self._disk = disk
        self._on_end = on_end
        self._waiting: deque[End] = deque()
        self._running: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        """Ends whose results the Hub does not have yet."""
        return len(self._waiting) + len(self._running)

    def add(self, end: End) -> None:
        """A Job succeeded and is to have left the file `end.result`."""
        self._waiting.append(end)
        self._next()

    def cancel(self) -> None:
        """Stop sending; files and journal stay as they are."""
        self._waiting.clear()
        for task in self._running:
            task.cancel()

    def _next(self) -> None:
        while self._waiting and len(self._running) < _AT_ONCE:
            task = asyncio.create_task(self._upload(self._waiting.popleft()))
            self._running.add(task)
            task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.result()
        self._next()

    async def _upload(self, end: End) -> None:
        try:
            result = await self._disk(check_result, Path(end.result))
        except ResultProblem as problem:
            self._on_end(_spoilt(end, problem.message))
            return
        failures = 0
        while True:
            reach("pilot.before_result_put")
            try:
                await self._hub.request(
                    "PUT",
                    f"/v1/jobs/{end.job}/result",
                    result.data,
                    params={"epoch": end.epoch, "sha256": result.sha256},
                    media=result.media,
                )
            except ChappeError as e:
                if e.transient or e.status == 401:
                    failures += 1
                    await asyncio.sleep(jitter_s(failures, 0.5, _RETRY_MOST_S))
                    continue
                if e.status != 409:
                    self._on_end(_spoilt(end, f"the hub refused the result: {e.message}"))
                    return
                # The Job is not ours any more; the Hub's verdict on the end will say so.
            break
        outcome = msgspec.structs.replace(end.outcome, result_sha256=result.sha256)
        self._on_end(msgspec.structs.replace(end, outcome=outcome, result=""))


def _spoilt(end: End, why: str) -> End:
    """The program ended well and its result is not to be had: that is a failure, without an exit status
    of its own, so that nobody takes it for success."""
    message = f"the program exited with status 0, but {why}"
    outcome = msgspec.structs.replace(end.outcome, exit=None, message=message)
    return msgspec.structs.replace(end, outcome=outcome, result="")
