"""Logs of Jobs on their way from a Site to a reader. The Hub hands them on and keeps none.

A reader asks the Hub. The Hub puts the wish into the next reply to whoever can read the file: the pilot that
holds the Job, or the Site's agent once it has ended. That one sends a piece back by `POST /v1/logs`, and the
reader who still waits gets it. One wish is one piece of at most `LOG_BYTES`; a reader who wants more asks
again from where the piece ended. So a log may be as long as it likes, and a reader as slow.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec

Offset = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class LogStream(StrEnum):
    """Which of a Job's two outputs."""

    STDOUT = "stdout"
    STDERR = "stderr"


class LogWish(msgspec.Struct, frozen=True, omit_defaults=True):
    """What somebody wants to read. `no` rises; whoever read a wish says the highest in its next request.

    From byte `start` on, or the last `tail` lines (one of them is given). With `wait_s` the answer may
    wait so long for something to be there. `workdir` is relative to the Site's data directory and does not
    include the attempt's own. `environment` is that of a function.
    """

    no: Offset
    job: str
    attempt: int
    workdir: str
    app: str | None = None
    stream: LogStream = LogStream.STDOUT
    start: Offset | None = None
    tail: int | None = None
    wait_s: float = 0.0
    environment: str | None = None


class LogPiece(msgspec.Struct, frozen=True, omit_defaults=True):
    """`POST /v1/logs`: what the wish `wish` found. `size` is the file's at that moment.

    `over`: the attempt has ended, and the piece reaches its end. `note` is for the reader. With `problem`
    (a code) there is nothing to read, and `note` says why.
    """

    wish: Offset
    start: Offset = 0
    size: Offset = 0
    data: bytes = b""
    over: bool = False
    note: str = ""
    problem: str = ""


class LogPage(msgspec.Struct, frozen=True, omit_defaults=True):
    """A piece of one output of one attempt, as bytes (base64 in JSON) from `start` to before `next`.

    `size` is the file's length when it was read. `over`: nothing will follow it. `note` says what the reader
    should know of where the bytes come from.
    """

    job: str
    attempt: int
    stream: LogStream
    start: int
    next: int
    size: int
    data: bytes
    over: bool = False
    note: str = ""
