"""From a grant to a task: everything that must be true, and exist, before a process may start.

In this order: the grant is admitted (signature, trust, App, parameters), its directory exists, its command
and environment are made, and last its start is claimed in the ledger. What fails before the claim has used
up nothing. Runs on the disk thread, a batch at a time; what several Jobs share is looked up once a batch.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from chappe.core.errors import ChappeError, Invalid
from chappe.core.faults import reach
from chappe.core.jobs import JobSpec
from chappe.core.leases import STARTED_BEFORE, Reason
from chappe.link import admission
from chappe.link.apps import LoadedApp
from chappe.link.changed import ChangedParameters
from chappe.link.files import NO_SPACE, PathEscape
from chappe.link.ledger import Claim, Ledger
from chappe.link.trust import TrustedKeys
from chappe.link.values import MISSING, left_at
from chappe.pilot.aftermath import After, Judged, judge
from chappe.pilot.holding import Holding
from chappe.pilot.launch_wire import Ended, Task
from chappe.pilot.outcomes import Failed, Order, Outcome, Postponed, Prepared, Refused
from chappe.pilot.ranks import Starter
from chappe.pilot.session import Session
from chappe.pilot.shelf import Codes, Shelf
from chappe.pilot.tasks import Tasks, after_of, parallel, result_stem, where
from chappe.wire.sync import Grant


class Preparer:
    """Prepares the Jobs of one Session, whose own `directory` keeps the code of functions."""

    def __init__(self, session: Session, directory: Path) -> None:
        site = Path(session.site_dir)
        self._codes = Codes(directory)
        self._starter = Starter(session)
        self._session = session
        self._data = session.data
        self._trusted = TrustedKeys(site / "trusted_keys")
        self._ledger = Ledger(site / "ledger")
        self._shelf = Shelf(site / "apps")
        self._changed = ChangedParameters(site / "changed")

    def prepare(self, orders: Sequence[Order], now: float) -> list[Outcome]:
        """What becomes of each order. `now` is in seconds since 1970."""
        try:
            batch = self._batch(now)
        except (ChappeError, OSError) as e:
            return [Postponed(order.holding, str(e)) for order in orders]
        return [batch.prepare(order) for order in orders]

    def examine(self, holding: Holding, now: float) -> Refused | None:
        """Whether `holding` will be refused, as far as that can be said now."""
        try:
            answer = self._batch(now).admit(holding)
        except (ChappeError, OSError):
            return None
        return answer if isinstance(answer, Refused) else None

    def claimed(self, job: str, attempt: int, request_no: int) -> bool:
        """Whether this start was claimed for the grant that the answer to this request brought. A grant
        that came again later is another one, whatever it says. Raises LedgerUnavailable."""
        owner = self._ledger.claimed(job, attempt)
        return (
            owner is not None
            and owner.session == self._session.session
            and owner.request == request_no
        )

    def recall(self, holding: Holding) -> None:
        """What the end of a Job found running is judged by: its result file, its hooks and the like."""
        try:
            spec = msgspec.json.decode(holding.spec, type=JobSpec)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return
        with suppress(Invalid):  # the launcher has another name since: then its words say nothing
            holding.started_by = self._starter.launcher(spec.resources)
        if spec.function is not None:
            holding.result = self._function_result(holding, spec, spec.function.environment)
            return
        loaded = self._shelf.current().get(spec.app.name) if spec.app is not None else None
        if loaded is None:
            return
        files = loaded.app.files
        cwd = f"{os.path.realpath(self._data)}/{where(spec, files, holding.attempt)}"
        if files.result is not None:
            holding.result = f"{cwd}/{files.result}"
        holding.after = after_of(self._session, holding, spec, loaded, cwd, spec.max_attempts)

    def _function_result(self, holding: Holding, spec: JobSpec, name: str) -> str:
        environment = self._session.functions.environment(name)
        if environment is None or not parallel(spec.resources):
            return MISSING
        return left_at(result_stem(self._session, holding, spec, environment.files))

    def judge(self, holding: Holding, ended: Ended, after: After) -> Judged:
        """What the end of a run means (see pilot.aftermath)."""
        return judge(holding, ended, after, self._changed)

    def _batch(self, now: float) -> _Batch:
        trusted = self._trusted.current()
        apps = self._shelf.current()
        return _Batch(
            self._session,
            self._ledger,
            apps,
            trusted,
            now,
            Tasks(self._session, self._codes, self._changed, self._starter),
        )


class _Batch:
    """What the Jobs of one batch share."""

    def __init__(
        self,
        session: Session,
        ledger: Ledger,
        apps: Mapping[str, LoadedApp],
        trusted: frozenset[str],
        now: float,
        tasks: Tasks,
    ) -> None:
        self._session = session
        self._ledger = ledger
        self._apps = apps
        self._trusted = trusted
        self._now = now
        self._tasks = tasks

    def admit(self, h: Holding) -> admission.Admitted | Refused:
        grant = Grant(h.job, h.epoch, h.attempt, msgspec.Raw(h.spec), h.submission, h.idx)
        answer = admission.admit(
            grant,
            h.verified,
            trusted=self._trusted,
            apps=self._apps,
            site=self._session.site,
            project=self._session.project,
            now=self._now,
            functions=self._session.functions,
        )
        if isinstance(answer, admission.Refusal):
            return Refused(h, answer.code, answer.message)
        return answer

    def prepare(self, order: Order) -> Outcome:
        h = order.holding
        answer = self.admit(h)
        if isinstance(answer, Refused):
            return answer
        try:
            task = self._tasks.make(order, answer)
        except PathEscape as e:
            return Refused(h, "bad_path", e.message)
        except Invalid as e:
            return Refused(h, "bad_parameters", e.message)
        except OSError as e:
            full = e.errno in NO_SPACE or e.errno == errno.EROFS
            return Failed(h, f"its directory cannot be made: {e}", full)
        return self._claim(h, task, answer.not_after)

    def _claim(self, h: Holding, task: Task, not_after: float | None) -> Outcome:
        if h.claimed:
            return Prepared(h, task)
        try:
            claim = self._ledger.claim(
                h.job, h.attempt, self._session.session, h.epoch, not_after, h.request_no
            )
        except ChappeError as e:
            return Postponed(h, e.message)
        reach("pilot.after_claim")
        if claim is Claim.OURS:
            # Our journal lost it, so nobody knows whether it ran: the attempt counts, and is over.
            message = "this pilot claimed its start before, and lost its trace"
            return Failed(h, message, reason=Reason.LAUNCHER_LOST)
        if claim is Claim.TAKEN:
            return Refused(
                h, STARTED_BEFORE, f"attempt {h.attempt} was started before at this site"
            )
        return Prepared(h, task)
