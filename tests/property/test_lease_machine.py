"""The lease machine, searched; and proof that it can fail: rules broken on purpose are found out."""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from chappe.core import leases
from chappe.store import changes, sync, upkeep
from chappe.testing.place import Databases, PostgresPlace
from tests.property.machine import LeaseMachine

DEEP = os.environ.get("CHAPPE_HYPOTHESIS") == "deep"


@pytest.mark.timeout(7_200 if DEEP else 300)
def test_leases_survive_whatever_happens() -> None:
    """CHAPPE_HYPOTHESIS=deep searches for an hour, and elsewhere each time."""
    run_state_machine_as_test(
        LeaseMachine,
        settings=settings(
            max_examples=5_000 if DEEP else 60,
            stateful_step_count=100 if DEEP else 60,
            derandomize=not DEEP,
        ),
    )


@pytest.mark.timeout(7_200 if DEEP else 300)
def test_leases_survive_on_postgresql_too(
    databases: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fewer examples: what is looked for is where the two databases differ, not where the rules are wrong."""
    place = staticmethod(functools.partial(PostgresPlace, databases))
    monkeypatch.setattr(LeaseMachine, "place", place)
    run_state_machine_as_test(
        LeaseMachine,
        settings=settings(
            max_examples=500 if DEEP else 12,
            stateful_step_count=40,
            derandomize=not DEEP,
        ),
    )


class Mutant(NamedTuple):
    """A function, what of its source is replaced by what, what must be said about it, and where to look."""

    function: Callable[..., Any]
    line: str
    instead: str
    blame: str
    only: dict[str, int]


WORK = {"syncs": 4, "works": 4, "submit": 2}
TIME = {"syncs": 5, "submit": 2, "silence": 6}
NET = {"starts": 3, "syncs": 2, "submit": 2, "sends": 6, "late_answer": 4, "arrives": 9}

MUTANTS = {
    "a report of an old epoch counts": Mutant(
        sync._apply_reports,
        "or row.epoch != report.epoch",
        "",
        "stale_lease|I8|I11|illegal|applied",
        {**WORK, "stale": 6},
    ),
    "grants are disowned before they were read": Mutant(
        sync._take_back,
        "and (row.granted_request or 0) <= req.answered",
        "",
        "I9|stale_lease|granted",
        NET,
    ),
    "a repeated request is served anew": Mutant(
        sync.sync,
        "if req.request_no <= session.last_request:",
        "if False:",
        "repeated|granted|I9",
        NET,
    ),
    "takeover before the pilot's side has killed": Mutant(
        leases.takeover_due, "> takeover_s", "> 0.5 * takeover_s", "I9|stale_lease|granted", TIME
    ),
    "silence is death": Mutant(
        upkeep.silence,
        "    if not sessions:",
        "    for n in sessions:\n        session_dead(tx, n, Reason.SESSION_DEAD, '')\n    if True:",
        "I9|granted",
        TIME,
    ),
    "children are forgotten": Mutant(
        changes._decide, "if not waiting:", "if True:", "I10|parents", WORK
    ),
    "a freed job is not counted": Mutant(
        changes.release, "if row.waits:", "if False:", "wait, not|ck_shape_waiting", NET
    ),
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_rule_is_found_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function, line, instead, blame, only = MUTANTS[name]
    source = inspect.getsource(function)
    assert source.count(line) == 1
    made: dict[str, Any] = {}
    exec(source.replace(line, instead), function.__globals__, made)  # noqa: S102 - our own source
    for module in [m for n, m in sys.modules.items() if n.startswith("chappe.")]:
        for attribute, value in list(vars(module).items()):
            if value is function:
                monkeypatch.setattr(module, attribute, made[function.__name__])
    monkeypatch.setattr(LeaseMachine, "only", only)
    with pytest.raises(Exception, match=blame):
        run_state_machine_as_test(
            LeaseMachine,
            settings=settings(
                max_examples=1_000,
                stateful_step_count=50,
                derandomize=True,
                database=None,
                phases=[Phase.generate],
                report_multiple_bugs=False,
                print_blob=False,
                suppress_health_check=list(HealthCheck),
            ),
        )
