"""One grant that the pilot holds, and how far it has come."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from enum import IntEnum
from math import inf
from typing import TYPE_CHECKING, Any

import msgspec

from chappe.core.errors import Invalid
from chappe.core.jobs import Resources, check_resources
from chappe.core.leases import Outcome, Reason
from chappe.core.shapes import gpu_parts
from chappe.link.journal import End
from chappe.link.signing import SignatureProblem, VerifiedSubmission
from chappe.pilot.nodes import Need
from chappe.pilot.placement import Slot
from chappe.wire.sync import Grant, HeldJob

if TYPE_CHECKING:
    from chappe.pilot.aftermath import After
    from chappe.pilot.launchers.base import Launcher


class Phase(IntEnum):
    """How far a holding has come."""

    NEW = 0
    FETCHING = 1
    WAITING = 2
    PREPARING = 3
    HANDED = 4
    RUNNING = 5
    ENDED = 6


class _Resources(Resources, frozen=True, omit_defaults=True, forbid_unknown_fields=False):
    """As a newer Hub may send them."""


class _Needs(msgspec.Struct, frozen=True):
    """The few fields of a spec that placing it takes; the whole is decoded, and checked, before its start."""

    resources: _Resources = _Resources()
    parents: tuple[str, ...] = ()
    takeover_s: float | None = None


KILL_GRACE_S = 10.0
"""From TERM to KILL at a Job's own limit."""

_PLAIN = _Resources()
_PLAIN_NEED = Need()
_needs = msgspec.json.Decoder(_Needs)


class Holding:
    """One grant. `need` is its room; it is expected to run for `time_s` (None: unknown), ends within
    `limit_s`, and is not begun with less than `least_s` left. `ending` is why it shall not go on, "" while
    it shall; `slot` its room on its nodes; `verified` what its submission was found to be; `result` the
    path of the file it is to leave; `after` what its end is judged by, if it is more than an exit status;
    `started_by` the launcher of its ranks; `parameters` those that its preprocess hook set, once it was
    `preprocessed`; `request_no` the request whose answer brought it."""

    __slots__ = (
        "after",
        "attempt",
        "claimed",
        "ending",
        "epoch",
        "estimate_s",
        "idx",
        "job",
        "least_s",
        "limit_s",
        "need",
        "needs_parents",
        "order",
        "orphan",
        "parameters",
        "parents_file",
        "phase",
        "preprocessed",
        "priority",
        "request_no",
        "result",
        "sent_at",
        "slot",
        "spec",
        "started_at",
        "started_by",
        "submission",
        "takeover_s",
        "time_s",
        "verified",
        "wire",
    )

    def __init__(self, grant: Grant, sent_at: float, order: int) -> None:
        self.job = grant.job
        self.epoch = grant.epoch
        self.attempt = grant.attempt
        self.priority = grant.priority
        self.request_no = 0
        self.spec = bytes(grant.spec)
        # Hundreds of grants name one submission: they share the text.
        self.submission = None if grant.submission is None else sys.intern(grant.submission)
        self.idx = grant.idx
        self.sent_at = sent_at
        self.order = order
        self.phase = Phase.NEW
        self.claimed = False
        self.orphan = False
        self.ending = ""
        self.started_at: float | None = None
        self.started_by: Launcher | None = None
        self.slot: Slot | None = None
        self.parents_file = ""
        self.result = ""
        self.after: After | None = None
        self.preprocessed = False
        self.parameters: Mapping[str, Any] = {}
        self.verified: VerifiedSubmission | SignatureProblem | None = None
        self.wire = HeldJob(grant.job, grant.epoch)
        try:
            needs = _needs.decode(self.spec)
            # Most Jobs keep the defaults, and two thousand may come in a second.
            self._take(None if needs.resources == _PLAIN else needs.resources)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, Invalid):
            needs = _Needs()  # it is refused, with words, when it is looked at before its start
            self._take(None)
        self.needs_parents = bool(needs.parents)
        self.takeover_s = needs.takeover_s

    def _take(self, r: Resources | None) -> None:
        """What it needs; None: as little as can be. Raises Invalid."""
        self.need, self.limit_s, self.least_s = _PLAIN_NEED, inf, 0.0
        self.estimate_s: float | None = None
        self.time_s: float | None = None
        if r is None:
            return
        check_resources(r)
        self.need = Need(r.node_cores, r.mem_bytes, gpu_parts(r.gpus), r.nodes, tag=r.node_tag)
        self.estimate_s, self.time_s = r.estimate_s, r.time_s
        self.limit_s = inf if r.wall_s is None else r.wall_s + KILL_GRACE_S
        self.least_s = r.time_s or (2 * r.warn_s if r.warn_s else 0.0)

    @property
    def key(self) -> tuple[str, int]:
        """(job, epoch)."""
        return (self.job, self.epoch)

    def claim(self) -> None:
        """Its ledger claim is written: from now on it counts as started."""
        self.claimed = True
        self.wire = HeldJob(self.job, self.epoch, started=True)

    def end(self, reason: Reason, at: float, message: str = "") -> End:
        """The report that it ended for a reason of ours."""
        return End(
            self.job,
            self.epoch,
            self.attempt,
            "end",
            at,
            Outcome(reason=reason, message=message),
            started_at=at if self.started_at is None else min(self.started_at, at),
            orphan=self.orphan,
        )

    def refusal(self, code: str, message: str, at: float) -> End:
        """The report that it will not be started."""
        outcome = Outcome(reason=Reason.REFUSED, message=message)
        return End(self.job, self.epoch, self.attempt, "refused", at, outcome, reason=code)
