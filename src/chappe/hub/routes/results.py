"""Results of Jobs: pilots bring them, one or many at a time, before they report the end."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated

import msgspec

from chappe.core import limits
from chappe.core.errors import Invalid, TooLarge
from chappe.core.ids import check_id
from chappe.hub.call import Call, Content
from chappe.link.results import check_bytes
from chappe.store import queries
from chappe.store.sync import store_result, store_results
from chappe.wire.results import (
    AskResults,
    Kept,
    PutResults,
    PutResultsReply,
    Results,
    ResultUpload,
    ResultVerdict,
    Sha256,
)


class ResultQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The attempt that a result belongs to, and the sha256 of its bytes (hexadecimal)."""

    epoch: Annotated[int, msgspec.Meta(ge=0)]
    sha256: Sha256


async def show(call: Call[None, None]) -> Content:
    """Fetch the result of a Job that has ended."""
    media, sha256, body = await call.hub.read(queries.result, call.principal, call.path["id"])
    # What a Job wrote is never to be run by a browser that is shown it.
    headers = {
        "etag": f'"{sha256}"',
        "x-content-type-options": "nosniff",
        "content-disposition": "attachment",
        "content-security-policy": "sandbox",
    }
    return Content(body, media, headers=headers)


async def show_many(call: Call[AskResults, None]) -> Results:
    """Fetch the results of up to 1 000 Jobs that have ended, as many as fit one answer."""
    ids = call.body.ids
    if len(ids) > limits.PAGE_MAX:
        raise TooLarge(f"{len(ids)} jobs, the limit is {limits.PAGE_MAX}", field="ids")
    for id in ids:
        check_id(id, "ids")
    return await call.hub.read(queries.results, call.principal, ids)


async def put(call: Call[bytes, ResultQuery]) -> None:
    """Store an attempt's result, before its end is reported. The Content-Type is the media type."""
    q, media = call.query, call.headers.get("content-type", "")
    upload = ResultUpload(call.path["id"], q.epoch, q.sha256, media, call.body)
    await call.hub.prepare(_check, upload)
    await call.hub.write(store_result, call.principal, upload)


async def put_many(call: Call[PutResults, None]) -> PutResultsReply:
    """Store the results of up to 500 attempts, before their ends are reported; each gets a verdict."""
    uploads = call.body.results
    if len(uploads) > limits.RESULTS_PER_REQUEST:
        raise TooLarge(
            f"{len(uploads)} results in one request, the limit is {limits.RESULTS_PER_REQUEST}",
            field="results",
        )
    problems = await call.hub.prepare(_problems, uploads)
    good = [upload for upload, problem in zip(uploads, problems, strict=True) if not problem]
    stored = iter(await call.hub.write(store_results, call.principal, good) if good else ())
    verdicts = []
    for upload, problem in zip(uploads, problems, strict=True):
        verdict = Kept.INVALID
        if not problem:
            verdict = Kept.STORED if next(stored) else Kept.STALE_LEASE
        verdicts.append(ResultVerdict(upload.job, upload.epoch, verdict, problem))
    return PutResultsReply(verdicts)


def _check(upload: ResultUpload) -> None:
    """Raise Invalid unless the bytes are those that were meant, and what their media type says."""
    check_id(upload.job, "id")
    if hashlib.sha256(upload.body).hexdigest() != upload.sha256:
        raise Invalid("the bytes do not have this sha256; send them again", field="sha256")
    check_bytes(upload.media, upload.body)


def _problems(uploads: Sequence[ResultUpload]) -> list[str]:
    """What is wrong with each, "" for nothing."""
    problems = []
    for upload in uploads:
        try:
            _check(upload)
        except Invalid as e:
            problems.append(e.message)
        else:
            problems.append("")
    return problems
