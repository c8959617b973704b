"""What a run tells while it goes: its start and end, its segments, and its energy at each record.

As a Job it is told to whom by its environment; by hand it tells nothing, unless CHAPPE_EMIT_SPOOL or
CHAPPE_EMIT_TRANSPORTS says where to.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from barotropic import DAY_S, Model
from chappe import emit
from output import CALENDAR, Identity

FIRST_YEAR = 2000
MODEL = "barotropic"
ENERGY = "kinetic_energy"


class Report:
    """Tells nothing."""

    def record(self, model: Model) -> None:
        """The history has a record of the present state."""

    def segment(self, first: int, last: int) -> None:
        """The output from day `first` to day `last` is complete."""


class Told(Report):
    """Tells, of the present simulation."""

    def record(self, model: Model) -> None:
        """Its energy."""
        day = int(model.time_s / DAY_S)
        emit.metric(ENERGY, model.energy(), step=model.step_number, time=date(day, "-"))

    def segment(self, first: int, last: int) -> None:
        """A period, whose number is that of its last day."""
        begin, end = date(first), date(last)
        emit.message("job.period", CumulPeriod=last, PeriodDateBegin=begin, PeriodDateEnd=end)


@contextmanager
def simulation(model: Model, identity: Identity, days: int) -> Iterator[Report]:
    """Tell of the run in the block: what is raised out of it is its fatal end."""
    if not {"CHAPPE_EMIT_SPOOL", "CHAPPE_EMIT_TRANSPORTS"} & os.environ.keys():
        yield Report()
        return
    which = identity.get("seed", f"{identity.get('mode_x')}x{identity.get('mode_y')}")
    with emit.simulation(
        continues=model.step_number > 0,
        name=f"{identity['experiment']}-{which}",
        model=MODEL,
        experiment=identity["experiment"],
        machine=os.environ.get("CHAPPE_SITE", os.uname().nodename),
        login=os.environ.get("USER", ""),
        startDate=date(0, "-"),
        endDate=date(days, "-"),
        calendar=CALENDAR,
    ):
        yield Told()


def date(day: int, between: str = "") -> str:
    """The date of a day of the run, in a calendar without leap years."""
    year, day = divmod(day, 365)
    month = 1
    for days in (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30):
        if day < days:
            break
        day -= days
        month += 1
    return between.join((f"{FIRST_YEAR + year}", f"{month:02}", f"{day + 1:02}"))
