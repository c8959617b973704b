"""The launchers that Chappe knows, by name."""

from __future__ import annotations

from chappe.core.errors import Invalid
from chappe.pilot.launchers import flux, hydra, jsrun, openmpi, pals, shells, srun
from chappe.pilot.launchers.base import Launcher

LAUNCHERS: dict[str, Launcher] = {
    launcher.name: launcher
    for launcher in (
        srun.LAUNCHER,
        openmpi.LAUNCHER,
        hydra.LAUNCHER,
        hydra.INTEL,
        pals.LAUNCHER,
        jsrun.LAUNCHER,
        flux.LAUNCHER,
        shells.PBSDSH,
        shells.SSH,
        shells.FORK,
    )
}


def named(name: str, field: str) -> Launcher:
    """The launcher of this name. Raises Invalid naming the `field` and the choices."""
    launcher = LAUNCHERS.get(name)
    if launcher is None:
        raise Invalid(
            f"there is no launcher {name!r}: it is one of auto, {', '.join(LAUNCHERS)}", field=field
        )
    return launcher
