"""Checking new Jobs: all that needs no transaction (decoding, types, hashes, signatures).

It runs before, and beside, the writer's thread, which is left with a handful of set-wise statements.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import Any

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from chappe.core import limits
from chappe.core.dag import check_acyclic
from chappe.core.errors import ChappeError, Invalid, TooLarge
from chappe.core.ids import check_id, created_ms
from chappe.core.jobs import (
    Envelope,
    JobSpec,
    ParentPolicy,
    Retries,
    check_envelope,
    decode_spec,
)
from chappe.core.shapes import Shape, shape_of
from chappe.store.catalog import Catalog
from chappe.store.principal import Principal
from chappe.wire.jobs import CreateJobs, JobVerdict, NewJob
from chappe.wire.submission import SIGNATURE_PREFIX, Statement, Submission

_DEFAULT_ENVELOPE = Envelope()
_DEFAULT_RETRIES = Retries()


class PreparedJob(msgspec.Struct, gc=False):
    """A Job that passed every check that needs no transaction."""

    spec: JobSpec
    text: str
    envelope: Envelope
    envelope_text: str | None
    shape: Shape
    submission: int | None
    idx: int
    max_attempts: int
    #: What the row shows of the spec.
    app: str | None
    name: str
    policy: str | None
    retries: str | None


class PreparedSubmission(msgspec.Struct):
    """A submission whose signature and form are right."""

    submission: Submission
    statement: Statement
    hashes: bytes


class Prepared(msgspec.Struct):
    """What `create_jobs` needs."""

    jobs: list[PreparedJob]
    submissions: list[PreparedSubmission]


class Bad:
    """Gathers what is wrong with the items of a batch, so that the user sees all of it at once."""

    def __init__(self) -> None:
        self.verdicts: list[JobVerdict] = []
        self.first: ChappeError | None = None

    def add(self, id: str, error: ChappeError) -> None:
        """Item `id` is wrong in this way."""
        if self.first is None:
            self.first = error
        if len(self.verdicts) < 100:
            self.verdicts.append(JobVerdict(id, error.code, error.message, error.field))

    def raise_if_any(self, total: int) -> None:
        """Raise the first error with a verdict for each bad item, if there is any."""
        if self.first is not None:
            first = self.first
            where = f"job {self.verdicts[0].id}: " if total > 1 else ""
            raise type(first)(
                f"{where}{first.message}" + (" (nothing was created)" if total > 1 else ""),
                code=first.code,
                field=first.field,
                details=[msgspec.to_builtins(v) for v in self.verdicts],
            )


def prepare(catalog: Catalog, p: Principal, body: CreateJobs, now: float) -> Prepared:
    """Check a request as far as possible without a transaction. Raises Invalid with all bad items."""
    if not body.jobs:
        raise Invalid("give at least one job", field="jobs")
    if len(body.jobs) > limits.JOBS_PER_REQUEST:
        raise TooLarge(
            f"{len(body.jobs)} jobs in one request, the limit is {limits.JOBS_PER_REQUEST}",
            field="jobs",
        )
    submissions = prepare_submissions(body.submissions, len(body.jobs), p, now)
    bad = Bad()
    prepared: list[PreparedJob] = []
    shapes: dict[tuple[Any, ...], Shape] = {}
    seen: set[str] = set()
    for i, new in enumerate(body.jobs):
        try:
            job = _prepare_job(catalog, p, new, submissions, shapes, now)
            if job.spec.id in seen:
                raise Invalid("two jobs of the request have the same id", field="id")
            seen.add(job.spec.id)
            prepared.append(job)
        except ChappeError as error:
            bad.add(_id_of(new, i), error)
    bad.raise_if_any(len(body.jobs))
    check_acyclic({job.spec.id: job.spec.parents for job in prepared if job.spec.parents})
    return Prepared(prepared, submissions)


def _id_of(new: NewJob, i: int) -> str:
    """The id that the verdict of a bad item shows: its own if it can be read, else its place."""
    try:
        found = msgspec.json.decode(new.spec)
    except msgspec.DecodeError:
        return f"#{i}"
    id = found.get("id") if isinstance(found, dict) else None
    return id[:60] if isinstance(id, str) else f"#{i}"


def _prepare_job(
    catalog: Catalog,
    p: Principal,
    new: NewJob,
    submissions: list[PreparedSubmission],
    shapes: dict[tuple[Any, ...], Shape],
    now: float,
) -> PreparedJob:
    spec = decode_spec(new.spec)
    if spec.project != p.project_id:
        raise Invalid(f"the token is for project {p.project_id}", field="project")
    _check_age(spec.id, now)
    if new.envelope is not _DEFAULT_ENVELOPE:
        check_envelope(new.envelope)
    max_attempts = spec.max_attempts
    if new.submission is None:
        _check_unsigned(spec)
    else:
        signed = _signed(submissions, new, new.spec)
        max_attempts = signed.statement.max_attempts or max_attempts
    _check_app(catalog, p, spec, signed=new.submission is not None)
    key = (spec.sites, spec.resources)
    shape = shapes.get(key)
    if shape is None:
        shape = shapes[key] = shape_of(spec)
    app = spec.app.name if spec.app else None
    policy = spec.on_parent_failure
    envelope_text = None if new.envelope == _DEFAULT_ENVELOPE else canonical(new.envelope)
    return PreparedJob(
        spec,
        bytes(new.spec).decode(),
        new.envelope,
        envelope_text,
        shape,
        new.submission,
        new.idx,
        max_attempts,
        app,
        spec.name or app or (spec.function.name if spec.function else _program(spec)),
        None if policy is ParentPolicy.FAIL else policy.value,
        None if spec.restarts == _DEFAULT_RETRIES else msgspec.json.encode(spec.restarts).decode(),
    )


def _program(spec: JobSpec) -> str:
    return (spec.command or ("",))[0].rsplit("/", 1)[-1]


def canonical(envelope: Envelope) -> str:
    """An envelope in one form, whatever the order of its keys: what idempotency compares."""
    return msgspec.json.encode(envelope, order="sorted").decode()


def _check_age(id: str, now: float) -> None:
    """Ids older than the tombstones could have been deleted already; nobody would know."""
    age_s = now - created_ms(id) / 1000
    if age_s > limits.TOMBSTONE_S:
        raise Invalid(
            f"the id was made {age_s / 86_400:.0f} days ago; make a new one",
            field="id",
            code="id_too_old",
        )
    if age_s < -limits.CLOCK_AHEAD_S:
        raise Invalid("the id is from the future; set this machine's clock", field="id")


def _check_unsigned(spec: JobSpec) -> None:
    if spec.command is not None:
        raise Invalid("a raw command must be signed", field="command", code="unsigned")
    if spec.function is not None:
        raise Invalid("a function must be signed", field="function", code="unsigned")


def _check_app(catalog: Catalog, p: Principal, spec: JobSpec, *, signed: bool) -> None:
    for id in spec.sites:
        site = catalog.site_by_id.get((p.project_n, id))
        if site is None:
            raise Invalid(f"there is no site {id[:60]!r}", field="sites")
        if spec.app is None:
            continue
        app = site.apps.get(spec.app.name)
        if app is None:
            known = ", ".join(sorted(site.apps)) or "none"
            raise Invalid(
                f"site {site.name} has no app {spec.app.name[:60]!r} (it has: {known})",
                field="app.name",
            )
        if spec.app.version is not None and spec.app.version != app.view.version:
            raise Invalid(
                f"site {site.name} has version {app.view.version} of {spec.app.name}",
                field="app.version",
            )
        if not signed and not app.view.unsigned:
            raise Invalid(
                f"site {site.name} runs {spec.app.name} only for signed jobs",
                field="submission",
                code="unsigned",
            )
        for name in spec.env:
            if name not in app.view.allow_env:
                raise Invalid(
                    f"app {spec.app.name} does not let jobs set {name}", field=f"env.{name}"
                )
        app.validate(spec.parameters)


def prepare_submissions(
    submissions: list[Submission], most: int, p: Principal, now: float
) -> list[PreparedSubmission]:
    """Check submissions, of which `most` Jobs need one each at most. Raises Invalid."""
    # A signature takes 0.1 ms to check, and a request has room for a hundred thousand.
    if len(submissions) > most:
        raise TooLarge(
            f"{len(submissions)} submissions for {most} jobs: leave out those that sign none",
            field="submissions",
        )
    return [prepare_submission(s, p, now) for s in submissions]


def prepare_submission(submission: Submission, p: Principal, now: float) -> PreparedSubmission:
    """Check a submission's form and signature: a courtesy, for the check that counts is the Site's."""
    check_id(submission.id, "submissions.id")
    try:
        # The whole of it is text, also what the decoder skips: it is stored as such.
        statement = msgspec.json.decode(bytes(submission.statement).decode(), type=Statement)
        hashes = base64.b64decode(statement.hashes, validate=True)
        key = Ed25519PublicKey.from_public_bytes(base64.b64decode(statement.key, validate=True))
        key.verify(
            base64.b64decode(submission.sig, validate=True),
            SIGNATURE_PREFIX + bytes(submission.statement),
        )
    except InvalidSignature:
        raise Invalid(
            "the signature does not match the statement", field="submissions", code="bad_signature"
        ) from None
    except (msgspec.DecodeError, msgspec.ValidationError, binascii.Error, ValueError) as e:
        raise Invalid(f"the submission cannot be read: {e}", field="submissions") from None
    if len(hashes) % 32 or not 0 < len(hashes) <= 32 * limits.JOBS_PER_SUBMISSION:
        raise Invalid(
            f"a submission signs 1 to {limits.JOBS_PER_SUBMISSION} hashes of 32 bytes",
            field="submissions.hashes",
        )
    if statement.project != p.project_id:
        raise Invalid("the submission was signed for another project", field="submissions.project")
    if statement.not_after <= now:
        raise Invalid(
            "the submission has expired: sign anew", field="submissions.not_after", code="expired"
        )
    if (
        statement.max_attempts is not None
        and not 1 <= statement.max_attempts <= limits.ATTEMPTS_MAX
    ):
        raise Invalid(
            f"max_attempts must be 1 to {limits.ATTEMPTS_MAX}", field="submissions.max_attempts"
        )
    return PreparedSubmission(submission, statement, hashes)


def _signed(
    submissions: list[PreparedSubmission], new: NewJob, spec: msgspec.Raw
) -> PreparedSubmission:
    index = new.submission
    if index is None or not 0 <= index < len(submissions):
        raise Invalid("submission is an index into `submissions`", field="submission")
    check_hash(submissions[index], new.idx, bytes(spec))
    return submissions[index]


def check_hash(signed: PreparedSubmission, idx: int, spec: bytes) -> None:
    """Raise Invalid unless the statement's hash number `idx` is that of `spec`."""
    if not 0 <= idx < len(signed.hashes) // 32:
        raise Invalid("idx is the place of the spec's hash in the statement", field="idx")
    if hashlib.sha256(spec).digest() != signed.hashes[32 * idx : 32 * idx + 32]:
        raise Invalid("the spec is not the one that was signed", field="spec", code="altered")
