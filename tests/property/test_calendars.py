"""Dates of models, against cftime."""

from __future__ import annotations

from typing import Any

import cftime  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chappe.core import calendars
from chappe.core.calendars import Calendar, Date, day

THEIRS = {
    Calendar.GREGORIAN: "standard",
    Calendar.PROLEPTIC: "proleptic_gregorian",
    Calendar.NOLEAP: "noleap",
    Calendar.DAYS_360: "360_day",
}
DATES = st.builds(Date, st.integers(1, 9999), st.integers(1, 12), st.integers(1, 31)) | st.builds(
    Date, st.integers(1581, 1583), st.integers(1, 12), st.integers(1, 31)
)


def theirs(date: Date, calendar: Calendar) -> Any:
    return cftime.datetime(*date, calendar=THEIRS[calendar])


@given(DATES, DATES, st.sampled_from(Calendar))
def test_days_between_two_dates(a: Date, b: Date, calendar: Calendar) -> None:
    try:
        expected = (theirs(b, calendar) - theirs(a, calendar)).days
    except ValueError:
        with pytest.raises(ValueError, match=r"\d"):
            day(a, calendar) - day(b, calendar)
    else:
        assert day(b, calendar) - day(a, calendar) == expected


@pytest.mark.parametrize(
    ("text", "date"),
    [
        ("18500230", Date(1850, 2, 30)),
        ("1850-02-30", Date(1850, 2, 30)),
        ("1850-02-30T00:00:00", Date(1850, 2, 30)),
        ("101", None),
        ("00010101", Date(1, 1, 1)),
        ("100000131", Date(10000, 1, 31)),
        ("1850-1-1", Date(1850, 1, 1)),
        ("18501301", None),
        ("18500132", None),
        ("null", None),
        ("", None),
        (None, None),
        ("1850-01-01-01", None),
    ],
)
def test_forms(text: str | None, date: Date | None) -> None:
    assert calendars.date(text) == date


@given(st.text(max_size=20) | st.from_regex(r"[0-9]{3,12}|[0-9-]{5,12}"))
def test_any_text(text: str) -> None:
    found = calendars.date(text)
    if found is not None:
        assert calendars.date(str(found)) == found


def test_names() -> None:
    assert calendars.named("360d") is Calendar.DAYS_360
    assert calendars.named("Leap") is Calendar.GREGORIAN
    assert calendars.named(None) is calendars.named("moon") is None
    card = "[UserChoices]\n  CalendarType=noleap\nJobName=x"
    assert calendars.of_card(card) is Calendar.NOLEAP
    assert calendars.of_card("#CalendarType=noleap") is None


def test_progress() -> None:
    year = Date(1850, 1, 1), Date(1851, 1, 1)
    assert calendars.progress(*year, Date(1850, 1, 1), None) == 0.0
    assert calendars.progress(*year, Date(1850, 7, 1), Calendar.DAYS_360) == 0.5
    assert calendars.progress(*year, Date(1850, 2, 30), None) == 59 / 360
    assert calendars.progress(*year, Date(1850, 2, 30), Calendar.NOLEAP) is None
    assert calendars.progress(*year, Date(1852, 1, 1), None) == 1.0
    assert calendars.progress(*year, Date(1849, 1, 1), None) == 0.0
    assert calendars.progress(year[1], year[0], year[0], None) is None
