"""Sites, Apps, BatchJobs and Sessions on the wire."""

from __future__ import annotations

import msgspec

from chappe.core.batchjobs import BatchJobIntent as BatchJobIntent
from chappe.core.batchjobs import StrictIntent as StrictIntent
from chappe.core.hidden import HidesToken
from chappe.core.parameters import Parameter
from chappe.core.shapes import Capacity
from chappe.wire.demand import Decision, Demand
from chappe.wire.logs import LogWish
from chappe.wire.sync import Number


class NewSite(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """`POST /v1/sites` by a user: a Site named `name` (letters, digits, `-`, `_`, `.`)."""

    id: str
    name: str


class NewSiteReply(HidesToken, msgspec.Struct, frozen=True):
    """The Site's id and its own token, shown this once."""

    id: str
    name: str
    project: str
    token: str


class SessionView(msgspec.Struct, frozen=True, omit_defaults=True):
    """A pilot's registration. `state` is live | silent | dead; times are seconds since 1970."""

    id: str
    site: str
    batch_job: str
    state: str
    heard_at: float
    held: int = 0
    capacity: Capacity | None = None
    hard_end_at: float | None = None


class SiteView(msgspec.Struct, frozen=True, omit_defaults=True):
    """A Site. `online` while its agent is heard; `waiting` counts Jobs that it could take. `key` is the
    public one (base64) that it signs with what functions return, "" while it has told none."""

    id: str
    name: str
    online: bool
    agent_seen_at: float | None = None
    agent_host: str = ""
    sessions: list[SessionView] = []
    waiting: int = 0
    running: int = 0
    key: str = ""


class AppView(msgspec.Struct, frozen=True, omit_defaults=True):
    """An App as a Site publishes it. `digest` is the sha256 of its definition."""

    name: str
    version: str
    digest: str
    description: str = ""
    parameters: dict[str, Parameter] = {}
    unsigned: bool = False
    own_directory: bool = True
    result: str | None = None
    allow_env: list[str] = []
    site: str = ""


class PublishApps(msgspec.Struct, frozen=True, omit_defaults=True):
    """`PUT /v1/sites/{id}/apps`: all Apps of the Site; what is missing is withdrawn. `key`: its public key
    (see SiteView); without one, what was told before stays."""

    apps: list[AppView]
    key: str = ""


class AgentHello(msgspec.Struct, frozen=True, omit_defaults=True):
    """`POST /v1/sites/{id}/agent`: an agent starts. `previous` is its own last agent id when it knows
    that that process is dead; without it a second agent is refused while the first is heard."""

    agent: str
    host: str
    previous: str | None = None


class BatchJobReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of a BatchJob. `state` is submitted | running | ended | failed | cancelled; the last
    three are positive proof that every process of the allocation is gone."""

    id: str
    state: str
    scheduler_id: str | None = None
    message: str = ""


class AgentSync(msgspec.Struct, frozen=True, omit_defaults=True):
    """`POST /v1/sites/{id}/sync`: the agent's long poll. `known` names the BatchJobs it has taken up,
    `sessions` those of its Sessions that may live, `seen` the highest (incarnation, commit_no) that it was
    shown, `logs_seen` the highest wish for a log that it has read. With `demand` it is told what waits when
    that has another mark; None: it does not want to know. `decisions` are about allocations."""

    agent: str
    reports: list[BatchJobReport] = []
    known: list[str] = []
    wait_s: float = 0.0
    sessions: list[str] = []
    seen: tuple[Number, Number] = (0, 0)
    logs_seen: int = 0
    demand: str | None = None
    decisions: list[Decision] = []


class BatchJobOrder(msgspec.Struct, frozen=True, omit_defaults=True):
    """Something to submit to the scheduler (`cancel` False) or to take back. `intent` is a BatchJobIntent, as
    it was asked for: an agent refuses the order whose wishes it does not all know, and takes the others."""

    id: str
    intent: msgspec.Raw
    cancel: bool = False


class AgentSyncReply(msgspec.Struct, frozen=True, omit_defaults=True):
    """Orders not yet in `known`, cancels, and Sessions that the Hub has not heard for its TTL; in `unknown`
    those that it does not know (any more: it was restored from a backup), to be registered again;
    in `logs` wishes to read (wire.logs); in `demand` what waits, when it changed; in `decided` the highest
    decision that the Hub has, None from a Hub that takes none."""

    incarnation: int
    ttl_s: float
    orders: list[BatchJobOrder] = []
    silent: list[str] = []
    accepted: list[str] = []
    unknown: list[str] = []
    commit_no: int = 0
    logs: list[LogWish] = []
    demand: Demand | None = None
    decided: int | None = None


class NewBatchJob(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """`POST /v1/batch-jobs`: by a user, or by the agent for its `keep` pilots."""

    id: str
    site: str
    intent: StrictIntent = StrictIntent()


class BatchJobView(msgspec.Struct, frozen=True, omit_defaults=True):
    """A BatchJob. `state` is requested | submitted | running | ended | failed | cancelled."""

    id: str
    site: str
    state: str
    intent: BatchJobIntent
    created_at: float
    scheduler_id: str | None = None
    message: str = ""
    session: str | None = None


class NewSession(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """`POST /v1/sessions` by the Site's token: the Session of one BatchJob. Repeating it with the same
    id gives a new token and revokes the old one."""

    id: str
    batch_job: str


class NewSessionReply(HidesToken, msgspec.Struct, frozen=True):
    """The Session's token, shown this once."""

    id: str
    token: str
    project: str
    site: str


class EndSession(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """`POST /v1/sessions/{id}/end`. A user must say `may_run_twice`: it overrides the rule that silence
    is not death."""

    may_run_twice: bool = False


class Listing(msgspec.Struct, frozen=True, omit_defaults=True):
    """Any small list of the things above (exactly one field is filled)."""

    sites: list[SiteView] | None = None
    apps: list[AppView] | None = None
    batch_jobs: list[BatchJobView] | None = None
    sessions: list[SessionView] | None = None


class NewToken(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """`POST /v1/tokens`: a further token of the same user. `expires_in_s` None: until revoked."""

    note: str = ""
    expires_in_s: float | None = None


class TokenView(HidesToken, msgspec.Struct, frozen=True, omit_defaults=True):
    """A token without its secret; `token` is filled only in the reply that made it. A user's token names its
    `user`; a service token has none, and the `role` that it was given; a producer's names that."""

    prefix: str
    scope: str
    created_at: float
    note: str = ""
    site: str | None = None
    session: str | None = None
    expires_at: float | None = None
    revoked_at: float | None = None
    token: str | None = None
    user: str | None = None
    role: str | None = None
    producer: str | None = None


class TokenList(msgspec.Struct, frozen=True):
    """Tokens of the project, without secrets: for owners all, for others their own."""

    tokens: list[TokenView]


class Whoami(msgspec.Struct, frozen=True, omit_defaults=True):
    """`GET /v1/whoami`: what the token may do, and the Hub's version and wire version.

    A user's token names its `user` (None: a service token) and the `role` in the project: viewer |
    operator | owner, None for an administrator who is no member of it.
    """

    scope: str
    project: str
    project_name: str
    version: str
    wire: int
    incarnation: int
    site: str | None = None
    session: str | None = None
    user: str | None = None
    role: str | None = None
    administrator: bool = False
