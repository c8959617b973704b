"""Public keys as texts: base64 of an Ed25519 key's 32 bytes, and the fingerprints that people compare."""

from __future__ import annotations

import base64
import binascii
import hashlib

_BYTES = 32


def is_public_key(text: str) -> bool:
    """Whether this is one."""
    try:
        return len(base64.b64decode(text, validate=True)) == _BYTES
    except (binascii.Error, ValueError):
        return False


def fingerprint(key: str) -> str:
    """What stands for a public key where it is read aloud or compared: `SHA256:` and 43 characters."""
    digest = hashlib.sha256(base64.b64decode(key, validate=True)).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")
