"""Verdicts of hooks: what counts, what does not, and where each leads: by legal steps, and never nowhere."""

from __future__ import annotations

from itertools import pairwise, product

import msgspec
import pytest

from chappe.core import hooks, leases
from chappe.core.errors import Invalid
from chappe.core.hooks import MAY_SET, HookName, HookReport
from chappe.core.jobs import Retries, RetryOn
from chappe.core.leases import Decision, Held, Outcome, Reason, with_hook
from chappe.core.states import FINAL, State, legal

S, H = State, HookName
OK = Outcome(Reason.EXIT, exit=0)
BAD = Outcome(Reason.EXIT, exit=3)
LATE = Outcome(Reason.TIMEOUT, signal=15)
FOLLOWS = {H.PREPROCESS: OK, H.POSTPROCESS: OK, H.ON_ERROR: BAD, H.ON_TIMEOUT: LATE}


def end(
    outcome: Outcome, *, attempt: int = 1, on: tuple[RetryOn, ...] = (), cancel: bool = False
) -> Decision:
    held = Held(S.RUNNING, attempt, 3, 900.0 if cancel else None, Retries(2, on))
    found = leases.end(held, attempt, None, 990.0, outcome, 1_000.0)
    assert isinstance(found, Decision)
    assert all(legal(step.old, step.new) for step in found.steps)
    assert all(a.new is b.old for a, b in pairwise(found.steps))
    assert found.steps[-1].new is found.state
    return found


def path(found: Decision) -> list[State]:
    return [step.new for step in found.steps]


@pytest.mark.parametrize(
    ("name", "state", "expected"),
    [
        (H.PREPROCESS, S.FAILED, [S.RUN_ERROR, S.FAILED]),
        (H.PREPROCESS, S.JOB_FINISHED, [S.RUN_DONE, S.JOB_FINISHED]),
        (H.POSTPROCESS, None, [S.RUN_DONE, S.POSTPROCESSED, S.JOB_FINISHED]),
        (H.POSTPROCESS, S.JOB_FINISHED, [S.RUN_DONE, S.POSTPROCESSED, S.JOB_FINISHED]),
        (H.POSTPROCESS, S.FAILED, [S.RUN_ERROR, S.FAILED]),
        (H.POSTPROCESS, S.RESTART_READY, [S.RUN_ERROR, S.RESTART_READY]),
        (H.ON_ERROR, None, [S.RUN_ERROR, S.FAILED]),
        (H.ON_ERROR, S.FAILED, [S.RUN_ERROR, S.FAILED]),
        (H.ON_ERROR, S.RESTART_READY, [S.RUN_ERROR, S.RESTART_READY]),
        (H.ON_ERROR, S.JOB_FINISHED, [S.RUN_DONE, S.POSTPROCESSED, S.JOB_FINISHED]),
        (H.ON_TIMEOUT, None, [S.RUN_TIMEOUT, S.FAILED]),
        (H.ON_TIMEOUT, S.RESTART_READY, [S.RUN_TIMEOUT, S.RESTART_READY]),
        (H.ON_TIMEOUT, S.JOB_FINISHED, [S.RUN_DONE, S.POSTPROCESSED, S.JOB_FINISHED]),
    ],
)
def test_where_a_verdict_leads(name: HookName, state: State | None, expected: list[State]) -> None:
    outcome = with_hook(FOLLOWS[name], HookReport(name, state))
    assert path(end(outcome)) == expected


def test_every_state_that_may_be_set_is_reached_and_no_other_comes_of_it() -> None:
    for name, states in MAY_SET.items():
        for state, cancel, attempt in product(states, (False, True), (1, 3)):
            outcome = with_hook(FOLLOWS[name], HookReport(name, state))
            found = end(outcome, attempt=attempt, cancel=cancel, on=tuple(RetryOn))
            wanted: State = state
            if state is S.RESTART_READY and attempt == 3:
                wanted = S.FAILED  # the signature allows no more
            if cancel and wanted is not S.JOB_FINISHED:
                wanted = S.CANCELLED
            assert found.state is wanted
            assert found.release
            assert (found.state in FINAL) is (wanted is not S.RESTART_READY)


@pytest.mark.parametrize("name", HookName)
def test_a_hook_that_failed_is_a_typed_outcome_and_the_rules_for_errors_hold(
    name: HookName,
) -> None:
    outcome = with_hook(FOLLOWS[name], hooks.useless(name, "died of signal 9"))
    assert "died of signal 9" in outcome.message
    assert not outcome.ok
    assert end(outcome).state is S.FAILED
    assert end(outcome, on=tuple(RetryOn)).state is S.RESTART_READY
    before = name in (H.PREPROCESS, H.POSTPROCESS)
    assert outcome.reason is (Reason.HOOK if before else FOLLOWS[name].reason)


def test_a_failing_error_hook_cannot_keep_a_job_from_its_retries() -> None:
    outcome = with_hook(BAD, HookReport(H.ON_ERROR, S.FAILED, problem="wrote nonsense"))
    assert end(outcome, on=(RetryOn.ERROR,)).state is S.RESTART_READY


@pytest.mark.parametrize("reason", [Reason.LAUNCHER_LOST, Reason.ALLOCATION_END, Reason.CANCELLED])
def test_a_hook_does_not_decide_about_a_run_that_was_lost_or_cancelled(reason: Reason) -> None:
    outcome = Outcome(reason, hook=HookReport(H.ON_ERROR, S.JOB_FINISHED))
    assert end(outcome).state is S.FAILED
    if reason is not Reason.CANCELLED:
        assert end(outcome, on=(RetryOn.LOST,)).state is S.RESTART_READY


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "not understood"),
        (b"{", "not understood"),
        (b"[]", "not understood"),
        (b"\xff\xfe", "not understood"),
        (b'{"state": "RUNNING"}', "cannot set RUNNING"),
        (b'{"state": "PARKED"}', "not understood"),
        (b'{"statte": "FAILED"}', "statte"),
        (b'{"data": [1]}', "not understood"),
        (b'{"parameters": {"dt": 1}}', "no run of the job follows"),
        (b'{"state": "FAILED", "parameters": {"dt": 1}}', "no run of the job follows"),
        (b'{"data": {"x": "' + b"y" * hooks.DATA_BYTES + b'"}}', "data are larger"),
        (b'{"message": "' + b"y" * hooks.VERDICT_BYTES + b'"}', "longer than"),
        (b"[" * 5_000, "not understood"),
    ],
)
def test_nonsense_is_refused_with_words(raw: bytes, words: str) -> None:
    with pytest.raises(Invalid, match=words):
        hooks.parse(H.ON_ERROR, raw)


def test_a_verdict_that_counts() -> None:
    raw = b'{"state": "RESTART_READY", "parameters": {"dt": 0.5}, "data": {"k": 1}, "message": "halved"}'
    report = hooks.report(H.ON_ERROR, hooks.parse(H.ON_ERROR, raw))
    assert report == HookReport(
        H.ON_ERROR, S.RESTART_READY, "halved", parameters={"dt": 0.5}, data={"k": 1}
    )
    outcome = with_hook(BAD, report)
    assert msgspec.json.decode(msgspec.json.encode(outcome), type=Outcome) == outcome
    assert hooks.parse(H.PREPROCESS, b'{"parameters": {"dt": 1}}').parameters == {"dt": 1}
    with pytest.raises(Invalid, match="cannot set RESTART_READY"):
        hooks.parse(H.PREPROCESS, b'{"state": "RESTART_READY"}')
    assert hooks.parse(H.POSTPROCESS, None).state is None
