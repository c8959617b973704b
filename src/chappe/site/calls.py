"""The one door to the scheduler: every call to it is bounded, paced by the Site's policy, and counted.

The counts, the pace and the break stand in a file of the agent's, so that an agent that is started again and
again calls no oftener than one that is not; `chappe site status` reads them there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import msgspec
import structlog

from chappe.core.errors import Invalid, Unavailable
from chappe.core.policy import Breaker, Bucket, Policy
from chappe.link.clock import boottime, now
from chappe.link.files import write_atomic
from chappe.site.command import TIMEOUT_S, Ran, run
from chappe.site.schedulers.base import SubmitUnclear

log = structlog.get_logger()
T = TypeVar("T")

Parse = Callable[[str, str, int], T]


class LeftAlone(Unavailable):
    """The scheduler is not called for a while: it failed too often, or the policy's pace says so."""

    default_code = "left_alone"

    def __init__(self, message: str, wait_s: float) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class CallCounts(msgspec.Struct):
    """Calls of one kind: how many, how many failed, and how long they took in all and at most."""

    calls: int = 0
    failed: int = 0
    seconds: float = 0.0
    slowest_s: float = 0.0


class CallRecord(msgspec.Struct, omit_defaults=True):
    """All calls of this Site to its scheduler since `since` (seconds since 1970), by kind: submit, status,
    history, find, cancel."""

    since: float
    counts: dict[str, CallCounts] = {}
    last_at: float | None = None
    bucket: Bucket | None = None
    breaker: Breaker = Breaker()


def read_record(path: Path) -> CallRecord | None:
    """What a Site's agent has counted; None before it called anything, or when the file is damaged."""
    with suppress(OSError, msgspec.DecodeError):
        return msgspec.json.decode(path.read_bytes(), type=CallRecord)
    return None


def _read(argv: Sequence[str], ran: Ran, parse: Parse[T]) -> T:
    if ran.exit_code is None:
        raise SubmitUnclear(f"{argv[0]}: {ran.stderr}")
    return parse(ran.stdout, ran.stderr, ran.exit_code)


class Calls:
    """Calls the scheduler. `shared`: others use it, too, so the policy's pace holds."""

    def __init__(
        self, path: Path, policy: Policy, *, shared: bool, timeout_s: float = TIMEOUT_S
    ) -> None:
        self._path = path
        self._policy = policy
        self._shared = shared
        self._timeout_s = timeout_s
        self._record = read_record(path) or CallRecord(now())

    async def ask(self, kind: str, argv: Sequence[str], parse: Parse[T]) -> T:
        """Run `argv` and read its answer with `parse`. Raises LeftAlone, what `parse` raises, OSError; and
        SubmitUnclear when the command takes too long, for it may have done its work."""
        if self._shared and (wait_s := self._record.breaker.wait_s(now())):
            raise LeftAlone(f"the scheduler is left alone for {wait_s:.0f} s: it failed", wait_s)
        began = boottime()
        worked: bool | None = False
        try:
            answer = _read(argv, await run(argv, self._timeout_s), parse)
            worked = True
        except asyncio.CancelledError:
            worked = None  # it was not heard to its end, because the agent ends
            raise
        except Invalid:
            worked = True  # that the answer is a refusal is no failure of the scheduler
            raise
        else:
            return answer
        finally:
            self._count(kind, boottime() - began, worked)

    def _count(self, kind: str, took_s: float, worked: bool | None) -> None:
        counts = self._record.counts.setdefault(kind, CallCounts())
        counts.calls += 1
        counts.failed += worked is False
        counts.seconds += took_s
        counts.slowest_s = max(counts.slowest_s, took_s)
        at = self._record.last_at = now()
        if worked:
            self._record.breaker = Breaker()
        elif worked is False:
            self._record.breaker = self._record.breaker.failed(at)
            if self._shared and (wait_s := self._record.breaker.wait_s(at)):
                log.warning("leaving the scheduler alone", in_s=wait_s, kind=kind)
        self._write()

    def submit_wait_s(self) -> float:
        """Seconds until the policy lets something be submitted."""
        if not self._shared:
            return 0.0
        return self._bucket().wait_s(self._policy, now())

    def take_submission(self) -> None:
        """Something is about to be submitted. Raises LeftAlone when it is too early."""
        if not self._shared:
            return
        if wait_s := self._record.breaker.wait_s(now()):
            raise LeftAlone("the scheduler is left alone: it failed", wait_s)
        if wait_s := self.submit_wait_s():
            raise LeftAlone("the site's policy sets the pace of submissions", wait_s)
        self._record.bucket = self._bucket().taken(self._policy, now())
        self._write()

    def _bucket(self) -> Bucket:
        at = now()
        found = self._record.bucket or Bucket(float(self._policy.submissions_burst), at)
        # A clock that was set back must not stop us for as long.
        return found if found.at <= at else Bucket(0.0, at)

    def _write(self) -> None:
        try:
            write_atomic(self._path, msgspec.json.encode(self._record), 0o600)
        except OSError as e:
            # What it says is of use, but nothing depends on it: a full disk stops no allocation.
            log.warning("the count of calls cannot be written", error=str(e))
