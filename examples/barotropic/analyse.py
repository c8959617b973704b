"""Check the members of one site against theory, and reduce them to a result of under 1 MiB.

As a Job it reads the netCDF of those of its parents that succeeded at its own site. By hand:
`python analyse.py --result analysis.npz RUN_DIR...`.

What is checked, and why it must hold:

- a plane Rossby wave moves with c = U - beta/(k² + l²), at any amplitude;
- without viscosity the flow keeps its energy and its enstrophy (both are invariants of the
  truncated equations: what is lost is the error of the time step);
- decaying turbulence never gains energy or enstrophy;
- the energy of the velocities in the file is the sum of the spectrum of the vorticity (Parseval).

Exit status: 0 all checks hold, 1 one failed (the result is written all the same), 2 there was
nothing to check against.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr

import results
from barotropic import DAY_S, Field, Grid, rossby_phase_speed
from output import HISTORY_PATTERN
from results import Check, MemberSummary, SiteResult

PHASE_SPEED_TOLERANCE = 1e-3
"""Relative; RK4's own phase error is 1e-8 here and float32 output adds about as much."""
ENERGY_TOLERANCE = 1e-4
ENSTROPHY_TOLERANCE = 1e-3
"""Relative loss without viscosity; enstrophy lives in shorter waves, which RK4 damps more."""
GAIN_TOLERANCE = 1e-6
"""Relative rise from one record to the next that still counts as none."""
PARSEVAL_TOLERANCE = 1e-4
"""Relative; the fields in the file are float32."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Analyse the members that the command line or the environment names."""
    parser = argparse.ArgumentParser(description="Check one site's members against theory.")
    parser.add_argument("runs", nargs="*", type=Path, help="directories of runs (as a Job: none)")
    parser.add_argument("--result", type=Path, default=os.environ.get("CHAPPE_RESULT"))
    parser.add_argument("--site", default=os.environ.get("CHAPPE_SITE", "this site"))
    options = parser.parse_args(arguments)
    if options.result is None:
        parser.error("give --result FILE.npz, or set CHAPPE_RESULT")
    parents = [p for p in results.parents_from_environment() if p.site == options.site]
    runs = {path.resolve().name: path for path in options.runs} or {
        parent.name: parent.workdir
        for parent in parents
        if parent.succeeded and parent.workdir is not None
    }
    absent = [parent.name for parent in parents if not parent.succeeded]

    datasets = {name: open_run(path) for name, path in sorted(runs.items())}
    missing = {"rossby", "inviscid"} - {run.attrs["experiment"] for run in datasets.values()}
    if missing:
        print(
            f"analyse.py: no finished {' and no '.join(sorted(missing))} member at {options.site} "
            f"among {sorted(datasets) or 'no members'}: nothing to check theory with",
            file=sys.stderr,
        )
        return 2

    stride = results.thinning(len(datasets), max(run.sizes["x"] for run in datasets.values()))
    members = [summarise(name, run, stride) for name, run in datasets.items()]
    checks = [check for name, run in datasets.items() for check in check_member(name, run)]
    results.save(options.result, SiteResult(options.site, members, checks, absent))
    for check in checks:
        print(check, file=sys.stdout if check.ok else sys.stderr)
    return 0 if all(check.ok for check in checks) else 1


def open_run(path: Path) -> xr.Dataset:
    """The history of a run as one dataset, with its times as noleap dates."""
    files = sorted(path.glob(HISTORY_PATTERN))
    if not files:
        raise FileNotFoundError(f"{path} has no {HISTORY_PATTERN}")
    segments = []
    for file in files:
        with xr.open_dataset(file, engine="h5netcdf") as segment:
            segments.append(segment.load())
    return xr.concat(
        segments,
        dim="time",
        data_vars="minimal",
        coords="minimal",
        compat="override",
        join="override",
        combine_attrs="override",
    )


