"""Parents and children: a whole graph of Jobs in one request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from chappe.core.errors import Invalid
from chappe.core.jobs import ParentPolicy
from chappe.core.states import State

#: So many Jobs are named at each end of a long circle.
_SHOWN = 5


def check_acyclic(parents: Mapping[str, Sequence[str]]) -> None:
    """Raise Invalid naming one cycle if the graph `job → its parents` has any.

    Parents that are not keys (Jobs that exist already) cannot be part of a cycle.
    """
    waiting = {job: sum(p in parents for p in ps) for job, ps in parents.items()}
    children: dict[str, list[str]] = {}
    for job, ps in parents.items():
        for p in ps:
            if p in parents:
                children.setdefault(p, []).append(job)
    ready = [job for job, n in waiting.items() if n == 0]
    while ready:
        job = ready.pop()
        del waiting[job]
        for child in children.get(job, ()):
            waiting[child] -= 1
            if waiting[child] == 0:
                ready.append(child)
    if waiting:
        raise Invalid(
            "the jobs depend on each other in a circle: " + _shown(_a_cycle(parents, waiting)),
            field="parents",
            code="cycle",
        )


def _a_cycle(parents: Mapping[str, Sequence[str]], among: Mapping[str, int]) -> list[str]:
    seen: dict[str, int] = {}
    path: list[str] = []
    job = next(iter(among))
    while job not in seen:
        seen[job] = len(path)
        path.append(job)
        job = next(p for p in parents[job] if p in among)
    return [*path[seen[job] :], job]


def _shown(cycle: list[str]) -> str:
    """A circle for a message: a long one without its middle, for it may hold a request's 10 000 Jobs."""
    if len(cycle) > 2 * _SHOWN:
        left_out = f"({len(cycle) - 2 * _SHOWN} more)"
        cycle = [*cycle[:_SHOWN], left_out, *cycle[-_SHOWN:]]
    return " → ".join(cycle)


def after_parents(policy: ParentPolicy, total: int, succeeded: int) -> State:
    """What becomes of a Job when the last of its parents is final: PREPROCESSED or FAILED."""
    if policy is ParentPolicy.ANYWAY or succeeded == total:
        return State.PREPROCESSED
    if policy is ParentPolicy.SUCCEEDED and succeeded > 0:
        return State.PREPROCESSED
    return State.FAILED
