"""A bar for long waits: how many Jobs have ended, how, and how fast."""

from __future__ import annotations

from collections import Counter
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID


class Progress:
    """Counts ended Jobs; drawn on stderr when `shown` and somebody looks (a terminal or a notebook)."""

    def __init__(self, total: int, *, shown: bool) -> None:
        self._total = total
        self._phases: Counter[str] = Counter()
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        if shown:
            self._bar = _make_bar()
            self._task = self._bar.add_task("", total=total, words="")

    def ended(self, phase: str) -> None:
        """One more Job has ended in `phase`."""
        self._phases[phase] += 1
        if self._bar is not None and self._task is not None:
            bad = " ".join(
                f"[{style}]{self._phases[one]} {one}[/]"
                for one, style in (("failed", "red"), ("cancelled", "yellow"))
                if self._phases[one]
            )
            self._bar.update(self._task, advance=1, words=bad)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


def _make_bar() -> Bar:
    # Here: most programs that wait draw nothing, and rich takes 50 ms to import.
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    return Bar(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("jobs"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[words]}"),
        console=console,
        disable=not (console.is_terminal or console.is_jupyter),
    )
