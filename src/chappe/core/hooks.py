"""Hooks: what the Site's own code may decide about a Job before and after its run.

A hook says what it wants in a small file, its *verdict*: a state, data, parameters, a sentence. It gets only
what the table of states allows, and only what its place in the run makes sense of. One that fails, hangs or
writes nonsense has a *problem*; the Job then has a typed outcome all the same (see `core.leases`). Pure.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Final

import msgspec

from chappe.core.errors import Invalid
from chappe.core.states import State

VERDICT_BYTES: Final = 16 * 1024
DATA_BYTES: Final = 2 * 1024
MESSAGE_CHARS: Final = 500


class HookName(StrEnum):
    """When a hook runs: before the command, after its success, after its failure, after its time-out."""

    PREPROCESS = "preprocess"
    POSTPROCESS = "postprocess"
    ON_ERROR = "on_error"
    ON_TIMEOUT = "on_timeout"


_ANY: Final = frozenset({State.RESTART_READY, State.FAILED, State.JOB_FINISHED})

MAY_SET: Final[dict[HookName, frozenset[State]]] = {
    # Nothing has run yet: there is nothing to restart.
    HookName.PREPROCESS: _ANY - {State.RESTART_READY},
    HookName.POSTPROCESS: _ANY,
    HookName.ON_ERROR: _ANY,
    HookName.ON_TIMEOUT: _ANY,
}
"""The states that a hook may send its Job to; each is reached by legal steps from RUNNING."""


class HookVerdict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a hook wrote. Without a state the Job goes on as it would without the hook.

    `parameters` are for what runs next: the command after `preprocess`, the next attempt after a restart.
    `data` is merged into the Job's.
    """

    state: State | None = None
    parameters: dict[str, Any] = {}
    data: dict[str, Any] = {}
    message: str = ""


class HookReport(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """What a hook did, as it stands in the outcome of the attempt. `problem` says why it counts for nothing,
    "" if it does not."""

    name: HookName
    state: State | None = None
    message: str = ""
    problem: str = ""
    parameters: dict[str, Any] = {}
    data: dict[str, Any] = {}


def parse(name: HookName, raw: bytes | None) -> HookVerdict:
    """The verdict in the bytes that a hook left, None for no file. Raises Invalid, saying what is wrong."""
    if raw is None:
        return HookVerdict()
    if len(raw) > VERDICT_BYTES:
        raise Invalid(f"its verdict is longer than {VERDICT_BYTES} bytes", field="verdict")
    try:
        verdict = msgspec.json.decode(raw, type=HookVerdict)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise Invalid(f"its verdict is not understood: {e}", field="verdict") from None
    if verdict.state is not None and verdict.state not in MAY_SET[name]:
        allowed = ", ".join(sorted(MAY_SET[name]))
        raise Invalid(
            f"a {name} hook cannot set {verdict.state} (it can: {allowed})", field="state"
        )
    if verdict.parameters and not _has_next(name, verdict.state):
        raise Invalid(
            "its parameters are for nothing: no run of the job follows from this verdict",
            field="parameters",
        )
    if len(msgspec.json.encode(verdict.data)) > DATA_BYTES:
        raise Invalid(f"its data are larger than {DATA_BYTES} bytes", field="data")
    if len(msgspec.json.encode(verdict.parameters)) > DATA_BYTES:
        raise Invalid(f"its parameters are larger than {DATA_BYTES} bytes", field="parameters")
    return verdict


def _has_next(name: HookName, state: State | None) -> bool:
    if name is HookName.PREPROCESS:
        return state is None
    return state is State.RESTART_READY


def report(name: HookName, verdict: HookVerdict) -> HookReport:
    """What is told of a verdict that counts."""
    message = verdict.message[:MESSAGE_CHARS]
    return HookReport(name, verdict.state, message, "", verdict.parameters, verdict.data)


def useless(name: HookName, problem: str) -> HookReport:
    """What is told of a hook that counts for nothing."""
    return HookReport(name, problem=problem[:MESSAGE_CHARS])
