"""What only Grid Engine does, with a real one: notices before it kills, ends that only one command knows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from chappe.site.schedulers.base import Phase
from tests.contract.test_schedulers import Bench, of_kind, wait_until


@pytest.fixture
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    yield from of_kind("gridengine", request, tmp_path)


def recorded(bench: Bench, ident: str) -> Phase | None:
    """What the accounting says of its end."""
    done = bench.call(bench.scheduler.history_command([ident]))
    found = bench.scheduler.parse_history(done.stdout, done.stderr, done.returncode)
    return found[ident].phase if ident in found else None


def test_the_pilot_gets_term_before_the_limit(bench: Bench) -> None:
    pilot = "trap 'echo term >got; exit 0' TERM; touch up; while :; do sleep 0.05; done"
    ident = bench.submit(bench.batch(pilot, wall_s=60.0, kill_s=58.0))
    wait_until((bench.root / "up").exists, "the pilot's start")
    bench.await_over(ident)
    assert (bench.root / "got").read_text() == "term\n"


def test_what_is_deleted_while_it_waits_has_ended(bench: Bench) -> None:
    ident = bench.submit(bench.batch("touch ran", directives=("-h",)))
    assert bench.state(ident).phase is Phase.PENDING
    bench.cancel(ident)
    assert bench.await_over(ident).phase is Phase.ENDED
    assert not (bench.root / "ran").exists()
    bench.cancel(ident)


def test_the_accounting_tells_how_it_ended(bench: Bench) -> None:
    ident = bench.submit(bench.batch("exit 3"))
    wait_until(lambda: recorded(bench, ident) is not None, "its record")
    assert recorded(bench, ident) is Phase.FAILED
