"""Server-sent events, the part of the format that the Hub's feed uses (https://html.spec.whatwg.org/#server-sent-events).

Bytes in, messages out; no I/O.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from chappe.core import limits
from chappe.link.transport import BadReply

MESSAGE_BYTES = 4 * limits.MIB
"""Longest message (an Event carries a few KiB at most)."""


class Message(msgspec.Struct, frozen=True):
    """One message: `id` is the position after it (None: unchanged), `data` may be empty."""

    id: str | None
    data: bytes


class Parser:
    """Cuts a stream of bytes into messages; comments (keep-alives) are passed over."""

    def __init__(self) -> None:
        self._rest = b""
        self._id: str | None = None
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> Iterator[Message]:
        """The messages that `chunk` completes. Raises BadReply for one that is too long."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if len(self._rest) + self._size > MESSAGE_BYTES:
            raise BadReply(f"a message of the feed is longer than {MESSAGE_BYTES} bytes")
        for line in (line.removesuffix(b"\r") for line in lines):
            if line:
                self._field(line)
            elif self._data or self._id is not None:
                yield Message(self._id, b"\n".join(self._data))
                self._id, self._data, self._size = None, [], 0

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
            self._size += len(value)
            if self._size > MESSAGE_BYTES:
                raise BadReply(f"a message of the feed is longer than {MESSAGE_BYTES} bytes")
        elif name == b"id":
            self._id = value.decode("ascii", errors="replace")
