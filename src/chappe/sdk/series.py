"""Scalar series of a simulation: as they are, for pandas and for xarray."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from chappe.sdk.errors import Invalid
from chappe.wire.metrics import SeriesView


class Metrics:
    """The series of a simulation, by name and job. A point is a value, or a bucket of several."""

    def __init__(self, series: list[SeriesView]) -> None:
        self.series = series

    def __repr__(self) -> str:
        return f"<Metrics {', '.join(self.names) or 'none'}>"

    def __iter__(self) -> Iterator[SeriesView]:
        return iter(self.series)

    def __len__(self) -> int:
        return len(self.series)

    @property
    def names(self) -> list[str]:
        """What there are series of."""
        return sorted({one.name for one in self.series})

    def rows(self) -> list[dict[str, Any]]:
        """One flat dict a point: name, job, at (UTC), step and time of the model, min, max, mean, count."""
        return [
            {
                "name": one.name,
                "job": one.job,
                "at": datetime.fromtimestamp(point.at, UTC),
                "step": point.step,
                "time": point.time,
                "min": point.min,
                "max": point.max,
                "mean": point.mean,
                "count": point.count,
            }
            for one in self.series
            for point in one.points
        ]

    def to_pandas(self) -> Any:
        """A pandas.DataFrame of `rows`. Raises Invalid when pandas is not installed."""
        try:
            import pandas as pd  # type: ignore[import-untyped,import-not-found,unused-ignore]
        except ImportError:
            raise Invalid("pandas is not installed: pip install pandas", code="no_pandas") from None
        return pd.DataFrame(self.rows())

    def to_xarray(self) -> Any:
        """An xarray.Dataset: each name's mean over its points, along a dimension `point`, padded with NaN at
        the end, with when it was sent as `NAME_at`. Raises Invalid when xarray is not installed."""
        try:
            import numpy as np
            import xarray as xr  # type: ignore[import-untyped,import-not-found,unused-ignore]
        except ImportError:
            raise Invalid("xarray is not installed: pip install xarray", code="no_xarray") from None
        rows = self.rows()
        of_name = {n: [row for row in rows if row["name"] == n] for n in self.names}
        longest = max((len(some) for some in of_name.values()), default=0)
        variables: dict[str, Any] = {}
        for name, some in of_name.items():
            ordered = sorted(some, key=lambda row: row["at"])
            means = np.full(longest, np.nan)
            means[: len(some)] = [np.nan if r["mean"] is None else r["mean"] for r in ordered]
            times = np.full(longest, np.datetime64("NaT", "us"))
            times[: len(some)] = [r["at"].replace(tzinfo=None) for r in ordered]
            variables[name] = ("point", means)
            variables[f"{name}_at"] = ("point", times.astype("datetime64[ns]"))
        return xr.Dataset(variables)
