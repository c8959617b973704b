"""What passes between the jobs of the ensemble: parents, checks and the arrays of one site."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from barotropic import Field

SUCCEEDED = "JOB_FINISHED"
RESULT_LIMIT_BYTES = 1 << 20
FIELD_BUDGET_BYTES = 700 * 1024
"""Share of the result that vorticity maps may take; beyond it they are thinned."""


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison of a run with theory."""

    member: str
    quantity: str
    measured: float
    expected: float
    tolerance: float
    unit: str

    @property
    def ok(self) -> bool:
        """Whether the measured value lies within the tolerance of the expected one."""
        return abs(self.measured - self.expected) <= self.tolerance

    def __str__(self) -> str:
        verdict = "ok" if self.ok else "FAILED"
        return (
            f"{verdict:6s} {self.member}: {self.quantity}: {self.measured:.6g} {self.unit}, "
            f"expected {self.expected:.6g} within {self.tolerance:.2g}"
        )


@dataclass(frozen=True, slots=True)
class MemberSummary:
    """What is kept of one member: a few kilobytes and one map."""

    name: str
    experiment: str
    beta: float
    length_m: float
    time_days: Field
    """Days of the records, shape (t,)."""
    energy: Field
    """Mean eddy kinetic energy of the records, shape (t,), m2 s-2."""
    kinetic_energy: Field
    """The same, from the velocities in the file, shape (t,), m2 s-2."""
    enstrophy: Field
    """Mean enstrophy of the records, shape (t,), s-2."""
    spectrum: Field
    """Kinetic energy by mode at the end, shape (m,), m2 s-2."""
    vorticity: np.ndarray
    """Final relative vorticity, float32, shape (n, n), s-1."""
    hovmoller: np.ndarray
    """Vorticity along one latitude by time, float32, shape (t, n), s-1; (0, 0) when not kept."""
    phase_speed: float
    """Theoretical zonal phase speed of a Rossby wave, m s-1; NaN for other experiments."""


@dataclass(frozen=True, slots=True)
class SiteResult:
    """The analysis of one site's members."""

    site: str
    members: Sequence[MemberSummary]
    checks: Sequence[Check]
    absent: Sequence[str]
    """Names of the members that did not finish."""


def save(path: Path, result: SiteResult) -> None:
    """Write a site's result as .npz without pickles; `ValueError` if too large."""
    arrays: dict[str, Any] = {
        "site": result.site,
        "absent": json.dumps(list(result.absent)),
        "checks": json.dumps([asdict(check) for check in result.checks]),
        "members": len(result.members),
    }
    for i, member in enumerate(result.members):
        arrays |= {f"{i}/{name}": value for name, value in asdict(member).items()}
    np.savez_compressed(path, **arrays)
    require_size(path)


def require_size(path: Path) -> None:
    """Refuse, with `ValueError`, a file too large to be a Job's result."""
    size_bytes = path.stat().st_size
    if size_bytes > RESULT_LIMIT_BYTES:
        raise ValueError(
            f"{path} has {size_bytes} bytes, more than a result may have ({RESULT_LIMIT_BYTES}): "
            "give it fewer members"
        )


def load(path: Path) -> SiteResult:
    """Read what `save` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        members = [_member(arrays, f"{i}/") for i in range(int(arrays["members"]))]
        checks = [Check(**check) for check in json.loads(str(arrays["checks"]))]
        absent = json.loads(str(arrays["absent"]))
        return SiteResult(str(arrays["site"]), members, checks, absent)


def _member(arrays: Mapping[str, np.ndarray], prefix: str) -> MemberSummary:
    def get(name: str) -> Any:
        # Scalars were stored as arrays without dimensions.
        value = arrays[prefix + name]
        return value if value.ndim else value.item()

    return MemberSummary(**{field.name: get(field.name) for field in fields(MemberSummary)})


def thinning(members: int, n: int) -> int:
    """Stride by which maps of n x n points are thinned so that all fit the result."""
    stride = 1
    while members * (-(-n // stride)) ** 2 * 4 > FIELD_BUDGET_BYTES:
        stride += 1
    return stride


@dataclass(frozen=True, slots=True)
class Parent:
    """A parent Job as the pilot describes it in the file that CHAPPE_PARENTS names."""

    name: str
    site: str
    state: str
    workdir: Path | None
    result: Path | None

    @property
    def succeeded(self) -> bool:
        """Whether the parent ran to its end."""
        return self.state == SUCCEEDED


def parents_from_environment() -> list[Parent]:
    """The parents of this Job, empty outside of Chappe."""
    path = os.environ.get("CHAPPE_PARENTS")
    if path is None:
        return []
    return [
        Parent(
            name=entry["name"],
            site=entry["site"],
            state=entry["state"],
            workdir=_path(entry["workdir"]),
            result=_path(entry["result"]),
        )
        for entry in json.loads(Path(path).read_text(encoding="utf-8"))
    ]


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)
