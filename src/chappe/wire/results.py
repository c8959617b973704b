"""Results on their way from a pilot to the Hub, many in one request: `POST /v1/results`.

Each item is judged by itself, so one bad result does not hold up the others, and what is good is stored in
one transaction. Repeating a request is harmless.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec

from chappe.wire.sync import Number

Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
"""The sha256 of a result's bytes, hexadecimal."""


class Kept(StrEnum):
    """What became of one result: it is with the Hub, its Job is not the Session's at that epoch (any
    more), or it can never be taken."""

    STORED = "stored"
    STALE_LEASE = "stale_lease"
    INVALID = "invalid"


class ResultUpload(msgspec.Struct, frozen=True):
    """The result of one attempt: its media type, and its bytes (base64 in JSON)."""

    job: str
    epoch: Number
    sha256: Sha256
    media: str
    body: bytes


class PutResults(msgspec.Struct, frozen=True):
    """Results to store: at most 500, and 8 MiB as they are sent."""

    results: list[ResultUpload]


class ResultVerdict(msgspec.Struct, frozen=True, array_like=True):
    """The answer to one result: stored | stale_lease | invalid, and for `invalid` the reason."""

    job: str
    epoch: Number
    verdict: str
    message: str = ""


class AskResults(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /v1/jobs/results`: the results of these Jobs (full ids, at most 1 000)."""

    ids: list[str]


class JobResult(msgspec.Struct, frozen=True):
    """The result of one Job: its media type, and its bytes (base64 in JSON)."""

    job: str
    media: str
    sha256: str
    body: bytes


class Results(msgspec.Struct, frozen=True, omit_defaults=True):
    """The results that there are, in the order of the request; `rest` names Jobs whose results had no
    room in this answer: ask for them again."""

    results: list[JobResult]
    rest: list[str] = []


class PutResultsReply(msgspec.Struct, frozen=True):
    """One verdict for each result, in the order of the request."""

    verdicts: list[ResultVerdict]
