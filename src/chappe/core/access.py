"""Who may do what, and how far: one table, and the one function that reads it.

A *party* is what a token is, seen from its project: it acts for somebody with a role there, for an
administrator of the hub, for a Site's agent, for the pilot of one Session, or for a producer of messages.
One token may be several parties. A *reach* is what an action finds: whatever lies beyond it looks as if it
had never existed.

An action is a route, `METHOD /path`. One that is missing here is for nobody, and the hub does not start
with it; an empty row is for everybody, without a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum, StrEnum


class Party(StrEnum):
    """What a token may be. The first three are roles in the token's project."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    OWNER = "owner"
    PERSON = "person"  # acts for a user of the hub, whatever the role; service tokens do not
    ADMINISTRATOR = "administrator"
    SITE = "site"
    SESSION = "session"
    PRODUCER = "producer"


class Reach(IntEnum):
    """How far an action sees: the token's own, its Session's, its Site's, its project's, everybody's."""

    OWN = 1
    SESSION = 2
    SITE = 3
    PROJECT = 4
    HUB = 5


Row = Mapping[Party, Reach]

ROLES = (Party.VIEWER, Party.OPERATOR, Party.OWNER)

_OPEN: Row = {}
_OWN = {Party.OWNER: Reach.PROJECT}
_OPERATE = {Party.OPERATOR: Reach.PROJECT, **_OWN}
_VIEW = {Party.VIEWER: Reach.PROJECT, **_OPERATE}
_ADMIN = {Party.ADMINISTRATOR: Reach.HUB}
_SELF = {Party.PERSON: Reach.OWN}
_ANY_ROLE = dict.fromkeys(ROLES, Reach.OWN)
_SITE = {Party.SITE: Reach.SITE}
_PILOT = {Party.SESSION: Reach.SESSION}
_PRODUCER = {Party.PRODUCER: Reach.OWN}
_AT_SITE = {Party.SITE: Reach.SITE, Party.SESSION: Reach.SITE}

