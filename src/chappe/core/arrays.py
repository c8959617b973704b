"""Job arrays: one command for many indices, as batch systems have them.

An array is as many Jobs as it has indices, created in one request, all or none; each is told its index. Their
ids share all but their last digits, which count the tasks: the array's id is that of its first task.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import NamedTuple

import msgspec

from chappe.core import limits
from chappe.core.errors import Invalid, TooLarge
from chappe.core.ids import check_id, number_of

DIALECTS = ("slurm", "pbs", "sge")
"""Batch systems whose names of variables a task may be told besides our own."""

_PART = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9})(?::([0-9]{1,9}))?)?", re.ASCII)
_PLACES = 6  # hexadecimal digits of an id that count the tasks


class Task(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """One task of an array. `array` is the id of the first; `first`, `last` and `step` are of the indices.

    `dialect`, if not empty, is one of DIALECTS.
    """

    array: str
    index: int
    first: int
    last: int
    count: int
    step: int = 1
    dialect: str = ""


class Indices(NamedTuple):
    """What an array counts: rising indices, and how many tasks may run at once (0: any number)."""

    of: tuple[int, ...]
    at_once: int = 0


def parse(text: str) -> Indices:
    """Indices as batch systems write them: `1-100`, `1-100:5`, `1,4,7-9`, each with `%20` for 20 at once.

    Raises Invalid, TooLarge.
    """
    ranges, percent, most = text.strip().partition("%")
    if percent and not (re.fullmatch(r"[0-9]{1,9}", most, re.ASCII) and int(most)):
        raise Invalid(
            f"{text[:60]!r}: after % stands how many run at once, 1 or more", field="array"
        )
    found: set[int] = set()
    for part in ranges.split(","):
        match = _PART.fullmatch(part.strip())
        if match is None:
            raise Invalid(
                f"{text[:60]!r} are no indices of an array: 1-100, 1-100:5 or 1,4,7-9",
                field="array",
            )
        first, last = int(match[1]), int(match[2] or match[1])
        step = int(match[3] or 1)
        if last < first or step < 1:
            raise Invalid(f"{part.strip()!r}: a range rises, in steps of 1 or more", field="array")
        # Before it is written out: a range is a few letters, and its indices may be a billion.
        if len(found) + (last - first) // step + 1 > limits.JOBS_PER_REQUEST:
            raise _too_many()
        found.update(range(first, last + 1, step))
    return check_indices(found, int(most or 0))


def check_indices(of: set[int], at_once: int = 0) -> Indices:
    """Indices in their order. Raises Invalid, TooLarge."""
    if not of:
        raise Invalid("an array needs an index", field="array")
    if len(of) > limits.JOBS_PER_REQUEST:
        raise _too_many()
    if min(of) < 0 or max(of) > limits.ARRAY_INDEX_MAX:
        raise Invalid(f"an index is 0 to {limits.ARRAY_INDEX_MAX}", field="array")
    return Indices(tuple(sorted(of)), at_once)


def _too_many() -> TooLarge:
    return TooLarge(
        f"an array has at most {limits.JOBS_PER_REQUEST} tasks: submit several", field="array"
    )


def tasks(array: str, indices: Indices, dialect: str = "") -> list[Task]:
    """The tasks of the array whose first has the id `array`. Raises Invalid for an unknown dialect."""
    of = indices.of
    step = of[1] - of[0] if len(of) > 1 else 1
    even = all(b - a == step for a, b in pairwise(of))
    made = [
        Task(array, index, of[0], of[-1], len(of), step if even else 1, dialect) for index in of
    ]
    check_task(made[0])
    return made


def task_ids(first: str, count: int) -> list[str]:
    """The ids of an array whose first task's is `first`: they count up from it.

    `first` should come from `first_id`, so that there is room to count.
    """
    at = int(first[-_PLACES:], 16)
    return [f"{first[:-_PLACES]}{at + place:0{_PLACES}x}" for place in range(count)]


def first_id(uuid: str) -> str:
    """`uuid` with the digits that count the tasks of an array set to 0."""
    return uuid[:-_PLACES] + "0" * _PLACES


def check_task(task: Task) -> None:
    """Raise Invalid unless it can be a task of an array."""
    check_id(task.array, "task.array")
    if not 0 <= task.first <= task.index <= task.last <= limits.ARRAY_INDEX_MAX:
        raise Invalid(
            f"an index lies between the first and the last, 0 to {limits.ARRAY_INDEX_MAX}",
            field="task.index",
        )
    if not 1 <= task.count <= limits.JOBS_PER_REQUEST or task.step < 1:
        raise Invalid(f"an array has 1 to {limits.JOBS_PER_REQUEST} tasks", field="task.count")
    if task.dialect and task.dialect not in DIALECTS:
        raise Invalid(
            f"there is no dialect {task.dialect[:20]!r} (there are: {', '.join(DIALECTS)})",
            field="task.dialect",
        )


def environment(task: Task) -> dict[str, str]:
    """What a task is told: our own variables, and those of its dialect."""
    index, first, last = str(task.index), str(task.first), str(task.last)
    count, step = str(task.count), str(task.step)
    env = {
        "CHAPPE_ARRAY_ID": task.array,
        "CHAPPE_TASK_INDEX": index,
        "CHAPPE_TASK_FIRST": first,
        "CHAPPE_TASK_LAST": last,
        "CHAPPE_TASK_COUNT": count,
        "CHAPPE_TASK_STEP": step,
    }
    number = str(number_of(task.array))
    if task.dialect == "slurm":
        env |= {
            "SLURM_JOB_ID": f"{number}_{index}",
            "SLURM_JOBID": f"{number}_{index}",
            "SLURM_ARRAY_JOB_ID": number,
            "SLURM_ARRAY_TASK_ID": index,
            "SLURM_ARRAY_TASK_MIN": first,
            "SLURM_ARRAY_TASK_MAX": last,
            "SLURM_ARRAY_TASK_COUNT": count,
            "SLURM_ARRAY_TASK_STEP": step,
        }
    elif task.dialect == "pbs":
        # PBS Professional's two, and Torque's.
        env |= {"PBS_ARRAY_INDEX": index, "PBS_ARRAY_ID": f"{number}[]", "PBS_ARRAYID": index}
        env["PBS_JOBID"] = f"{number}[{index}].chappe"
    elif task.dialect == "sge":
        env |= {
            "JOB_ID": number,
            "SGE_TASK_ID": index,
            "SGE_TASK_FIRST": first,
            "SGE_TASK_LAST": last,
            "SGE_TASK_STEPSIZE": step,
        }
    return env
