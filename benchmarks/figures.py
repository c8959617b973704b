"""The arithmetic of the table: medians, percentiles, and whether a bound is met."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Row(NamedTuple):
    """One line of the table. Without a bound it is a reference, or shown for information.

    `peer` quotes other systems' figures with their conditions; they were not measured in this run.
    """

    key: str
    what: str
    unit: str
    bound: float | None = None
    at_least: bool = True
    peer: str = ""


def median(samples: Sequence[float]) -> float:
    """The median; of an even number of samples, the mean of the middle two."""
    return statistics.median(samples)


def percentile(samples: Sequence[float], percent: float) -> float:
    """The smallest sample that at least `percent` of all do not exceed (nearest rank)."""
    if not samples:
        raise ValueError("no samples")
    if not 0 < percent <= 100:
        raise ValueError(f"{percent} is not a percentage above 0")
    rank = math.ceil(len(samples) * percent / 100)
    return sorted(samples)[rank - 1]


def met(row: Row, value: float) -> bool | None:
    """Whether a value keeps its row's bound; None when there is none."""
    if row.bound is None:
        return None
    return value >= row.bound if row.at_least else value <= row.bound


def shown(value: float) -> str:
    """A number for people: three significant figures, thousands set apart, no exponent."""
    if value == 0:
        return "0"
    digits = 2 - math.floor(math.log10(abs(value)))
    rounded = round(value, digits)
    # Rounding may carry into a digit more: 99.96 has three significant figures as 100.
    digits = 2 - math.floor(math.log10(abs(rounded)))
    return f"{rounded:,.{max(digits, 0)}f}".replace(",", " ")


def bound_shown(row: Row) -> str:
    """The bound with its direction, or nothing."""
    return "" if row.bound is None else f"{'≥' if row.at_least else '≤'} {shown(row.bound)}"