RULES: Mapping[str, Row] = {
    # pilots
    "POST /v1/sync": _PILOT,
    "POST /v1/sync/wake": _PILOT,
    "POST /v1/results": _PILOT,
    "POST /v1/logs": _SITE | _PILOT,
    # jobs
    "POST /v1/jobs": _OPERATE,
    "GET /v1/jobs": _VIEW,
    "POST /v1/jobs/query": _VIEW,
    "GET /v1/jobs/counts": _VIEW,
    "POST /v1/jobs/results": _VIEW,
    "POST /v1/jobs/count": _VIEW,
    "POST /v1/jobs/cancel": _OPERATE,
    "POST /v1/jobs/retry": _OPERATE,
    "POST /v1/jobs/delete": _OPERATE,
    "POST /v1/jobs/hold": _OPERATE,
    "POST /v1/jobs/release": _OPERATE,
    "POST /v1/jobs/update": _OPERATE,
    "GET /v1/jobs/{id}": _VIEW | _PILOT,
    "GET /v1/jobs/{id}/events": _VIEW,
    "GET /v1/jobs/{id}/why": _VIEW,
    "GET /v1/jobs/{id}/logs": _VIEW,
    "GET /v1/jobs/{id}/signed": _VIEW,
    "GET /v1/jobs/{id}/parents": _VIEW | _PILOT,
    "GET /v1/jobs/{id}/result": _VIEW | _PILOT,
    "PUT /v1/jobs/{id}/result": _PILOT,
    # many jobs at once
    "POST /v1/selections": _OPERATE,
    "GET /v1/selections/{id}": _VIEW,
    "DELETE /v1/selections/{id}": _OPERATE,
    "POST /v1/acts": _OPERATE,
    "GET /v1/acts": _VIEW,
    "GET /v1/acts/{id}": _VIEW,
    "POST /v1/acts/{id}/stop": _OPERATE,
    "GET /v1/stats": _VIEW,
    # sites and their agents
    "GET /v1/sites": _VIEW | _AT_SITE,
    "POST /v1/sites": _OWN,
    "GET /v1/sites/{id}": _VIEW | _AT_SITE,
    "DELETE /v1/sites/{id}": _OWN,
    "POST /v1/sites/{id}/token": _OWN,
    "PUT /v1/sites/{id}/apps": _SITE,
    "POST /v1/sites/{id}/agent": _SITE,
    "POST /v1/sites/{id}/sync": _SITE,
    "GET /v1/sites/{id}/demand": _VIEW | _SITE,
    "GET /v1/apps": _VIEW | _AT_SITE,
    # allocations
    "GET /v1/batch-jobs": _VIEW | _SITE,
    "POST /v1/batch-jobs": _OPERATE | _SITE,
    "GET /v1/batch-jobs/{id}": _VIEW | _SITE,
    "POST /v1/batch-jobs/{id}/cancel": _OPERATE | _SITE,
    "GET /v1/sessions": _VIEW | _SITE,
    "POST /v1/sessions": _SITE,
    "POST /v1/sessions/{id}/end": _OPERATE | _SITE | _PILOT,
    # messages
    "POST /v1/messages": _OPERATE | _SITE | _PRODUCER,
    "GET /v1/messages": _VIEW,
    "GET /v1/messages/stats": _VIEW,
    "GET /v1/messages/streams": _VIEW,
    "POST /v1/messages/requeue": _OPERATE,
    "GET /v1/messages/{uid}": _VIEW,
    "GET /v1/quarantine": _VIEW,
    "GET /v1/quarantine/{n}": _VIEW,
    "GET /v1/producers": _VIEW,
    "POST /v1/producers": _OWN,
    "DELETE /v1/producers/{name}": _OWN,
    # the bus
    "GET /v1/bus/queues": _ADMIN,
    "GET /v1/bus/queues/{name}": _ADMIN,
    "POST /v1/bus/queues/{name}/replay": _ADMIN,
    "GET /v1/bus/dead": _OWN | _ADMIN,
    "POST /v1/bus/dead/revive": _OWN | _ADMIN,
    "POST /v1/bus/check": _ADMIN,
    # simulations
    "GET /v1/simulations": _VIEW,
    "GET /v1/simulations/{id}": _VIEW,
    "GET /v1/simulations/{id}/jobs": _VIEW,
    "GET /v1/simulations/{id}/periods": _VIEW,
    "GET /v1/simulations/{id}/commands": _VIEW,
    "GET /v1/simulations/{id}/actions": _VIEW,
    "GET /v1/simulations/{id}/card": _VIEW,
    "POST /v1/simulations/{id}/purge": _OPERATE,
    "POST /v1/messages/compare": _OWN,
    "GET /v1/metrics": _VIEW,
    # events
    "GET /v1/events": _VIEW,
    "GET /v1/events/stream": _VIEW,
    # tokens
    "GET /v1/tokens": _SELF | _ANY_ROLE | _OWN,
    "POST /v1/tokens": _SELF,
    "DELETE /v1/tokens/{prefix}": _SELF | _ANY_ROLE | _OWN,
    "POST /v1/tokens/service": _OWN,
    "GET /v1/whoami": _ANY_ROLE | _SELF | _AT_SITE,
    # logging in
    "POST /v1/login": _OPEN,
    "POST /v1/join": _OPEN,
    "POST /v1/logout": _ANY_ROLE | _SELF,
    "PUT /v1/password": _SELF,
    # users and projects
    "GET /v1/users": _ADMIN,
    "POST /v1/users": _ADMIN,
    "POST /v1/users/{name}/invite": _ADMIN,
    "POST /v1/users/{name}/disable": _ADMIN,
    "POST /v1/users/{name}/enable": _ADMIN,
    "GET /v1/projects": _ANY_ROLE | _SELF | _ADMIN,
    "POST /v1/projects": _ADMIN,
    "GET /v1/members": _VIEW | _ADMIN,
    "PUT /v1/members/{name}": _OWN | _ADMIN,
    "DELETE /v1/members/{name}": _OWN | _ADMIN,
    "GET /v1/audit": _OWN | _ADMIN,
    # the process
    "GET /healthz": _OPEN,
    "GET /readyz": _OPEN,
    "GET /metrics": _OPEN,
}


def reach(row: Row, parties: frozenset[Party]) -> Reach | None:
    """How far an action reaches for whoever is all of `parties`; None: it is not for them."""
    return max((row[party] for party in parties if party in row), default=None)
