"""What waits for a Site, counted by Shape; and what its agent decided about allocations."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from chappe.core.shapes import Shape


class ShapeWaiting(msgspec.Struct, frozen=True, array_like=True):
    """So many Jobs of a Shape could begin now."""

    shape: Shape
    jobs: int


class PilotOffer(msgspec.Struct, frozen=True, omit_defaults=True):
    """A Session that has asked for work; what waits did not fit into it. `closed`: it takes none any more, or
    is not heard. The rest is what one of its nodes has."""

    session: str
    closed: bool = False
    cores: int = 0
    mem_bytes: int = 0
    gpus: float = 0


class Demand(msgspec.Struct, frozen=True, omit_defaults=True):
    """The Jobs that a Site could take now, by Shape, the most first; `left_off` are those of further Shapes.
    `pilots` are its live Sessions that have asked for work; `named_used` what is in use of countable things.
    `mark` changes with what matters for allocations, and not with every Job."""

    mark: str
    waiting: list[ShapeWaiting] = []
    left_off: int = 0
    pilots: list[PilotOffer] = []
    named_used: dict[str, int] = {}


class Decision(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an agent decided about allocations, and from what. Becomes an Event, once: `no` rises."""

    no: Annotated[int, msgspec.Meta(ge=0, le=2**53)]
    at: float
    data: dict[str, Any] = {}
