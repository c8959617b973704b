"""Jobs on the wire: `POST /v1/jobs`, lists, and acts on many Jobs."""

from __future__ import annotations

from typing import Any

import msgspec

from chappe.core.arrays import Task
from chappe.core.jobs import Envelope, JobSpec
from chappe.core.leases import Outcome
from chappe.wire.submission import Submission


class NewJob(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """One Job to create. `submission` is an index into the request's submissions, `idx` the place of the
    spec's hash in that statement; None means unsigned."""

    spec: msgspec.Raw
    envelope: Envelope = Envelope()
    submission: int | None = None
    idx: int = 0


class CreateJobs(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Up to 10 000 Jobs, created all or none. A whole graph may come in one request."""

    jobs: list[NewJob]
    submissions: list[Submission] = []


class JobVerdict(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """What became of one item. `code` is created | exists | cancelled | cancelling | retried | deleted |
    held | holding | released | updated | skipped | conflict | gone | not_found | not_final | finished |
    attempts | invalid."""

    id: str
    code: str
    message: str = ""
    field: str | None = None


class CreateReply(msgspec.Struct, frozen=True):
    """A verdict for each Job, in the order of the request. `cursor` is the feed's position before the
    Jobs' own Events: a reader that starts there misses nothing."""

    verdicts: list[JobVerdict]
    cursor: str


class JobView(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A Job as people and the SDK see it. Times are seconds since 1970."""

    id: str
    name: str
    state: str
    phase: str
    sites: list[str]
    created_at: float
    changed_at: float
    site: str | None = None
    app: str | None = None
    workdir: str = ""
    priority: int = 0
    epoch: int = 0
    attempt: int = 0
    max_attempts: int = 1
    session: str | None = None
    unreachable: bool = False
    cancel_at: float | None = None
    not_before: float | None = None
    held_at: float | None = None
    waiting_parents: int = 0
    outcome: Outcome | None = None
    tags: dict[str, str] = {}
    data: dict[str, Any] = {}
    spec: JobSpec | None = None
    signed: bool = False
    task: Task | None = None


class JobPage(msgspec.Struct, frozen=True, omit_defaults=True):
    """A page of Jobs, newest last; `next` is the cursor of the following page, None at the end."""

    jobs: list[JobView]
    next: str | None = None


class JobFilter(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Which Jobs: all conditions must hold. `ids` ≤ 10 000, full ids; `id_prefix` is a short id.

    `phase` is one of the six, or `open` for all that have not ended. `parent` gives the children of one Job;
    `name` matches the whole name. `held` says whether it is held and has not ended. `session` gives what a
    Session has now, `batch_job` what that of a BatchJob has. Times are seconds since 1970: from `…_since` on,
    and before `…_until`.
    """

    ids: list[str] | None = None
    id_prefix: str | None = None
    phase: str | None = None
    state: str | None = None
    site: str | None = None
    app: str | None = None
    name: str | None = None
    parent: str | None = None
    tags: dict[str, str] = {}
    name_prefix: str | None = None
    held: bool | None = None
    created_since: float | None = None
    created_until: float | None = None
    ended_since: float | None = None
    ended_until: float | None = None
    session: str | None = None
    batch_job: str | None = None


class QueryJobs(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """`POST /v1/jobs/query`: a filter too long for a URL."""

    filter: JobFilter
    limit: int = 100
    cursor: str | None = None


class EnvelopeChange(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What an update changes: `priority`; tags to set, and `untag`, the keys of tags to remove; and `data`,
    whose members replace those of the same names (null removes one)."""

    priority: int | None = None
    tags: dict[str, str] = {}
    untag: list[str] = []
    data: dict[str, Any] = {}


class ActOnJobs(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Act on Jobs by filter; an update brings the `change`. A retry beyond `max_attempts` or `not_after`
    brings new submissions: `signed` maps a Job's id to (index of the submission, idx of its spec's hash)."""

    filter: JobFilter
    submissions: list[Submission] = []
    signed: dict[str, tuple[int, int]] = {}
    change: EnvelopeChange | None = None


class ActReply(msgspec.Struct, frozen=True, omit_defaults=True):
    """Verdicts for named ids, in order; by filter, only counts per code (`counts` is always there)."""

    counts: dict[str, int]
    verdicts: list[JobVerdict] = []


class Counts(msgspec.Struct, frozen=True):
    """How many Jobs are in each (site, app, state); site "" means that none is chosen yet."""

    counts: list[tuple[str, str, str, int]]


class ParentView(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a pilot needs to know of a parent. `workdir` is relative to that Site's data directory and
    includes the directory of the last attempt when the App gives one to each; of a function, whose
    `environment` only the Site knows, always."""

    id: str
    name: str
    state: str
    site: str | None = None
    site_name: str | None = None
    workdir: str = ""
    app: str | None = None
    attempt: int = 0
    epoch: int = 0
    result_sha256: str | None = None
    media: str | None = None
    environment: str | None = None


class ParentPage(msgspec.Struct, frozen=True, omit_defaults=True):
    """`GET /v1/jobs/{id}/parents`, at most 1 000 a page."""

    parents: list[ParentView]
    next: str | None = None


class SignedSpec(msgspec.Struct, frozen=True):
    """`GET /v1/jobs/{id}/signed`: a Job's bytes, and the submission that signed them at place `idx`."""

    spec: msgspec.Raw
    submission: Submission
    idx: int


class Why(msgspec.Struct, frozen=True):
    """What a Job waits for, most important first; `facts` are the same for programs."""

    id: str
    state: str
    reasons: list[str]
    facts: dict[str, Any]
