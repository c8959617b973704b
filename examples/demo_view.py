"""What the demonstration shows: Jobs and simulations while they run, and the table at the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from chappe import Event, JobView

STYLES = {
    "waiting": "dim",
    "runnable": "cyan",
    "running": "bold blue",
    "finished": "green",
    "failed": "bold red",
    "cancelled": "yellow",
}
#: How a simulation's state looks.
SIMULATIONS = {"running": "running", "complete": "finished", "error": "failed"}


@dataclass
class Row:
    """One Job, or one simulation that is none (`job` false), as the live view knows it; times are seconds
    since 1970. `simulation` is the state of the simulation that it `reports`."""

    name: str
    site: str
    state: str = "CREATED"
    phase: str = "waiting"
    started_at: float | None = None
    ended_at: float | None = None
    said: str = ""
    job: bool = True
    reports: bool = False
    simulation: str = ""
    progress: float | None = None
    energy: float | None = None

    @property
    def seconds(self) -> str:
        """How long it has run, or ran."""
        if self.started_at is None:
            return ""
        return f"{(self.ended_at or time.time()) - self.started_at:.1f} s"

    @property
    def told(self) -> str:
        """How far its simulation has come, and the kinetic energy that it told last."""
        progress = "" if self.progress is None else f"{self.progress:4.0%}"
        return f"{progress:>4}" + ("" if self.energy is None else f" {self.energy:6.2f} m2/s2")


@dataclass
class View:
    """The live view: `told` takes Events; on anything but a terminal, changes are lines."""

    console: Console
    rows: Mapping[str, Row]
    began: float = field(default_factory=time.monotonic)
    _heard: asyncio.Event = field(default_factory=asyncio.Event)

    def live(self) -> AbstractContextManager[object]:
        """Draws itself anew several times a second, on a terminal."""
        if not self.console.is_terminal:
            return nullcontext()
        return Live(self, console=self.console, refresh_per_second=8)

    def told(self, event: Event) -> None:
        """Take one change of a Job's state."""
        row = self.rows[event.subject]
        row.state, row.phase = event.new or row.state, event.phase or row.phase
        if event.new == "RUNNING":
            row.started_at = event.occurred_at
        outcome = event.data.get("outcome") or {}
        if row.phase in ("finished", "failed", "cancelled"):
            row.ended_at = event.occurred_at
        if outcome.get("tail"):
            row.said = outcome["tail"].strip().splitlines()[-1]
        if not self.console.is_terminal and event.seq:
            line = f"{row.name:<18} {row.state:<16} {row.seconds:>7} {row.said}"
            self.console.print(line.rstrip(), soft_wrap=True, highlight=False)

    def reported(self, event: Event) -> None:
        """Take what a simulation told."""
        row = self.rows.get(event.data.get("id", ""))
        if row is None:
            return
        before, row.simulation = row.simulation, event.new or row.simulation
        row.progress = event.data.get("progress")
        row.energy = event.data.get("metrics", {}).get("kinetic_energy", row.energy)
        self._heard.set()
        if not self.console.is_terminal and before != row.simulation:
            line = f"{row.name:<18} simulation {row.simulation:<9} {row.told}"
            self.console.print(line.rstrip(), soft_wrap=True, highlight=False)

    async def heard(self) -> None:
        """Wait until a simulation has told something more."""
        self._heard.clear()
        await self._heard.wait()

    def __rich__(self) -> RenderableType:
        table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
        # Fixed widths: what a Job says takes what is left, and no more.
        for name, width in (("Job", 16), ("Site", 14), ("State", 16)):
            table.add_column(name, no_wrap=True, width=width)
        table.add_column("Time", justify="right", no_wrap=True, width=7)
        table.add_column("Simulation", no_wrap=True, width=19)
        table.add_column("stderr", style="dim")
        for row in self.rows.values():
            state = Text(row.state, STYLES[row.phase])
            # Not the column is kept from wrapping but its text: rich narrows only columns that may wrap.
            said = Text(row.said, no_wrap=True, overflow="ellipsis")
            told = Text(row.told, STYLES.get(SIMULATIONS.get(row.simulation, ""), ""))
            table.add_row(row.name, row.site, state if row.job else "", row.seconds, told, said)
        jobs = [row for row in self.rows.values() if row.job]
        done = sum(row.phase in ("finished", "failed", "cancelled") for row in jobs)
        line = f"{done} of {len(jobs)} jobs have ended, {time.monotonic() - self.began:.0f} s"
        return Group(table, Text(line, "bold"))


def size(number: float) -> str:
    """Bytes for a person."""
    for unit in ("B", "KiB"):
        if number < 1024:
            return f"{number:.0f} {unit}"
        number /= 1024
    return f"{number:.1f} MiB"


def final_table(
    views: Sequence[JobView], sites: Mapping[str, str], expected: Mapping[str, str]
) -> Table:
    """What each Job did and used; the mark says whether it ended as it should."""
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    for name in ("", "Member", "Site", "State"):
        table.add_column(name, no_wrap=True)
    for name in ("Attempts", "Wall", "Max RSS", "Written"):
        table.add_column(name, justify="right", no_wrap=True)
    for view in views:
        usage = view.outcome.usage if view.outcome else None
        right = view.state == expected[view.id]
        table.add_row(
            Text("✓", "green") if right else Text("✗", "bold red"),
            view.name,
            sites.get(view.site or "", ""),
            Text(view.state, STYLES[view.phase]),
            str(view.attempt),
            f"{usage.wall_s:.1f} s" if usage else "",
            size(usage.max_rss_bytes) if usage else "",
            size(usage.written_bytes) if usage else "",
        )
    return table
