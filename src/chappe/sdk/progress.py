"""A bar for long waits: how many Jobs have ended, how, and how fast.

In a terminal it is drawn by rich; in a notebook it is one piece of HTML that is replaced as the wait goes on,
so no extension is needed; elsewhere (a pipe, a log) nothing is drawn.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable
from html import escape
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

#: A notebook is sent a new picture at most so often (seconds).
EVERY_S = 0.2
_COLOURS = {"finished": "#2e7d32", "failed": "#c62828", "cancelled": "#f9a825"}


class View(Protocol):
    """What draws: `show` may be called as often as Jobs end."""

    def start(self) -> None:
        """Draw it empty."""

    def show(self, phases: Counter[str]) -> None:
        """Draw how many have ended in which phase."""

    def stop(self, phases: Counter[str]) -> None:
        """Draw the last state, and leave it there."""


class Progress:
    """Counts ended Jobs; drawn when `shown` and somebody looks (a terminal or a notebook)."""

    def __init__(self, total: int, *, shown: bool) -> None:
        self._phases: Counter[str] = Counter()
        self._view = _view(total) if shown else None

    def ended(self, phase: str) -> None:
        """One more Job has ended in `phase`."""
        self._phases[phase] += 1
        if self._view is not None:
            self._view.show(self._phases)

    def __enter__(self) -> Self:
        if self._view is not None:
            self._view.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._view is not None:
            self._view.stop(self._phases)


def _view(total: int) -> View:
    display = notebook()
    return Terminal(total) if display is None else Notebook(total, display)


def notebook() -> Callable[..., Any] | None:
    """IPython's `display` when this process is a notebook's kernel; IPython is not imported for that."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    if shell is None or not hasattr(shell, "kernel"):
        return None
    from IPython.display import display  # type: ignore[import-not-found,unused-ignore]

    found: Callable[..., Any] = display
    return found


class Terminal:
    """A bar on stderr, where that is a terminal."""

    def __init__(self, total: int) -> None:
        self._bar = _bar()
        self._task = self._bar.add_task("", total=total, words="")

    def start(self) -> None:
        """Draw it empty."""
        self._bar.start()

    def show(self, phases: Counter[str]) -> None:
        """Draw how many have ended in which phase."""
        bad = " ".join(
            f"[{style}]{phases[one]} {one}[/]"
            for one, style in (("failed", "red"), ("cancelled", "yellow"))
            if phases[one]
        )
        self._bar.update(self._task, completed=phases.total(), words=bad)

    def stop(self, phases: Counter[str]) -> None:
        """Leave the last state there."""
        self._bar.stop()


class Notebook:
    """A bar in a notebook's output, replaced a few times a second."""

    def __init__(
        self,
        total: int,
        display: Callable[..., Any],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total = total
        self._display = display
        self._clock = clock
        self._began = self._drawn = clock()
        self._handle: Any = None

    def start(self) -> None:
        """Draw it empty."""
        self._handle = self._display(_Html(self._html(Counter())), display_id=True)

    def show(self, phases: Counter[str]) -> None:
        """Draw how many have ended in which phase, unless that was done a moment ago."""
        if self._clock() - self._drawn >= EVERY_S:
            self._draw(phases)

    def stop(self, phases: Counter[str]) -> None:
        """Draw the last state, and leave it there."""
        self._draw(phases)

    def _draw(self, phases: Counter[str]) -> None:
        self._drawn = self._clock()
        if self._handle is not None:
            self._handle.update(_Html(self._html(phases)))

    def _html(self, phases: Counter[str]) -> str:
        parts = "".join(
            f'<div style="width:{100 * phases[phase] / max(self._total, 1):.2f}%;background:{colour}"></div>'
            for phase, colour in _COLOURS.items()
        )
        done = phases.total()
        words = [f"{done:,} of {self._total:,} jobs".replace(",", " ")]
        words += [
            f"{n} {phase}" for phase, n in sorted(phases.items()) if phase != "finished" and n
        ]
        words.append(f"{self._clock() - self._began:.0f} s")
        return (
            f'<div role="progressbar" aria-valuemin="0" aria-valuemax="{self._total}" '
            f'aria-valuenow="{done}" style="display:flex;height:0.8em;width:24em;background:#ddd">'
            f"{parts}</div><span>{escape(' · '.join(words))}</span>"
        )


class _Html:
    """What IPython asks for when it is to show something as HTML."""

    def __init__(self, html: str) -> None:
        self._html = html

    def _repr_html_(self) -> str:
        return self._html

    def __repr__(self) -> str:
        return ""


def _bar() -> Bar:
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
        disable=not console.is_terminal,
    )
