"""Selections, what matches a filter at one moment, and acts on them."""

from __future__ import annotations

from typing import Literal

import msgspec

from chappe.wire.jobs import EnvelopeChange, JobFilter

Verb = Literal["cancel", "retry", "delete", "hold", "release", "update"]


class NewSelection(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """`POST /v1/selections`: freeze what matches now. The client makes the id, so that it may repeat this."""

    id: str
    filter: JobFilter


class SelectionView(msgspec.Struct, frozen=True, omit_defaults=True):
    """A frozen set of Jobs: `count` matched when it was made, and it will never hold others."""

    id: str
    filter: JobFilter
    count: int
    created_at: float
    expires_at: float


class NewAct(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """`POST /v1/acts`: act on a selection. The client makes the id, so that it may repeat this; an update
    brings the `change`."""

    id: str
    selection: str
    verb: Verb
    change: EnvelopeChange | None = None


class ActView(msgspec.Struct, frozen=True, omit_defaults=True):
    """How far an act has come: `done` of `total` Jobs, `counts` per verdict. `state` is running, done,
    stopped (by a user) or failed (`message` says why)."""

    id: str
    selection: str
    verb: str
    state: str
    total: int
    done: int
    counts: dict[str, int]
    created_at: float
    ended_at: float | None = None
    message: str = ""


class ActList(msgspec.Struct, frozen=True):
    """The project's acts, newest first."""

    acts: list[ActView]


class JobCount(msgspec.Struct, frozen=True):
    """How many Jobs match; when not `exact`, at least so many."""

    count: int
    exact: bool
