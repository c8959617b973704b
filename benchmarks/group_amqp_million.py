"""The same as `amqp` with a backlog of a million messages."""

from __future__ import annotations

from benchmarks import group_amqp
from benchmarks.bench import Bench


def run(bench: Bench) -> None:
    """A million, or 200 000 in a quick run."""
    group_amqp.measure(bench, bench.scaled(1_000_000, 200_000))
