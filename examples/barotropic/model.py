"""Run one member: `python model.py --experiment turbulence --seed 1 --days 30 --out DIR`.

The run proceeds in segments of a few model days. Each ends with one history file and then a restart
file, both written atomically; a run that finds a restart file continues from it, and ends with the
same bits as one that was never interrupted. Standard output has one line per model day; report.py tells
more, to a hub.

Exit status: 0 done, 2 the arguments or the restart file do not fit, 3 the run blew up.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import asdict
from pathlib import Path

import report
from barotropic import (
    DAY_S,
    BlowUpError,
    Grid,
    Model,
    Parameters,
    Spectrum,
    random_vorticity,
    rossby_wave,
)
from output import (
    RESTART,
    History,
    Identity,
    load_restart,
    save_restart,
)

EXIT_USAGE = 2
EXIT_BLOW_UP = 3


def main(arguments: list[str] | None = None) -> int:
    """Run the member that the command line describes; return the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        _check(options)
        parameters = _parameters(options)
        identity = _identity(options, parameters)
        model = _start_or_resume(options, parameters, identity)
    except ValueError as error:
        print(f"model.py: {error}", file=sys.stderr)
        return EXIT_USAGE
    try:
        with report.simulation(model, identity, options.days) as told:
            _run(model, options, identity, told)
    except BlowUpError as error:
        print(f"model.py: {error}", file=sys.stderr)
        return EXIT_BLOW_UP
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="One member of a barotropic vorticity ensemble on a beta-plane.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add, defaults = parser.add_argument, Parameters()
    add(
        "--experiment",
        choices=("turbulence", "rossby", "inviscid"),
        default="turbulence",
        help="decaying turbulence, one Rossby wave, or turbulence without viscosity",
    )
    add("--n", type=int, default=defaults.n, help="grid points along each side")
    add("--length", type=float, default=defaults.length_m, help="side of the domain, m")
    add("--days", type=int, default=30, help="length of the run, days")
    add("--dt", type=float, default=defaults.dt_s, help="time step, s; divides a day")
    add("--seed", type=int, default=0, help="seed of the random initial flow")
    add("--beta", type=float, default=defaults.beta, help="Coriolis gradient, m-1 s-1")
    add("--mean-flow", type=float, default=defaults.mean_flow, help="zonal mean flow, m s-1")
    add("--rms-speed", type=float, default=10.0, help="initial rms velocity, m s-1")
    add("--mode-x", type=int, default=3, help="zonal mode of the Rossby wave")
    add("--mode-y", type=int, default=2, help="meridional mode of the Rossby wave")
    add(
        "--efold-hours",
        type=float,
        default=defaults.efold_h,
        help="hyperviscous damping time of the shortest waves, h (inviscid: none)",
    )
    add("--output-hours", type=float, default=24.0, help="time between records, h")
    add("--segment-days", type=int, default=5, help="days per history file and restart file")
    add("--out", type=Path, default=Path(), help="directory to write to")
    return parser


def _check(options: argparse.Namespace) -> None:
    """Refuse what would fail later with a less helpful message."""
    for name, value in vars(options).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"--{name.replace('_', '-')} must be a finite number, not {value}")
    if not (options.dt > 0 and (DAY_S / options.dt).is_integer()):
        raise ValueError(f"--dt {options.dt:g} s does not divide a day into whole steps")
    steps = options.output_hours * 3600 / options.dt
    if not (steps >= 1 and steps.is_integer()):
        raise ValueError(f"--output-hours {options.output_hours:g} is not a whole number of steps")
    for name in ("days", "segment_days"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1")
    if not options.out.is_dir():
        raise ValueError(f"--out {options.out} is not a directory")


def _parameters(options: argparse.Namespace) -> Parameters:
    return Parameters(
        n=options.n,
        length_m=options.length,
        dt_s=options.dt,
        beta=options.beta,
        mean_flow=options.mean_flow,
        efold_h=0.0 if options.experiment == "inviscid" else options.efold_hours,
    )


def _identity(options: argparse.Namespace, parameters: Parameters) -> Identity:
    if options.experiment == "rossby":
        initial = {"mode_x": options.mode_x, "mode_y": options.mode_y}
    else:
        initial = {"seed": options.seed}
    return {
        "experiment": options.experiment,
        **asdict(parameters),
        "rms_speed": options.rms_speed,
        **initial,
    }


def _start_or_resume(
    options: argparse.Namespace, parameters: Parameters, identity: Identity
) -> Model:
    restart = options.out / RESTART
    if restart.exists():
        model = load_restart(restart, parameters, identity)
        print(f"resuming from {restart} at day {model.time_s / DAY_S:g}", flush=True)
        return model
    return Model(parameters, _initial_vorticity(options, Grid(parameters.n, parameters.length_m)))


def _initial_vorticity(options: argparse.Namespace, grid: Grid) -> Spectrum:
    if options.experiment == "rossby":
        return rossby_wave(grid, options.mode_x, options.mode_y, rms_speed=options.rms_speed)
    return random_vorticity(grid, options.seed, rms_speed=options.rms_speed)


def _run(
    model: Model, options: argparse.Namespace, identity: Identity, told: report.Report
) -> None:
    day = round(model.time_s / DAY_S)
    while day < options.days:
        first, day = day, min(day + options.segment_days, options.days)
        history = History()
        if first == 0:
            _record(model, history, told)
        _run_segment(model, day, options, history, told)
        # The restart file comes last: a run killed between the two repeats the segment and
        # writes the same history file again.
        history.write(options.out / f"history_{first:04d}-{day:04d}.nc", model, identity)
        save_restart(options.out / RESTART, model, identity)
        told.segment(first, day)


def _record(model: Model, history: History, told: report.Report) -> None:
    history.append(model)
    told.record(model)


def _run_segment(
    model: Model, last_day: int, options: argparse.Namespace, history: History, told: report.Report
) -> None:
    steps_per_day = round(DAY_S / options.dt)
    steps_per_record = round(options.output_hours * 3600 / options.dt)
    while model.step_number < last_day * steps_per_day:
        model.step()
        if model.step_number % steps_per_record == 0:
            _record(model, history, told)
        if model.step_number % steps_per_day == 0:
            print(
                f"day {model.step_number // steps_per_day:3d}/{options.days}"
                f"  step {model.step_number:5d}"
                f"  energy {model.energy():.6e} m2 s-2"
                f"  enstrophy {model.enstrophy():.6e} s-2"
                f"  CFL {model.cfl():.3f}",
                flush=True,
            )


if __name__ == "__main__":
    sys.exit(main())
