"""Signed submissions: what binds a Job's bytes to the person who wrote them.

The signature is Ed25519 over `SIGNATURE_PREFIX` + the statement's bytes exactly as they travel. One
statement covers the sha256 of up to 1 000 specs, and is sent to each Session once.
"""

from __future__ import annotations

import msgspec

SIGNATURE_PREFIX = b"chappe-submission-v1\n"


class Statement(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """What is signed. `hashes` is base64 of the concatenated 32-byte sha256 of the specs, in order.

    `key` is the signer's public key (base64, 32 bytes); `not_after` is in seconds since 1970.
    `max_attempts`, when given, replaces the specs' own: that is how a retry beyond them is signed.
    `code` holds pickled functions and scripts (base64), which its specs name by their sha256: each is sent
    once.
    """

    key: str
    project: str
    not_after: float
    hashes: str
    max_attempts: int | None = None
    v: int = 1
    code: tuple[str, ...] = ()


class Submission(msgspec.Struct, frozen=True, gc=False):
    """A statement's bytes, verbatim, and the base64 of their signature."""

    id: str
    statement: msgspec.Raw
    sig: str
