"""Acts on Jobs, one or many; and the signature that a retry beyond the first one's limits needs.

A retry is signed again only for bytes that this key has signed before: the Hub shows the submission, and
its signature is checked here. A stolen Hub could otherwise have its own bytes signed by a user's retry.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from chappe.core import limits
from chappe.core.jobs import decode_spec
from chappe.link.clock import new_id, now
from chappe.link.signing import SignatureProblem, make_submissions, verify
from chappe.sdk.errors import ChappeError, Conflict, Gone, Invalid, NotFound
from chappe.sdk.feed import PATIENT
from chappe.wire.bulk import ActView, NewAct, NewSelection, SelectionView, Verb
from chappe.wire.jobs import (
    ActOnJobs,
    ActReply,
    EnvelopeChange,
    JobFilter,
    JobVerdict,
    SignedSpec,
)
from chappe.wire.submission import Submission

if TYPE_CHECKING:
    from chappe.sdk.engine import Engine


_DONE = frozenset(
    {"cancelled", "cancelling", "retried", "deleted", "held", "holding", "released", "updated"}
)
#: Verdicts that say that there was nothing to do.
_ALREADY = {
    "cancel": frozenset({"finished", "skipped"}),
    "release": frozenset({"skipped"}),
}
#: How long the Hub may hold a request that asks how far an act has come.
_WAIT_S = 20.0
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
    "too_large": "its tags or data would become too large",
}


async def one(engine: Engine, verb: Verb, job: str, change: EnvelopeChange | None = None) -> str:
    """Act on one Job; returns the verdict's code. Raises NotFound, Gone, Conflict or Invalid."""
    (verdict,) = (await by_ids(engine, verb, [job], change)).verdicts
    if verdict.code in _DONE or verdict.code in _ALREADY.get(verb, ()):
        return verdict.code
    words = verdict.message or _WORDS.get(verdict.code, verdict.code)
    kind = _ERRORS.get(verdict.code, Conflict)
    raise kind(f"cannot {verb} job {job}: {words}", code=verdict.code, field=verdict.field)


async def select(engine: Engine, where: JobFilter) -> SelectionView:
    """Freeze what matches now. Raises NotFound for a Site that does not exist."""
    new = NewSelection(new_id(), where)
    return await engine.hub.request("POST", "/v1/selections", new, SelectionView)


async def on_selection(
    engine: Engine,
    verb: Verb,
    selection: SelectionView,
    change: EnvelopeChange | None = None,
    told: Callable[[ActView], None] = lambda _act: None,
) -> dict[str, int]:
    """Act on a selection and wait for the end; returns how many of each verdict.

    `told` is called as it goes on. Whoever is cancelled here stops waiting, not the act.
    """
    new = NewAct(new_id(), selection.id, verb, change)
    act = await engine.hub.request("POST", "/v1/acts", new, ActView, retry=PATIENT)
    while act.ended_at is None:
        told(act)
        act = await engine.hub.request(
            "GET",
            f"/v1/acts/{act.id}",
            reply=ActView,
            params={"wait_s": f"{_WAIT_S:g}", "beyond": str(act.done)},
            timeout_s=3 * _WAIT_S,
            retry=PATIENT,
        )
    told(act)
    if act.state != "done":
        words = act.message or "somebody stopped it"
        raise Conflict(
            f"the {verb} ended after {act.done} of {act.total} jobs: {words}", code=act.state
        )
    return act.counts


async def many(
    engine: Engine, verb: Verb, where: JobFilter, change: EnvelopeChange | None = None
) -> dict[str, int]:
    """Act on all Jobs that match; returns how many of each verdict. Raises Invalid without a condition."""
    if where == JobFilter():
        raise Invalid(f"say which jobs to {verb}: at least one condition", field="filter")
    if where.ids is not None:
        return (await by_ids(engine, verb, where.ids, change)).counts
    return await on_selection(engine, verb, await select(engine, where), change)


async def by_ids(
    engine: Engine, verb: Verb, ids: list[str], change: EnvelopeChange | None = None
) -> ActReply:
    """Act on named Jobs. A retry that needs a new signature is signed and sent a second time."""
    reply = await _post(engine, verb, ActOnJobs(JobFilter(ids=ids), change=change))
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
    # One statement has one `max_attempts`, so Jobs are grouped by what they now need, and by code.
    groups: dict[tuple[int, bytes], list[tuple[str, bytes]]] = {}
    for job in ids:
        view = await engine.view(job)
        spec, signed_for, code = await _signed_by_me(engine, job)
        # Of the attempts so far no more are believed than were signed for: a stolen Hub may say any number.
        allowed = min(view.attempt, signed_for) + decode_spec(spec).max_attempts
        groups.setdefault((min(allowed, limits.ATTEMPTS_MAX), code), []).append((job, spec))
    submissions: list[Submission] = []
    signed: dict[str, tuple[int, int]] = {}
    for (max_attempts, code), jobs in groups.items():
        for i, (job, _spec) in enumerate(jobs):
            place, idx = divmod(i, limits.JOBS_PER_SUBMISSION)
            signed[job] = len(submissions) + place, idx
        specs = [spec for _job, spec in jobs]
        not_after = now() + limits.NOT_AFTER_DEFAULT_S
        submissions += make_submissions(
            key, me.project, specs, not_after, max_attempts, [code] if code else ()
        )
    return await _post(engine, "retry", ActOnJobs(JobFilter(ids=ids), submissions, signed))


async def _signed_by_me(engine: Engine, job: str) -> tuple[bytes, int, bytes]:
    """A Job's spec as the Hub holds it, once it is proven that this key signed those bytes, the attempts
    that it signed for, and the function or script that it names, if it does."""
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
    found_spec = decode_spec(spec)
    code = b"" if found_spec.code is None else proof.code.get(found_spec.code, b"")
    return spec, proof.max_attempts or found_spec.max_attempts, code


async def _post(engine: Engine, verb: Verb, body: ActOnJobs) -> ActReply:
    return await engine.hub.request("POST", f"/v1/jobs/{verb}", body, ActReply)


def _count(verdicts: list[JobVerdict]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for verdict in verdicts:
        counts[verdict.code] = counts.get(verdict.code, 0) + 1
    return counts
