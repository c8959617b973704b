"""Signed submissions: made by the SDK, checked at the Site (wire.submission defines the bytes).

One signature covers the sha256 of up to 1 000 specs, so that signing and checking cost next to nothing per
Job. The Hub stores and forwards the statement; it can neither change it nor make one.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Sequence
from hashlib import sha256

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from chappe.core import limits
from chappe.core.errors import Invalid
from chappe.link.clock import new_id
from chappe.link.keys import SigningKey
from chappe.wire.submission import SIGNATURE_PREFIX, Statement, Submission

_HASH_BYTES = 32


class SignatureProblem(Invalid):
    """A submission does not allow what is asked: `code` is bad_signature | altered | expired."""

    default_code = "bad_signature"


class VerifiedSubmission(msgspec.Struct, frozen=True):
    """A statement whose signature is good. Whether `key` is trusted is another question (link.trust).

    `hashes` are the concatenated sha256 of the specs; `not_after` is in seconds since 1970;
    `max_attempts` replaces the specs' own when it is given. `code` maps the sha256 (hex) of each pickled
    function that came along to its bytes.
    """

    id: str
    key: str
    project: str
    not_after: float
    hashes: bytes
    max_attempts: int | None = None
    code: dict[str, bytes] = {}

    def __len__(self) -> int:
        return len(self.hashes) // _HASH_BYTES

    def hash_at(self, idx: int) -> bytes | None:
        """The sha256 of spec `idx`; None when the statement has no such spec."""
        if not 0 <= idx < len(self):
            return None
        return self.hashes[idx * _HASH_BYTES : (idx + 1) * _HASH_BYTES]


def make_submissions(
    key: SigningKey,
    project: str,
    specs: Sequence[bytes],
    not_after: float,
    max_attempts: int | None = None,
    code: Sequence[bytes] = (),
) -> list[Submission]:
    """Sign the specs: spec k is number k % 1000 of submission k // 1000.

    `not_after` (seconds since 1970) is when the Sites stop accepting them; `max_attempts`, when given,
    replaces the specs' own (a retry beyond them). `code` are the pickled functions that they name; each
    submission carries them all.
    """
    carried = tuple(base64.b64encode(blob).decode() for blob in code)
    submissions = []
    for start in range(0, len(specs), limits.JOBS_PER_SUBMISSION):
        part = specs[start : start + limits.JOBS_PER_SUBMISSION]
        hashes = b"".join([sha256(spec).digest() for spec in part])
        statement = msgspec.json.encode(
            Statement(
                key=key.public_b64,
                project=project,
                not_after=not_after,
                hashes=base64.b64encode(hashes).decode(),
                max_attempts=max_attempts,
                code=carried,
            )
        )
        sig = base64.b64encode(key.sign(SIGNATURE_PREFIX + statement)).decode()
        submissions.append(Submission(id=new_id(), statement=msgspec.Raw(statement), sig=sig))
    return submissions


_statement_decoder = msgspec.json.Decoder(Statement)


def verify(submission: Submission) -> VerifiedSubmission:
    """Check a submission's signature and form. Raises SignatureProblem (bad_signature)."""
    statement = bytes(submission.statement)
    try:
        said = _statement_decoder.decode(statement)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise _bad(f"the statement cannot be read: {e}") from None
    if said.v != 1:
        raise _bad(f"statement version {said.v} is not known here: update this installation")
    public = _b64(said.key, "key")
    hashes = _b64(said.hashes, "hashes")
    signature = _b64(submission.sig, "sig")
    if len(public) != 32:
        raise _bad("the key is not 32 bytes long")
    if not hashes or len(hashes) % _HASH_BYTES:
        raise _bad("the list of hashes is empty or cut off")
    if len(hashes) > _HASH_BYTES * limits.JOBS_PER_SUBMISSION:
        raise _bad(f"more than {limits.JOBS_PER_SUBMISSION} jobs in one statement")
    if not math.isfinite(said.not_after):
        raise _bad("not_after is not a time")
    if said.max_attempts is not None and not 1 <= said.max_attempts <= limits.ATTEMPTS_MAX:
        raise _bad(f"max_attempts must be 1 to {limits.ATTEMPTS_MAX}")
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, SIGNATURE_PREFIX + statement)
    except (InvalidSignature, ValueError):
        raise _bad("the signature does not belong to this statement and key") from None
    if len(said.code) > limits.CODES_PER_SUBMISSION:
        raise _bad(f"more than {limits.CODES_PER_SUBMISSION} functions in one statement")
    blobs = [_b64(blob, "code") for blob in said.code]
    if sum(map(len, blobs)) > limits.CODE_BYTES:
        raise _bad(f"more than {limits.CODE_BYTES} bytes of functions in one statement")
    return VerifiedSubmission(
        id=submission.id,
        key=said.key,
        project=said.project,
        not_after=said.not_after,
        hashes=hashes,
        max_attempts=said.max_attempts,
        code={sha256(blob).hexdigest(): blob for blob in blobs},
    )


def check_grant(
    spec: bytes | msgspec.Raw, verified: VerifiedSubmission, idx: int, now: float
) -> None:
    """Raise SignatureProblem unless `spec` is number `idx` of the statement, and it is still valid."""
    if sha256(spec).digest() != verified.hash_at(idx):
        raise SignatureProblem(
            "the job is not the one that was signed", code="altered", field="spec"
        )
    if now > verified.not_after:
        raise SignatureProblem(
            f"the signature expired {now - verified.not_after:.0f} s ago: submit or retry anew",
            code="expired",
            field="not_after",
        )


def _b64(text: str, field: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise _bad(f"{field} is not base64") from None


def _bad(message: str) -> SignatureProblem:
    return SignatureProblem(message, code="bad_signature", field="submissions")
