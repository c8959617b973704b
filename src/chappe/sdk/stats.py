"""Figures of a period, for programs and notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from chappe.link.http import HubClient
from chappe.sdk.errors import Invalid
from chappe.wire.stats import Spread, Stats, StatsGroup


class JobStats:
    """What was done between `since` and `until`: a list of StatsGroup, and a table of it.

    With `one_in` above 1 only one Job in so many was looked at, and the numbers are estimates.
    """

    def __init__(self, found: Stats, sites: dict[str, str]) -> None:
        self.since = datetime.fromtimestamp(found.since, UTC)
        self.until = datetime.fromtimestamp(found.until, UTC)
        self.jobs = found.jobs
        self.one_in = found.one_in
        self.groups: list[StatsGroup] = found.groups
        self._sites = sites

    def __repr__(self) -> str:
        return f"<JobStats of {self.jobs} jobs in {len(self.groups)} groups>"

    def rows(self) -> list[dict[str, Any]]:
        """One flat dict a group, Sites by name; times in seconds, None where there is nothing to say."""
        return [self._row(group) for group in self.groups]

    def to_pandas(self) -> Any:
        """A pandas.DataFrame of `rows`. Raises Invalid when pandas is not installed."""
        try:
            import pandas as pd  # type: ignore[import-untyped,import-not-found,unused-ignore]
        except ImportError:
            raise Invalid("pandas is not installed: pip install pandas", code="no_pandas") from None
        return pd.DataFrame(self.rows())

    def _row(self, group: StatsGroup) -> dict[str, Any]:
        site = None if group.site is None else self._sites.get(group.site, group.site)
        row: dict[str, Any] = {
            "site": site,
            "app": group.app,
            "finished": group.finished,
            "failed": group.failed,
            "cancelled": group.cancelled,
            "per_hour": group.per_hour,
            "core_hours": group.core_hours,
            "offered_core_hours": group.offered_core_hours,
            "utilisation": group.utilisation,
        }
        return row | _flat("wait", group.wait) | _flat("run", group.run)


def _flat(name: str, spread: Spread | None) -> dict[str, Any]:
    return {
        f"{name}_{which}_s": None if spread is None else getattr(spread, which)
        for which in ("median", "p90", "p99")
    }


async def fetch(
    hub: HubClient,
    since: float | datetime | None,
    until: float | datetime | None,
    by: Sequence[str],
) -> Stats:
    """Ask the Hub. `by` empty: one group for all."""
    params: dict[str, Any] = {"by": list(by) or ["nothing"]}
    for name, time in (("since", since), ("until", until)):
        if time is not None:
            params[name] = repr(seconds(name, time))
    return await hub.request("GET", "/v1/stats", reply=Stats, params=params)


def seconds(name: str, time: float | datetime) -> float:
    """A time in seconds since 1970. Raises Invalid for a datetime without a time zone."""
    if not isinstance(time, datetime):
        return float(time)
    if time.tzinfo is None:
        raise Invalid(f"{name} needs a time zone: datetime.now(UTC)", field=name)
    return time.timestamp()
