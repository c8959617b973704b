"""What every group of rows gets: its rounds, a private directory, and a place for its samples."""

from __future__ import annotations

import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.contract import ROWS
from benchmarks.figures import Row, median, met

_PROBLEM_CHARS = 200


class Bench:
    """One run. Groups `add` samples; a row's value is the median of its samples."""

    def __init__(self, directory: Path, rounds: int, quick: bool) -> None:
        self.directory = directory
        self.rounds = rounds
        self.quick = quick
        self.samples: dict[str, list[float]] = {}
        self.notes: dict[str, str] = {}
        self.problems: dict[str, str] = {}
        self._rows = {row.key: row for row in ROWS}
        self._began = time.monotonic()

    def scaled(self, full: int, quick: int) -> int:
        """An amount of work: `quick` of it in a quick run."""
        return quick if self.quick else full

    def add(self, key: str, value: float) -> None:
        """One sample of a row (one per round, as a rule)."""
        assert key in self._rows, f"no row {key} in the contract"
        self.samples.setdefault(key, []).append(value)
        self.say(f"{key} {value:.4g} {self._rows[key].unit}")

    def note(self, key: str, words: str) -> None:
        """Something that a reader of the row should know."""
        self.notes[key] = words

    def say(self, words: str) -> None:
        """A line of progress."""
        print(f"[{time.monotonic() - self._began:6.1f} s] {words}", file=sys.stderr, flush=True)

    @contextmanager
    def attempt(self, *keys: str) -> Iterator[None]:
        """What fails inside costs these rows and no others."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever it is, the other rows go on
            traceback.print_exc()
            for key in keys:
                self.problems[key] = f"{type(error).__name__}: {error}"[:_PROBLEM_CHARS]

    @contextmanager
    def private(self, name: str) -> Iterator[Path]:
        """A directory that is gone afterwards."""
        with tempfile.TemporaryDirectory(dir=self.directory, prefix=f"{name}-") as directory:
            yield Path(directory)

    def table(self) -> list[dict[str, Any]]:
        """The rows that were measured or failed, in the order of the contract."""
        return [
            self._line(row) for row in ROWS if row.key in self.samples or row.key in self.problems
        ]

    def _line(self, row: Row) -> dict[str, Any]:
        samples = self.samples.get(row.key, [])
        value = median(samples) if samples else None
        problem = self.problems.get(row.key)
        kept = None if value is None else met(row, value)
        return {
            **row._asdict(),
            "value": value,
            "samples": samples,
            # A row with a bound and a problem is not met, whatever was measured before the problem.
            "met": False if problem is not None and row.bound is not None else kept,
            "note": self.notes.get(row.key, ""),
            "problem": problem,
        }
