"""Make the AMQP library read all properties that a broker passes on.

What it cannot read ends the connection. The broker then delivers the same message to the next connection,
which ends as well: one such message would stop all others. Producers that follow libIGCM's specification
send times in microseconds, which the library takes for milliseconds and finds beyond the year 9999; and a
broker passes on texts that are not UTF-8.
"""

from __future__ import annotations

import datetime
import struct
from typing import Any

from pamqp import decode

#: Stands in headers that cannot be read, instead of what they said.
UNREADABLE = "x-unreadable"
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MOST_S = (datetime.datetime.max.replace(tzinfo=datetime.UTC) - _EPOCH).total_seconds() - 1.0
_plain_table = decode.field_table


def time_of(number: int) -> datetime.datetime:
    """A timestamp as it was meant: seconds by the standard, else milli-, micro- or nanoseconds, each of
    which is told by its size. What lies beyond all dates becomes 1970."""
    seconds = float(number)
    while abs(seconds) > 1e11:  # the year 5138 in seconds; 1973 in milliseconds
        seconds /= 1000.0
    return _EPOCH + datetime.timedelta(seconds=seconds) if seconds <= _MOST_S else _EPOCH


def _timestamp(value: bytes) -> tuple[int, datetime.datetime]:
    (number,) = struct.unpack(">Q", value[:8])
    return 8, time_of(number)


def _short_text(value: bytes) -> tuple[int, str]:
    end = value[0] + 1
    return end, value[1:end].decode(errors="replace")


def _table(value: bytes) -> tuple[int, dict[str, Any]]:
    try:
        return _plain_table(value)
    except ValueError:
        (length,) = struct.unpack(">I", value[:4])
        return length + 4, {UNREADABLE: True}


def install() -> None:
    """Put these readers in the place of the library's. May be called again."""
    decode.METHODS["timestamp"] = decode.TABLE_MAPPING[b"T"] = _timestamp
    decode.METHODS["shortstr"] = _short_text
    decode.METHODS["table"] = decode.TABLE_MAPPING[b"F"] = _table
