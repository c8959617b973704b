"""Identifiers: client-made UUIDs of version 7 (RFC 9562), so that a retried request names the same thing.

The first 48 bits are milliseconds since the Unix epoch: ids sort by creation, index pages stay warm,
and the Hub can refuse an id older than the tombstones that would recognise it.
"""

from __future__ import annotations

import re
from typing import NewType

from chappe.core.errors import Invalid

JobId = NewType("JobId", str)
SiteId = NewType("SiteId", str)
SessionId = NewType("SessionId", str)
BatchJobId = NewType("BatchJobId", str)
SubmissionId = NewType("SubmissionId", str)

#: 2025-01-01T00:00:00Z
_NUMBERS_FROM_MS = 1_735_689_600_000

_UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


def uuid7(ms: int, entropy: bytes) -> str:
    """The UUIDv7 of `ms` (milliseconds since the Unix epoch) and 10 random bytes, as canonical text."""
    n = (ms & 0xFFFF_FFFF_FFFF) << 80 | int.from_bytes(entropy, "big")
    n = n & ~(0xF << 76) | 0x7 << 76
    n = n & ~(0x3 << 62) | 0x2 << 62
    h = f"{n:032x}"
    return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"


def is_uuid7(text: str) -> bool:
    """Whether `text` is a UUIDv7 in canonical form (lower case, hyphens)."""
    return _UUID7.fullmatch(text) is not None


def created_ms(uuid: str) -> int:
    """Milliseconds since the Unix epoch that a UUIDv7 carries."""
    return int(uuid[:8] + uuid[9:13], 16)


def number_of(uuid: str) -> int:
    """The number by which batch systems' commands name a Job: its time (milliseconds since 2025)
    and the 12 bits behind the version.

    It is below 2^53, so that no program that reads
    JSON loses digits, and found again by `beginning_of` without anything being kept.
    """
    ms = (created_ms(uuid) - _NUMBERS_FROM_MS) % (1 << 41)
    return ms << 12 | int(uuid[15:18], 16)


def beginning_of(number: int) -> str:
    """How an id with this number begins. Raises Invalid for a number that no id has."""
    if not 0 <= number < 1 << 53:
        raise Invalid(f"{number} is no job's number", field="id")
    ms = f"{(number >> 12) + _NUMBERS_FROM_MS:012x}"
    return f"{ms[:8]}-{ms[8:]}-7{number & 0xFFF:03x}"


def check_id(text: str, field: str) -> str:
    """`text` if it is a UUIDv7, else Invalid naming `field`."""
    if not is_uuid7(text):
        raise Invalid(f"{text[:60]!r} is not a UUIDv7 in lower case with hyphens", field=field)
    return text
