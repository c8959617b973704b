"""What both faces' Jobs and Apps share: identity, the last known state, and drafting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self, Unpack

from chappe.core.leases import Outcome
from chappe.core.states import FINAL_PHASES
from chappe.sdk.drafts import Draft, Options, Template, parameters_of
from chappe.sdk.feed import Ended, Position
from chappe.wire.jobs import JobView

_OK = "finished"


class JobHandle:
    """A Job by its id, and what was last heard of it. Reading these attributes sends nothing."""

    __slots__ = ("_since", "attempt", "function", "id", "name", "outcome", "phase", "state")

    def __init__(
        self, id: str, name: str = "", since: Position | None = None, function: bool = False
    ) -> None:
        self.id = id
        self.name = name
        #: Last known; CREATED until the Job is read or waited for.
        self.state = "CREATED"
        #: waiting, runnable, running, finished, failed or cancelled (last known).
        self.phase = "waiting"
        #: How often it was started (last known).
        self.attempt = 0
        #: How its last attempt ended; None before that.
        self.outcome: Outcome | None = None
        #: Whether it calls a Python function, so that its result must be sealed by its Site.
        self.function = function
        # Where its Events begin, until the Job is read or waited for.
        self._since = since

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name or 'unnamed'} {self.id} {self.state}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, JobHandle) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    @property
    def done(self) -> bool:
        """Whether it is known to have ended, in whatever way."""
        return self.phase in FINAL_PHASES

    @property
    def ok(self) -> bool:
        """Whether it is known to have succeeded."""
        return self.phase == _OK

    def _learn(self, news: JobView | Ended) -> None:
        self.state, self.phase = news.state, news.phase
        self.attempt, self.outcome = news.attempt, news.outcome
        self._since = None
        view = news if isinstance(news, JobView) else news.view
        if view is not None:
            self.name = view.name
            # What we know ourselves the Hub cannot talk us out of.
            if view.spec is not None and view.spec.function is not None:
                self.function = True

    @property
    def _has_result(self) -> bool:
        """Whether it left a result; of a function that failed, what it raised."""
        return self.outcome is not None and bool(self.outcome.result_sha256)


class AppHandle:
    """An App at one Site or several: call it with parameters to draft a Job, `submit` or `map` to run.

    Keywords are always the App's parameters; everything else about a Job is said by `options`.
    """

    def __init__(self, template: Template) -> None:
        self._template = template

    @property
    def name(self) -> str:
        """The App's name."""
        app = self._template.app
        return app.name if app is not None else ""

    @property
    def sites(self) -> tuple[str, ...]:
        """The Sites that may run its Jobs, as they were given."""
        return self._template.sites

    def options(self, **options: Unpack[Options]) -> Self:
        """The same App with other options (see Options: name, cores, parents, tags, retries …)."""
        changed = object.__new__(type(self))
        changed.__dict__.update(self.__dict__)
        changed._template = self._template.with_options(options)
        return changed

    def __call__(self, parameters: Mapping[str, Any] | None = None, /, **named: Any) -> Draft:
        """A draft of one Job: it has its id, and is not sent yet."""
        return Draft(self._template, parameters_of(parameters, named))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} at {', '.join(self.sites)}>"
