"""The rules of core, for all inputs: nothing but typed errors comes out, and no decision is illegal."""

from __future__ import annotations

import graphlib
import itertools
import posixpath
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from chappe.core import leases, limits
from chappe.core.dag import check_acyclic
from chappe.core.errors import ChappeError, Invalid
from chappe.core.ids import created_ms, is_uuid7, uuid7
from chappe.core.jobs import JobSpec, Retries, RetryOn, check_relative, decode_spec
from chappe.core.leases import Decision, Held, Outcome, Reason, Verdict
from chappe.core.parameters import Kind, Parameter, compile_validator
from chappe.core.rooms import Room
from chappe.core.shapes import LADDER_S, Capacity, Shape, misfit, round_wall
from chappe.core.states import FINAL, LEASED, RUNNABLE, State, legal, legal_updates

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 53), 1 << 53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
SPEC: dict[str, Any] = {
    "id": uuid7(1_800_000_000_000, bytes(10)),
    "project": "p",
    "sites": ["s"],
    "app": {"name": "true"},
}


def refusal(function: Callable[..., object], *args: object) -> Invalid | None:
    """How a function refuses its arguments, if it does."""
    try:
        function(*args)
    except Invalid as error:
        return error
    return None


@given(st.integers(0, (1 << 48) - 1), st.binary(min_size=10, max_size=10))
def test_an_id_keeps_its_time(ms: int, entropy: bytes) -> None:
    assert is_uuid7(uuid7(ms, entropy))
    assert created_ms(uuid7(ms, entropy)) == ms


GRAPHS = st.dictionaries(
    st.sampled_from("abcdefg"), st.lists(st.sampled_from("abcdefgh"), unique=True, max_size=4)
)


@given(GRAPHS)
def test_a_circle_is_found_if_and_only_if_there_is_one(graph: dict[str, list[str]]) -> None:
    inside = {job: [p for p in parents if p in graph] for job, parents in graph.items()}
    try:
        graphlib.TopologicalSorter(inside).prepare()
    except graphlib.CycleError:
        with pytest.raises(Invalid) as caught:
            check_acyclic(graph)
        named = caught.value.message.partition(": ")[2].split(" → ")
        assert named[0] == named[-1]
        assert all(parent in graph[job] for job, parent in itertools.pairwise(named))
    else:
        check_acyclic(graph)


@given(st.text(st.sampled_from("a./~\\\n\0ü ")) | st.text())
@example("a/../../b")
@example("a/./b/")
@example("..")
@example("a//../b")
def test_a_relative_path_stays_below_its_base(path: str) -> None:
    assume(path)
    refused = refusal(check_relative, path, "workdir")
    if refused is not None:
        assert refused.field == "workdir"
        return
    whole = posixpath.normpath(posixpath.join("/base", path))
    assert whole == "/base" or whole.startswith("/base/")
    assert "\0" not in path


@given(st.floats(0, limits.WALL_MAX_S, exclude_min=True))
def test_a_limit_is_rounded_up_as_little_as_possible(wall_s: float) -> None:
    rounded = round_wall(wall_s)
    assert rounded >= wall_s
    assert not [step for step in LADDER_S if wall_s <= step < rounded]


SHAPES = st.builds(
    Shape, sites=st.just(("s",)), cores=st.integers(1, 9), mem_bytes=st.integers(0, 9)
)


@given(st.lists(SHAPES, max_size=30), st.integers(0, 8), st.integers(0, 8), st.integers(0, 3))
def test_a_room_never_gives_more_than_it_has(
    shapes: list[Shape], cores: int, mem: int, prefetch: int
) -> None:
    capacity = Capacity(cores, mem, 8, 8, prefetch)
    room = Room(capacity, 20)
    taken: list[Shape] = []
    for shape in shapes:
        if misfit(shape, capacity) is None:
            most = room.most(shape)
            took = room.take(shape)
            assert most > 0 or not took
            taken += [shape] if took else []
    assert len(taken) <= 20
    # At most `prefetch` of them are beyond what is free now.
    for wanted, free in ((lambda s: s.cores, cores), (lambda s: s.mem_bytes, mem)):
        beyond = sorted(map(wanted, taken))
        assert sum(beyond[: max(len(beyond) - prefetch, 0)]) <= free


