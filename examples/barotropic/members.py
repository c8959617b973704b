"""The ensemble of the demonstration: twelve members at two sites. Plain data.

Decaying turbulence on an f-plane (beta = 0) ends in isolated vortices; on a beta-plane the same
random flows end in zonal jets. Beside it each site runs what theory can be checked with: a plane
Rossby wave (one drifts west, one is carried east by a mean flow) and a flow without viscosity.
One member steps three hours at a time, twice what the CFL limit allows, and blows up on day 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

SITES = ("paris", "toulouse")

F_PLANE = 0.0
BETA_45_NORTH = 1.6e-11  # m-1 s-1


@dataclass(frozen=True, slots=True)
class Member:
    """One member: its name, its site, the parameters of the App and the state it must end in."""

    name: str
    site: str
    parameters: Mapping[str, str | int | float]
    expected_state: str = "JOB_FINISHED"


def _turbulence(seed: int, site: str, beta: float) -> Member:
    return Member(
        f"turbulence-{seed:02d}", site, {"experiment": "turbulence", "seed": seed, "beta": beta}
    )


MEMBERS = (
    _turbulence(1, "paris", F_PLANE),
    _turbulence(2, "paris", F_PLANE),
    _turbulence(3, "paris", BETA_45_NORTH),
    _turbulence(4, "paris", BETA_45_NORTH),
    Member(
        "rossby-west",
        "paris",
        {"experiment": "rossby", "mode_x": 3, "mode_y": 2, "output_hours": 12.0},
    ),
    Member(
        "inviscid-01",
        "paris",
        {"experiment": "inviscid", "seed": 21, "beta": F_PLANE, "dt": 1200.0, "days": 20},
    ),
    Member(
        "turbulence-05",
        "toulouse",
        {"experiment": "turbulence", "seed": 5, "beta": F_PLANE, "dt": 10800.0},
        expected_state="FAILED",
    ),
    _turbulence(6, "toulouse", F_PLANE),
    _turbulence(7, "toulouse", BETA_45_NORTH),
    _turbulence(8, "toulouse", BETA_45_NORTH),
    Member(
        "rossby-east",
        "toulouse",
        {
            "experiment": "rossby",
            "mode_x": 4,
            "mode_y": 3,
            "mean_flow": 15.0,
            "output_hours": 12.0,
        },
    ),
    Member(
        "inviscid-02",
        "toulouse",
        {"experiment": "inviscid", "seed": 22, "beta": BETA_45_NORTH, "dt": 1200.0, "days": 20},
    ),
)