def summarise(name: str, run: xr.Dataset, stride: int) -> MemberSummary:
    """Reduce a run to its spectrum, its time series and maps thinned by `stride`."""
    vorticity = run["vorticity"].values
    rossby = run.attrs["experiment"] == "rossby"
    grid = _grid(run)
    return MemberSummary(
        name=name,
        experiment=run.attrs["experiment"],
        beta=float(run.attrs["beta"]),
        length_m=grid.length_m,
        time_days=_seconds(run) / DAY_S,
        energy=run["energy"].values,
        kinetic_energy=kinetic_energy(run),
        enstrophy=run["enstrophy"].values,
        spectrum=grid.energy_spectrum(grid.to_spectrum(vorticity[-1])),
        vorticity=vorticity[-1, ::stride, ::stride],
        hovmoller=vorticity[:, 0, ::stride] if rossby else np.empty((0, 0), np.float32),
        phase_speed=_theoretical_speed(run) if rossby else math.nan,
    )


def check_member(name: str, run: xr.Dataset) -> list[Check]:
    """The checks that apply to a run's experiment."""
    experiment = run.attrs["experiment"]
    checks = [_check_parseval(name, run)]
    if experiment == "rossby":
        speed = _theoretical_speed(run)
        tolerance = PHASE_SPEED_TOLERANCE * abs(speed)
        measured = measured_phase_speed(run)
        checks.append(Check(name, "phase speed", measured, speed, tolerance, "m s-1"))
    if experiment == "inviscid":
        for quantity, tolerance in (
            ("energy", ENERGY_TOLERANCE),
            ("enstrophy", ENSTROPHY_TOLERANCE),
        ):
            series = run[quantity].values
            kept = float(series[-1] / series[0])
            checks.append(Check(name, f"{quantity} kept", kept, 1.0, tolerance, "fraction"))
    if experiment == "turbulence":
        for quantity in ("energy", "enstrophy"):
            series = run[quantity].values
            gain = max(0.0, float((series[1:] / series[:-1]).max()) - 1)
            checks.append(Check(name, f"{quantity} gain", gain, 0.0, GAIN_TOLERANCE, "per day"))
    return checks


def measured_phase_speed(run: xr.Dataset) -> float:
    """Zonal phase speed (m s-1) of the run's wave: the trend of its mode's phase in time."""
    grid = _grid(run)
    mode_x, mode_y = int(run.attrs["mode_x"]), int(run.attrs["mode_y"])
    amplitude = grid.to_spectrum(run["vorticity"].values)[:, mode_y, mode_x]
    # The coefficient goes as exp(-i k c t).
    slope = np.polynomial.Polynomial.fit(_seconds(run), np.unwrap(np.angle(amplitude)), 1)
    return float(-slope.convert().coef[1] / grid.k[0, mode_x])


def kinetic_energy(run: xr.Dataset) -> Field:
    """Mean eddy kinetic energy of each record, from its velocities, m2 s-2."""
    u, v = run["u"].astype(np.float64), run["v"].astype(np.float64)
    eddies = (u - u.mean(("y", "x"))) ** 2 + (v - v.mean(("y", "x"))) ** 2
    energy: Field = eddies.mean(("y", "x")).values / 2
    return energy


def _check_parseval(name: str, run: xr.Dataset) -> Check:
    last = run.isel(time=-1).astype(np.float64)
    u, v = last["u"] - last["u"].mean(), last["v"] - last["v"].mean()
    of_velocity = float((u**2 + v**2).mean()) / 2
    grid = _grid(run)
    of_spectrum = float(grid.energy_spectrum(grid.to_spectrum(last["vorticity"].values)).sum())
    tolerance = PARSEVAL_TOLERANCE * of_velocity
    return Check(name, "sum of spectrum", of_spectrum, of_velocity, tolerance, "m2 s-2")


def _theoretical_speed(run: xr.Dataset) -> float:
    return rossby_phase_speed(
        _grid(run),
        int(run.attrs["mode_x"]),
        int(run.attrs["mode_y"]),
        beta=float(run.attrs["beta"]),
        mean_flow=float(run.attrs["mean_flow"]),
    )


def _grid(run: xr.Dataset) -> Grid:
    return Grid(run.sizes["x"], float(run.attrs["length_m"]))


def _seconds(run: xr.Dataset) -> np.ndarray:
    elapsed = run.indexes["time"] - run.indexes["time"][0]
    return np.asarray(elapsed.total_seconds())


if __name__ == "__main__":
    sys.exit(main())