HELD = st.builds(
    Held,
    state=st.sampled_from(State),
    attempt=st.integers(0, 5),
    max_attempts=st.integers(1, 5),
    cancel_at=st.none() | st.just(1.0),
    retries=st.builds(
        Retries, st.integers(0, 4), st.lists(st.sampled_from(RetryOn)).map(tuple), st.floats(0, 1e5)
    ),
)
OUTCOMES = st.builds(Outcome, st.sampled_from(Reason), st.none() | st.integers(0, 255))


def judge(job: Held, decided: Decision | Verdict | None) -> None:
    """Whether a decision is chained, legal step by step and in one update, and consistent."""
    if not isinstance(decided, Decision):
        return
    at = job.state
    for step in decided.steps:
        assert step.old is at
        assert legal(step.old, step.new)
        at = step.new
    assert decided.state is at
    assert decided.steps
    assert at is job.state or (job.state, at) in legal_updates()
    assert decided.attempt >= job.attempt
    assert decided.release or at in LEASED
    assert decided.not_before is None or at in RUNNABLE
    if at in FINAL:
        assert decided.release
        assert decided.outcome is not None
    starts = sum(step.new is State.RUNNING for step in decided.steps)
    assert starts == (decided.attempt > job.attempt) or job.state is State.RUNNING


@given(HELD, st.integers(0, 7), st.none() | st.just(2.0), OUTCOMES)
def test_reports_lead_to_legal_decisions(
    job: Held, attempt: int, started_at: float | None, outcome: Outcome
) -> None:
    judge(job, leases.start(job, attempt, 2.0))
    judge(job, leases.end(job, attempt, started_at, 3.0, outcome, 4.0))
    judge(job, leases.refuse(job, "no", "expired", 3.0))


@given(HELD, st.sampled_from(sorted(LEASED)), st.sampled_from(Reason))
def test_deaths_lead_to_legal_decisions(job: Held, state: State, reason: Reason) -> None:
    job = msgspec.structs.replace(job, state=state)
    decided = leases.death(job, reason, 5.0)
    judge(job, decided)
    assert decided.release
    if decided.state is State.RESTART_READY:
        assert decided.attempt < job.max_attempts
        assert job.cancel_at is None


@given(HELD, st.sampled_from(sorted(FINAL)), st.integers(0, 3))
def test_retries_reopen_only_what_has_attempts_left(job: Held, state: State, waiting: int) -> None:
    job = msgspec.structs.replace(job, state=state)
    if leases.may_retry(job) is None:
        assert job.state in (State.FAILED, State.CANCELLED)
        assert job.attempt < job.max_attempts
        judge(job, leases.retry(job, waiting, 5.0))


PARAMETERS = st.builds(
    Parameter,
    type=st.sampled_from(Kind),
    default=JSON,
    required=st.booleans(),
    min=st.none() | st.floats(-10, 10),
    max=st.none() | st.floats(-10, 10),
    choices=st.lists(st.text(max_size=3), max_size=3).map(tuple),
    items=st.sampled_from(Kind),
    pattern=st.none() | st.sampled_from(["[a-z]*", "(", "\\d+"]),
)


@given(PARAMETERS, JSON)
def test_a_value_is_refused_by_name_or_stays_what_it_is(p: Parameter, value: Any) -> None:
    def check() -> dict[str, Any]:
        return compile_validator({"x": p})({"x": value})

    refused = refusal(check)
    if refused is not None:
        assert refused.field == "parameters.x"
        return
    found = check()
    assert found["x"] == value
    assert compile_validator({"x": p})(found) == found  # the pilot checks once more


@given(st.binary() | JSON.map(msgspec.json.encode))
@example(b'{"id": "\xff"}')
@example(b"[" * 100_000)
def test_bytes_that_are_no_spec_are_refused_by_name(raw: bytes) -> None:
    with pytest.raises(ChappeError) as caught:
        decode_spec(raw)
    assert caught.value.field
    assert caught.value.message


@given(st.sampled_from(JobSpec.__struct_fields__), JSON)
def test_any_value_of_any_field_is_taken_or_refused_by_name(field: str, value: Any) -> None:
    raw = msgspec.json.encode({**SPEC, field: value})
    refused = refusal(decode_spec, raw)
    if refused is None:
        spec = decode_spec(raw)
        assert decode_spec(msgspec.json.encode(spec)) == spec
    else:
        assert (refused.field or "").split(".")[0].split("[")[0] in {field, "spec", "app"}
