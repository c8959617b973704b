"""Timestamps of producers: RFC 3339 and its cousins, to whole nanoseconds since 1970.

`date +"%Y-%m-%dT%H:%M:%S.%N%z"` writes nine digits and an offset without colon; others write `Z`, a
colon, fewer digits or none, or no offset at all. All arithmetic is on integers: a float would lose the
nanoseconds, and with them the order of two messages.
"""

from __future__ import annotations

import re
from functools import lru_cache

NS = 1_000_000_000

_FORM = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:[.,](\d{0,30}))? ?([Zz]|[+-]\d\d(?::?\d\d)?)?",
    re.ASCII,
)
_DAYS_BEFORE = (0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334)
_DAYS_IN = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
#: What 64 bits of nanoseconds hold.
_YEARS = range(1678, 2262)


def parse(text: str) -> tuple[int, bool]:
    """Nanoseconds since 1970 and whether an offset was given; without one it is taken for UTC.

    A leap second is the second after it. Digits beyond the ninth are cut. Raises ValueError.
    """
    found = _FORM.fullmatch(text)
    if found is None:
        raise ValueError(f"{text[:60]!r} is not a time like 2016-04-15T22:05:35.960533073+0200")
    date, hour, minute, second, fraction, offset = found.groups()
    h, m, s = int(hour), int(minute), int(second)
    if h > 23 or m > 59 or s > 60:
        raise ValueError(f"{text[:60]!r}: there is no such time of day")
    seconds = _midnight(date) + h * 3600 + m * 60 + s - (_offset(offset) if offset else 0)
    return seconds * NS + (int(fraction[:9].ljust(9, "0")) if fraction else 0), offset is not None


@lru_cache(maxsize=256)
def _offset(text: str) -> int:
    """Seconds east of UTC."""
    if text in "Zz":
        return 0
    hours, minutes = int(text[1:3]), int(text[-2:]) if len(text) > 3 else 0
    if hours > 23 or minutes > 59:
        raise ValueError(f"{text!r} is not an offset from UTC")
    seconds = hours * 3600 + minutes * 60
    return -seconds if text[0] == "-" else seconds


@lru_cache(maxsize=1024)
def _midnight(date: str) -> int:
    """Seconds since 1970 at which this day began, by UTC."""
    year, month, day = int(date[:4]), int(date[5:7]), int(date[8:])
    if year not in _YEARS:
        raise ValueError(f"{date!r}: years are {_YEARS.start} to {_YEARS.stop - 1}")
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    if not 1 <= month <= 12 or not 1 <= day <= _DAYS_IN[month - 1] + (leap and month == 2):
        raise ValueError(f"{date!r}: there is no such day")
    before = year - 1
    leaps = before // 4 - before // 100 + before // 400
    days = before * 365 + leaps + _DAYS_BEFORE[month - 1] + (leap and month > 2) + day - 1
    return (days - 719_162) * 86_400
