"""Reader of the spool files that producers write (`chappe.emit` and its shell script).

    chappe-spool 1 STREAM HOST BOOT PID TICKS direct|agent
    SHA256 MESSAGE
    end

A producer may be killed, its disk may be full, its file system may show a write in two halves: a line
counts when it ends and its sha256 is right. What does not end yet is left for later; a line that ends and is
wrong is *damage*, is counted, and the lines behind it still count, each by its own sum. The numbers within
the messages then show what is missing. Memory is bounded whatever a file holds.
"""

from __future__ import annotations

import hashlib
import os
from typing import NamedTuple

from chappe.core import limits

SPOOL = "spool"
"""Name of the folder, in a Site's data directory, where Jobs leave their files."""
SUFFIX = ".spool"
SENT_SUFFIX = ".sent"
MAGIC = "chappe-spool 1"
MESSAGE_BYTES = 256 * limits.KIB
"""Longest message of a producer; a line is as long and its sum longer."""
PIECE_BYTES = limits.MIB
"""How much is read at a time."""

_END = b"end"
_SUM_CHARS = 64
_HEADER_WORDS = 8


class Header(NamedTuple):
    """Who writes a spool file. `host`, `boot` and `ticks` (its start) tell its process from any other.

    `direct`: the writer sends by itself, and the file is for what it could not.
    """

    stream: str
    host: str
    boot: str
    pid: int
    ticks: str
    direct: bool


class Piece(NamedTuple):
    """What stands behind an offset: good messages, the offset behind them, how many lines were damaged,
    and whether the writer said that nothing will follow."""

    messages: list[bytes]
    end: int
    damaged: int
    ended: bool


def header_of(line: bytes) -> Header | None:
    """The first line of a spool file; None for anything else, and for one that is not whole yet."""
    words = line.decode("utf-8", "replace").split(" ")
    if not line.endswith(b"\n") or len(words) != _HEADER_WORDS:
        return None
    if f"{words[0]} {words[1]}" != MAGIC or not words[5].isdigit() or len(words[5]) > 10:
        return None
    return Header(words[2], words[3], words[4], int(words[5]), words[6], words[7] == "direct\n")


def read_header(path: str) -> Header | None:
    """The header of a file. Raises OSError."""
    with open(path, "rb") as file:
        return header_of(file.readline(1000))


def read(path: str, offset: int, most: int = 1000) -> Piece:
    """The next piece of a file, of at most `most` messages. Raises OSError."""
    with open(path, "rb") as file:
        file.seek(offset)
        data = file.read(PIECE_BYTES)
    return parse(data, offset, most)


def parse(data: bytes, offset: int, most: int = 1000) -> Piece:
    """The piece in `data`, which stands at `offset` of its file."""
    messages: list[bytes] = []
    damaged, at, ended = 0, 0, False
    while len(messages) < most:
        stop = data.find(b"\n", at)
        if stop < 0:
            if at == 0 and len(data) >= PIECE_BYTES:
                return Piece(messages, offset + len(data), damaged + 1, False)  # no line is so long
            break
        line = data[at:stop]
        ended = line == _END
        message = message_of(line)
        if message is not None:
            messages.append(message)
        elif line and not ended and not (offset + at == 0 and header_of(line + b"\n")):
            damaged += 1
        at = stop + 1
    return Piece(messages, offset + at, damaged, ended and at == len(data))


def message_of(line: bytes) -> bytes | None:
    """The message of a line without its end; None for a line that does not count."""
    if line[_SUM_CHARS : _SUM_CHARS + 1] != b" ":
        return None
    message = line[_SUM_CHARS + 1 :]
    if len(message) > MESSAGE_BYTES:
        return None
    good = hashlib.sha256(message).hexdigest().encode() == line[:_SUM_CHARS]
    return message if good else None


def sent(path: str) -> int:
    """Up to where the writer of a file, or another that drained it, got everything confirmed."""
    try:
        with open(path + SENT_SUFFIX, encoding="ascii") as file:
            return max(0, int(file.read(32)))
    except (OSError, ValueError):
        return 0


def writer_is_gone(header: Header) -> bool:
    """Whether the writer is known to be dead: it ran on this machine, and does so no more."""
    if header.host != os.uname().nodename or header.boot == "-":
        return False
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            if file.read().strip() != header.boot:
                return True
        with open(f"/proc/{header.pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(") ")[2].split()[19] != header.ticks
    except (FileNotFoundError, ProcessLookupError):
        return os.path.exists("/proc/self/stat")
    except OSError:
        return False
