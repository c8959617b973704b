"""Dates of models: 30 February is one in a calendar of 360 days. Whole numbers only.

Dates are written `18500230` or `1850-02-30`, possibly with a time of day behind, which is not looked at.
"""

from __future__ import annotations

import re
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple


class Calendar(StrEnum):
    """How years are divided. GREGORIAN is Julian until 4 October 1582, as the world was."""

    GREGORIAN = "gregorian"
    PROLEPTIC = "proleptic"
    NOLEAP = "noleap"
    DAYS_360 = "360_day"


class Date(NamedTuple):
    """A day of a model. Dates of one calendar sort by time."""

    year: int
    month: int
    day: int

    def __str__(self) -> str:
        return f"{self.year:04d}-{self.month:02d}-{self.day:02d}"


_NAMES = {
    "standard": Calendar.GREGORIAN,
    "leap": Calendar.GREGORIAN,
    "proleptic_gregorian": Calendar.PROLEPTIC,
    "365_day": Calendar.NOLEAP,
    "360d": Calendar.DAYS_360,
} | {str(c): c for c in Calendar}

_FORM = re.compile(
    r"(?:(\d{1,6})-(\d{1,2})-(\d{1,2})|(\d{1,6})(\d\d)(\d\d))(?:[T _].{0,40})?", re.ASCII
)
_IN_CARD = re.compile(r"^[ \t]*CalendarType[ \t]*=[ \t]*[\"']?(\w+)", re.MULTILINE | re.ASCII)
_BEFORE = (0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334, 365)


def named(text: str | None) -> Calendar | None:
    """The calendar that libIGCM or CF calls so; None for other names."""
    return _NAMES.get((text or "").strip().lower())


def of_card(card: str) -> Calendar | None:
    """The calendar that a configuration card names, if it does."""
    found = _IN_CARD.search(card)
    return named(found[1]) if found else None


@lru_cache(maxsize=4096)
def date(text: str | None) -> Date | None:
    """The date in `text`; None if there is none. Whether a calendar has it, `day` tells."""
    found = _FORM.fullmatch((text or "").strip())
    if found is None:
        return None
    year, month, day = (int(part) for part in found.groups() if part is not None)
    return Date(year, month, day) if 1 <= month <= 12 and 1 <= day <= 31 else None


def day(date: Date, calendar: Calendar) -> int:
    """The number of a day; they follow one another without gaps. Raises ValueError for one that the calendar
    does not have."""
    year, month, of_month = date
    if calendar is Calendar.DAYS_360:
        if of_month > 30:
            raise ValueError(f"{date}: months have 30 days")
        return year * 360 + (month - 1) * 30 + of_month - 1
    julian = calendar is Calendar.GREGORIAN and date < (1582, 10, 15)
    if julian and date > (1582, 10, 4):
        raise ValueError(f"{date}: was left out when the calendar was changed")
    leap = calendar is not Calendar.NOLEAP and _is_leap(year, julian)
    length = _BEFORE[month] - _BEFORE[month - 1] + (leap and month == 2)
    if of_month > length:
        raise ValueError(f"{date}: the month has {length} days")
    of_year = _BEFORE[month - 1] + (leap and month > 2) + of_month - 1
    if calendar is Calendar.NOLEAP:
        return year * 365 + of_year
    before = year - 1
    leaps = before // 4 - (2 if julian else before // 100 - before // 400)
    return year * 365 + leaps + of_year


def progress(begin: Date, end: Date, reached: Date, declared: Calendar | None) -> float | None:
    """How much of begin … end is done when `reached` is, from 0 to 1; None when nobody can tell.

    Without a declared calendar the dates decide: the world's, unless it lacks one of them.
    """
    for calendar in (declared,) if declared else (Calendar.GREGORIAN, Calendar.DAYS_360):
        try:
            first, last, now = (day(d, calendar) for d in (begin, end, reached))
        except ValueError:
            continue
        if last <= first:
            return None
        return min(1.0, max(0.0, (now - first) / (last - first)))
    return None


def _is_leap(year: int, julian: bool) -> bool:
    return year % 4 == 0 and (julian or year % 100 != 0 or year % 400 == 0)
