"""What a run leaves on disk: history in CF netCDF and the state to restart from.

Every file appears whole or not at all: it is written under a temporary name in the same directory,
forced to disk and renamed. A run that is killed at any moment therefore leaves the history of its
finished segments and the restart file of the last one, and nothing half-written beside them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import h5netcdf  # type: ignore[import-untyped]
import numpy as np

from barotropic import DAY_S, Model, Parameters

RESTART = "restart.npz"
HISTORY_PATTERN = "history_*.nc"
TIME_UNITS = "days since 2000-01-01 00:00:00"
CALENDAR = "noleap"

# Variables of the history files: CF attributes by name.
FIELDS: Mapping[str, Mapping[str, str]] = {
    "u": {"standard_name": "eastward_wind", "units": "m s-1"},
    "v": {"standard_name": "northward_wind", "units": "m s-1"},
    "vorticity": {"standard_name": "atmosphere_upward_relative_vorticity", "units": "s-1"},
}
SCALARS: Mapping[str, Mapping[str, str]] = {
    "energy": {
        "long_name": "domain mean eddy kinetic energy per unit mass",
        "units": "m2 s-2",
        "cell_methods": "x: y: mean time: point",
    },
    "enstrophy": {
        "long_name": "domain mean enstrophy",
        "units": "s-2",
        "cell_methods": "x: y: mean time: point",
    },
    "cfl": {
        "long_name": "advective CFL number",
        "units": "1",
        "cell_methods": "x: y: maximum time: point",
    },
}

Identity = Mapping[str, str | int | float]
"""What distinguishes one run from another: attributes of its files, compared on restart."""


class RestartMismatchError(ValueError):
    """A restart file belongs to a run with other parameters. The message names them."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; on success put that file durably in the place of `path`.

    After an error `path` is as it was.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        _force_to_disk(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    _force_to_disk(path.parent)


def _force_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass
class History:
    """The records of one segment, in memory until `write` puts them into one netCDF file."""

    time_days: list[float] = field(default_factory=list)
    records: dict[str, list[np.ndarray]] = field(
        default_factory=lambda: {name: [] for name in (*FIELDS, *SCALARS)}
    )

    def append(self, model: Model) -> None:
        """Take a record of the model's present state."""
        u, v = model.velocity()
        values = {
            "u": u,
            "v": v,
            "vorticity": model.grid.to_grid(model.vorticity),
            "energy": model.energy(),
            "enstrophy": model.enstrophy(),
            "cfl": model.cfl(),
        }
        self.time_days.append(model.time_s / DAY_S)
        for name, value in values.items():
            dtype = np.float32 if name in FIELDS else np.float64
            self.records[name].append(np.asarray(value, dtype))

    def write(self, path: Path, model: Model, identity: Identity) -> None:
        """Write the records to a CF-1.8 netCDF file at `path`, atomically."""
        n = model.grid.n
        with replacing(path) as partial, h5netcdf.File(partial, "w") as file:
            file.attrs.update(_global_attributes(identity))
            file.dimensions = {"time": None, "y": n, "x": n}
            file.resize_dimension("time", len(self.time_days))
            time = file.create_variable("time", ("time",), data=np.array(self.time_days))
            time.attrs.update(
                {
                    "standard_name": "time",
                    "units": TIME_UNITS,
                    "calendar": CALENDAR,
                    "axis": "T",
                }
            )
            for axis in ("y", "x"):
                coordinate = file.create_variable(axis, (axis,), data=model.grid.x_m)
                coordinate.attrs.update(
                    {
                        "standard_name": f"projection_{axis}_coordinate",
                        "units": "m",
                        "axis": axis.upper(),
                    }
                )
            for name, attributes in FIELDS.items():
                data = np.stack(self.records[name])
                variable = file.create_variable(
                    name, ("time", "y", "x"), data=data, chunks=(1, n, n)
                )
                variable.attrs.update({**attributes, "cell_methods": "time: point"})
            for name, attributes in SCALARS.items():
                variable = file.create_variable(name, ("time",), data=np.array(self.records[name]))
                variable.attrs.update(attributes)


def _global_attributes(identity: Identity) -> dict[str, str | int | float]:
    return {
        "Conventions": "CF-1.8",
        "title": f"Barotropic vorticity on a beta-plane: {identity['experiment']}",
        "source": "barotropic.py: pseudo-spectral, 2/3 dealiased, RK4",
        "references": "Vallis (2017), McWilliams (1984, doi:10.1017/S0022112084001750)",
        **identity,
    }


def save_restart(path: Path, model: Model, identity: Identity) -> None:
    """Write what `load_restart` needs to continue this run bit for bit, atomically."""
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez(
            file,
            vorticity=model.vorticity,
            step=model.step_number,
            initial_energy=model.initial_energy,
            identity=json.dumps(dict(identity)),
        )


def load_restart(path: Path, parameters: Parameters, identity: Identity) -> Model:
    """The model as `save_restart` left it; `RestartMismatchError` if it was another run's."""
    with np.load(path, allow_pickle=False) as saved:
        theirs = json.loads(str(saved["identity"]))
        other = [
            f"{name} = {theirs.get(name)} (now {identity.get(name)})"
            for name in sorted({*theirs, *identity})
            if theirs.get(name) != identity.get(name)
        ]
        if other:
            raise RestartMismatchError(
                f"{path} belongs to a run with {', '.join(other)}: "
                "give the same parameters, or choose another --out"
            )
        return Model(
            parameters,
            saved["vorticity"],
            step=int(saved["step"]),
            initial_energy=float(saved["initial_energy"]),
        )
