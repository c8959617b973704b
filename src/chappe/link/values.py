"""What functions return: values sealed by their Site.

A worker hands its pilot a *reference*, which travels through journals as text: the media type, and either
the bytes themselves or the file that holds them. Whoever delivers the result (the pilot, or the undertaker
after it) seals it: the Site's own key signs the Job, the attempt and the sha256 of the bytes. The Hub stores
what it cannot open to good purpose; the SDK loads a pickle only from an envelope whose Job is the one that it
asked about and whose key is the one that it knows this Site by. So a stolen Hub can withhold a value, and
cannot make one.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from chappe.core.errors import Invalid
from chappe.link.journal import End
from chappe.link.keys import KeyProblem, SigningKey, load_or_create
from chappe.link.results import (
    MEDIA,
    VALUE,
    Result,
    ResultProblem,
    check_bytes,
    check_result,
    read_bounded,
)

MSGPACK = MEDIA[".msgpack"]
NPY = MEDIA[".npy"]
ARROW = MEDIA[".arrow"]
PICKLE = "application/x-python-pickle"
EXCEPTION = "application/vnd.chappe.exception"
REFERENCE = "application/vnd.chappe.reference"

PREFIX = b"chappe-value-v1\n"
KEY_FILE = "signing_key"
"""The Site's own key, in its `secrets/`."""

_SCHEME = "value:"
_INLINE = ";base64,"
_HEAD = 100
ERROR, VALUE_LEFT = ".error", ".value"
"""The suffixes of what ranks leave: the reference of an exception, or of rank 0's value."""

MISSING = "value:"
"""The reference of a call that is to give a value and has not."""


class ValueProblem(Invalid):
    """An envelope is not what it should be; nothing in it was loaded. `code` is value_bad (altered, or
    another Job's) or site_key."""

    default_code = "value_bad"


class Statement(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the Site signs. `key` is its public key (base64), `sha256` (hex) that of the body."""

    site: str
    job: str
    attempt: int
    media: str
    sha256: str
    key: str
    v: int = 1


class Envelope(msgspec.Struct, frozen=True, array_like=True):
    """A sealed value as it travels: the statement's bytes, its signature, and the body."""

    statement: bytes
    sig: bytes
    body: bytes


class RemoteException(msgspec.Struct, frozen=True, omit_defaults=True):
    """An exception, for people as text and for the SDK as a pickle (None when it has none)."""

    type: str
    message: str
    traceback: str
    pickle: bytes | None = None


class SiteFileRef(msgspec.Struct, frozen=True):
    """A result that stayed at its Site: `path` is relative to the Site's data directory."""

    path: str
    size_bytes: int
    sha256: str
    media: str


class Opened(NamedTuple):
    """A value whose signature is good. Whether the key is the Site's is for the reader to know."""

    statement: Statement
    body: bytes


def inline(media: str, body: bytes) -> str:
    """The reference that holds a small body itself."""
    return f"{_SCHEME}{media}{_INLINE}{base64.b64encode(body).decode()}"


def in_file(media: str, path: str) -> str:
    """The reference to a body in a file (absolute path)."""
    return f"{_SCHEME}{media};file,{path}"


def left_at(stem: str) -> str:
    """The reference to what the ranks of a function leave at `stem` (absolute path, without suffix)."""
    return f"{_SCHEME};left,{stem}"


def is_left(reference: str) -> bool:
    """Whether `left_at` made it."""
    return reference.startswith(f"{_SCHEME};left,")


class Seal:
    """Seals values for one Site. The key is made on first use, by whoever is first."""

    def __init__(self, site: str, secrets: Path) -> None:
        self._site = site
        self._path = secrets / KEY_FILE
        self._key: SigningKey | None = None

    def key(self) -> SigningKey:
        """The Site's key. Raises KeyProblem."""
        if self._key is None:
            self._key = load_or_create(self._path)
        return self._key

    @property
    def loaded(self) -> bool:
        """Whether the key is at hand."""
        return self._key is not None

    def result(self, reference: str, job: str, attempt: int) -> Result:
        """The sealed result that a reference stands for. Raises ResultProblem, KeyProblem."""
        media, body = _resolve(reference)
        key = self.key()
        said = Statement(
            self._site, job, attempt, media, hashlib.sha256(body).hexdigest(), key.public_b64
        )
        statement = msgspec.json.encode(said)
        data = msgspec.msgpack.encode(Envelope(statement, key.sign(PREFIX + statement), body))
        check_bytes(VALUE, data)
        return Result(VALUE, hashlib.sha256(data).hexdigest(), data)


def delivered(end: End, seal: Seal) -> Result:
    """The result that an end names, as it goes to the Hub: a function's value sealed, an App's file as it
    is. Raises ResultProblem."""
    if not end.result.startswith(_SCHEME):
        return check_result(Path(end.result))
    try:
        return seal.result(end.result, end.job, end.attempt)
    except KeyProblem as e:
        raise ResultProblem(f"the site cannot sign it: {e.message}", code="site_key") from e


def delivered_at_once(end: End, seal: Seal) -> Result | None:
    """As `delivered`, without touching a disk; None where that cannot be."""
    if not seal.loaded or not end.result.startswith(_SCHEME) or _INLINE not in end.result[:_HEAD]:
        return None
    return delivered(end, seal)


_envelope = msgspec.msgpack.Decoder(Envelope)
_statement = msgspec.json.Decoder(Statement)


def unseal(data: bytes, job: str, key_of: Callable[[str, str], str]) -> Opened:
    """Check the envelope `data` of `job`. `key_of` gives the key that a Site (its id) is known by, when
    told which one the envelope names; nothing is returned unless the two are the same. Raises ValueProblem.
    """
    try:
        envelope = _envelope.decode(data)
        said = _statement.decode(envelope.statement)
        public = base64.b64decode(said.key, validate=True)
        Ed25519PublicKey.from_public_bytes(public).verify(envelope.sig, PREFIX + envelope.statement)
    except InvalidSignature:
        raise ValueProblem("the site's signature does not fit: the result was altered") from None
    except (msgspec.MsgspecError, binascii.Error, ValueError, RecursionError) as e:
        raise ValueProblem(f"the result is no sealed value: {e}") from None
    if said.v != 1:
        raise ValueProblem(f"sealed values of version {said.v} are not known: update Chappe")
    if said.job != job:
        raise ValueProblem(f"the hub gave the result of another job, {said.job[:60]!r}")
    if hashlib.sha256(envelope.body).hexdigest() != said.sha256:
        raise ValueProblem("the result was altered after its site signed it")
    if key_of(said.site, said.key) != said.key:
        raise ValueProblem("it is signed by another key than its site's", code="site_key")
    return Opened(said, envelope.body)


def _left(stem: str) -> str:
    path = Path(stem + ERROR)
    if not path.exists():
        path = Path(stem + VALUE_LEFT)
    try:
        return read_bounded(path).decode()
    except (ResultProblem, UnicodeDecodeError):
        raise ResultProblem("its ranks left no value", code="result_missing") from None


def _resolve(reference: str, *, nested: bool = False) -> tuple[str, bytes]:
    head, _, rest = reference.removeprefix(_SCHEME).partition(",")
    media, _, form = head.partition(";")
    if form == "left" and not nested:
        return _resolve(_left(rest), nested=True)
    if form == "file":
        return media, read_bounded(Path(rest))
    if form != "base64":
        raise ResultProblem("its worker ended without a value", code="result_missing")
    try:
        return media, base64.b64decode(rest, validate=True)
    except (binascii.Error, ValueError):
        raise ResultProblem("its worker gave no value that can be read") from None
