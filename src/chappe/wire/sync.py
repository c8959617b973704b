"""The one pilot protocol: an idempotent long poll, `POST /v1/sync`.

*My reports, my heartbeat, what I hold, my free capacity; renew, and give me work.* One sync is in flight
per Session; `POST /v1/sync/wake` makes the Hub answer it at once.

`request_no` rises by one per new request; the same number again is the same request (a lost reply) and is
answered from the rows, changing nothing. `answered` is the highest number whose reply the pilot has read:
only grants carried by answered requests, and missing from `held`, `returned` and the reports, are
disowned. Everything in `held` that the reply does not name under `unknown` or `kill` is renewed.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from chappe.core.leases import Outcome
from chappe.core.shapes import Capacity
from chappe.wire.logs import LogWish
from chappe.wire.submission import Submission

Number = Annotated[int, msgspec.Meta(ge=-(2**53), le=2**53)]
"""A count. What is beyond belief is refused here: no database and no binary format would take it."""


class HeldJob(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A Job that the pilot holds; `started` once its ledger claim is written."""

    job: str
    epoch: Number
    started: bool = False


class JobEpoch(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A Job at one epoch."""

    job: str
    epoch: Number


class Report(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One thing that happened, numbered per Session. `kind` is start | end | refused.

    `at` is when (seconds since 1970, the pilot's clock). An end brings `started_at`, so that it may
    overtake its start. A refusal brings its code in `reason` and words in `outcome.message`.
    A small result (at most 4 KiB) may come along as `body`, of type `media`; its sha256 is the outcome's.
    """

    no: Number
    job: str
    epoch: Number
    attempt: Number
    kind: str
    at: float
    started_at: float | None = None
    outcome: Outcome | None = None
    reason: str = ""
    media: str = ""
    body: bytes = b""


class SyncRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a pilot says. `seen` is the highest (incarnation, commit_no) it was shown.

    `capacity` None asks for no work (draining). `hard_end_in_s` is the time until the scheduler kills
    the allocation. `have_submissions` names submissions it can use without being sent them again.
    `logs_seen` is the highest wish for a log that it has read.
    """

    session: str
    request_no: Number
    answered: Number
    seen: tuple[Number, Number]
    held: list[HeldJob] = []
    returned: list[JobEpoch] = []
    reports: list[Report] = []
    capacity: Capacity | None = None
    hard_end_in_s: float | None = None
    have_submissions: list[str] = []
    wait_s: float = 0.0
    logs_seen: Number = 0


class ReportVerdict(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The Hub's answer to report `no`: applied | duplicate | stale_lease | illegal | refused."""

    no: Number
    verdict: str


class Grant(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """The right to run attempt `attempt` of a Job under `epoch`. The spec is the signed bytes."""

    job: str
    epoch: Number
    attempt: Number
    spec: msgspec.Raw
    submission: str | None = None
    idx: Number = 0
    priority: Number = 0


class Kill(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """End this Job: `reason` is cancelled. A grant that was not started is simply returned."""

    job: str
    epoch: Number
    reason: str


class SyncReply(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the Hub answers. `drain` asks the pilot to return what has not started and to end; `logs` are
    wishes to read (wire.logs)."""

    incarnation: Number
    commit_no: Number
    request_no: Number
    ttl_s: float
    verdicts: list[ReportVerdict] = []
    unknown: list[JobEpoch] = []
    kill: list[Kill] = []
    grants: list[Grant] = []
    submissions: list[Submission] = []
    drain: bool = False
    logs: list[LogWish] = []
