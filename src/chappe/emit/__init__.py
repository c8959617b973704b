"""The producer: tells a hub what a simulation does, from Python, shell, C and Fortran.

What there is lies in one file that stands alone, `chappe_emit.py`; this package gives it its name here.
"""

from chappe.emit.chappe_emit import (
    Simulation,
    configure,
    flush,
    main,
    message,
    metric,
    new_uid,
    simulation,
)

__all__ = [
    "Simulation",
    "configure",
    "flush",
    "main",
    "message",
    "metric",
    "new_uid",
    "simulation",
]
