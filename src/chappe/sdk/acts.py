"""Cancel, retry and delete; and the signature that a retry beyond the first one's limits needs.

A retry is signed again only for bytes that this key has signed before: the Hub shows the submission, and
its signature is checked here. A stolen Hub could otherwise have its own bytes signed by a user's retry.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from chappe.core import limits
from chappe.core.jobs import decode_spec
from chappe.link.clock import now
from chappe.link.signing import SignatureProblem, make_submissions, verify
from chappe.sdk.errors import ChappeError, Conflict, Gone, Invalid, NotFound
from chappe.wire.jobs import ActOnJobs, ActReply, JobFilter, JobVerdict, SignedSpec
from chappe.wire.submission import Submission

if TYPE_CHECKING:
    from chappe.sdk.engine import Engine


_DONE = frozenset({"cancelled", "cancelling", "retried", "deleted"})
_ERRORS: dict[str, type[ChappeError]] = {"not_found": NotFound, "gone": Gone}
_WORDS = {
    "not_final": "it has not ended yet: cancel it, or wait",
    "finished": "it has finished",
    "not_found": "it does not exist",
    "gone": "it was deleted",
    "attempts": "its signature allows no further attempt",
    "expired": "its signature has expired",
    "parents_failed": "a parent did not succeed: retry that first, or together with it",
    "skipped": "it has ended",
}


async def one(engine: Engine, verb: str, job: str) -> str:
    """Act on one Job; returns the verdict's code. Raises NotFound, Gone or Conflict."""
    (verdict,) = (await by_ids(engine, verb, [job])).verdicts
    if verdict.code in _DONE or (verb == "cancel" and verdict.code in ("finished", "skipped")):
        return verdict.code
    words = verdict.message or _WORDS.get(verdict.code, verdict.code)
    kind = _ERRORS.get(verdict.code, Conflict)
    raise kind(f"cannot {verb} job {job}: {words}", code=verdict.code, field=verdict.field)


async def many(engine: Engine, verb: str, where: JobFilter) -> dict[str, int]:
    """Act on all Jobs that match; returns how many of each verdict. Raises Invalid without a condition."""
    if where == JobFilter():
        raise Invalid(f"say which jobs to {verb}: at least one condition", field="filter")
    if where.ids is not None:
        return (await by_ids(engine, verb, where.ids)).counts
    return (await _post(engine, verb, ActOnJobs(where))).counts


async def by_ids(engine: Engine, verb: str, ids: list[str]) -> ActReply:
    """Act on named Jobs. A retry that needs a new signature is signed and sent a second time."""
    reply = await _post(engine, verb, ActOnJobs(JobFilter(ids=ids)))
    exhausted = [v.id for v in reply.verdicts if v.code in ("attempts", "expired")]
    if verb != "retry" or not exhausted:
        return reply
    again = {v.id: v for v in (await _retry_signed(engine, exhausted)).verdicts}
    verdicts = [again.get(v.id, v) for v in reply.verdicts]
    return ActReply(_count(verdicts), verdicts)


async def _retry_signed(engine: Engine, ids: list[str]) -> ActReply:
    """Retry Jobs under new statements: as many further attempts as their specs first allowed."""
    me = await engine.whoami()
    key = engine.key()
    # One statement has one `max_attempts`, so Jobs are grouped by what they now need.
    groups: dict[int, list[tuple[str, bytes]]] = {}
    for job in ids:
        view = await engine.view(job)
        spec, signed_for = await _signed_by_me(engine, job)
        # Of the attempts so far no more are believed than were signed for: a stolen Hub may say any number.
        allowed = min(view.attempt, signed_for) + decode_spec(spec).max_attempts
        groups.setdefault(min(allowed, limits.ATTEMPTS_MAX), []).append((job, spec))
    submissions: list[Submission] = []
    signed: dict[str, tuple[int, int]] = {}
    for max_attempts, jobs in groups.items():
        for i, (job, _spec) in enumerate(jobs):
            place, idx = divmod(i, limits.JOBS_PER_SUBMISSION)
            signed[job] = len(submissions) + place, idx
        specs = [spec for _job, spec in jobs]
        not_after = now() + limits.NOT_AFTER_DEFAULT_S
        submissions += make_submissions(key, me.project, specs, not_after, max_attempts)
    return await _post(engine, "retry", ActOnJobs(JobFilter(ids=ids), submissions, signed))


async def _signed_by_me(engine: Engine, job: str) -> tuple[bytes, int]:
    """A Job's spec as the Hub holds it, once it is proven that this key signed those bytes, and the
    attempts that it signed for."""
    found = await engine.hub.request("GET", f"/v1/jobs/{job}/signed", reply=SignedSpec)
    spec = bytes(found.spec)
    problem = None
    try:
        proof = verify(found.submission)
    except SignatureProblem as error:
        problem = error.message
    else:
        if proof.key != engine.key().public_b64:
            problem = "another key signed it"
        elif proof.hash_at(found.idx) != hashlib.sha256(spec).digest():
            problem = "its bytes are not those that were signed"
        elif decode_spec(spec).id != job:
            problem = "the hub showed another job"
    if problem is not None:
        raise Conflict(
            f"job {job} is not signed anew: {problem}. Submit a new job instead", code="not_yours"
        )
    return spec, proof.max_attempts or decode_spec(spec).max_attempts


async def _post(engine: Engine, verb: str, body: ActOnJobs) -> ActReply:
    return await engine.hub.request("POST", f"/v1/jobs/{verb}", body, ActReply)


def _count(verdicts: list[JobVerdict]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for verdict in verdicts:
        counts[verdict.code] = counts.get(verdict.code, 0) + 1
    return counts
