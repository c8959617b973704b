"""The EventLog on the wire: by cursor, and as a stream of server-sent events.

A cursor is `incarnation:seq`, the last Event that was read. Cursors of an older incarnation of the Hub
are answered 410 `cursor_reset`: the log they belong to was replaced by a backup. The Hub may cut the log's
beginning: a cursor from before it is answered 410 `cursor_too_old`, with `first_seq` in the details.
"""

from __future__ import annotations

from typing import Any

import msgspec

WIRE_VERSION = 1


class Event(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One thing that the Hub concluded. `kind` is job (a change of state: `old` → `new`) | job.deleted |
    job.held | job.released | job.updated | session | batch_job | site |
    elastic (what a Site's agent decided about allocations) | simulation (its state: `old` → `new`, which may
    be the same); `subject` is the id it is about.
    `occurred_at` is the producer's clock, `received_at` the Hub's (seconds since 1970). `phase` is the phase
    that a Job's `new` belongs to."""

    seq: int
    kind: str
    subject: str
    received_at: float
    occurred_at: float
    old: str | None = None
    new: str | None = None
    phase: str | None = None
    attempt: int = 0
    epoch: int = 0
    data: dict[str, Any] = {}


class EventPage(msgspec.Struct, frozen=True):
    """Events after the given cursor, and the cursor to continue from."""

    events: list[Event]
    cursor: str


class ErrorBody(msgspec.Struct, frozen=True, omit_defaults=True):
    """What every error answer holds."""

    code: str
    message: str
    transient: bool = False
    field: str | None = None
    details: Any = None


class ErrorReply(msgspec.Struct, frozen=True):
    """The body of every answer with a status of 400 or above."""

    error: ErrorBody


def cursor_of(incarnation: int, seq: int) -> str:
    """The cursor after Event `seq` in an incarnation of the Hub."""
    return f"{incarnation}:{seq}"


def parse_cursor(text: str) -> tuple[int, int]:
    """(incarnation, seq) of a cursor; ValueError when it is none."""
    incarnation, seq = text.split(":")
    return int(incarnation), int(seq)
