"""The table of rules: complete, and such that a wider role may do all that a narrower one may."""

from __future__ import annotations

import pytest

from chappe.core.access import ROLES, RULES, Party, Reach, reach
from chappe.hub.route import Route
from chappe.hub.routes import health
from chappe.hub.table import ROUTES


def test_every_route_has_a_row_and_every_row_a_route() -> None:
    assert {route.action for route in ROUTES} == set(RULES)


def test_a_route_without_a_row_cannot_be_made() -> None:
    with pytest.raises(KeyError, match="GET /v1/new has no row"):
        Route("GET", "/v1/new", health.healthz)


@pytest.mark.parametrize("action", RULES)
def test_a_wider_role_reaches_as_far_as_a_narrower_one(action: str) -> None:
    found = [RULES[action].get(role, 0) for role in ROLES]
    assert found == sorted(found)


# A second opinion on whom the dangerous actions are for, so that a slip in the table is seen.
OWNERS = {
    "POST /v1/sites",
    "DELETE /v1/sites/{id}",
    "POST /v1/sites/{id}/token",
    "POST /v1/tokens/service",
    "POST /v1/producers",
    "DELETE /v1/producers/{name}",
    "POST /v1/messages/compare",
}
ADMINISTRATORS = {
    "GET /v1/bus/queues",
    "GET /v1/bus/queues/{name}",
    "POST /v1/bus/queues/{name}/replay",
    "POST /v1/bus/check",
    "GET /v1/users",
    "POST /v1/users",
    "POST /v1/users/{name}/invite",
    "POST /v1/users/{name}/disable",
    "POST /v1/users/{name}/enable",
    "POST /v1/projects",
}
BOTH = {
    "PUT /v1/members/{name}",
    "DELETE /v1/members/{name}",
    "GET /v1/audit",
    "GET /v1/bus/dead",
    "POST /v1/bus/dead/revive",
}
SITES = {
    "PUT /v1/sites/{id}/apps",
    "POST /v1/sites/{id}/agent",
    "POST /v1/sites/{id}/sync",
    "POST /v1/sessions",
}


def for_only(*parties: Party) -> set[str]:
    return {action for action, row in RULES.items() if row.keys() == set(parties)}


def test_the_dangerous_actions_are_for_whom_they_are_for() -> None:
    assert for_only(Party.OWNER) == OWNERS
    assert for_only(Party.ADMINISTRATOR) == ADMINISTRATORS
    assert for_only(Party.OWNER, Party.ADMINISTRATOR) == BOTH
    assert for_only(Party.SITE) == SITES
    assert for_only(Party.PERSON) == {"POST /v1/tokens", "PUT /v1/password"}
    process = {"GET /healthz", "GET /readyz", "GET /metrics"}
    assert for_only() == process | {"POST /v1/login", "POST /v1/join"}


# A POST only because what it asks for is too long for a URL.
READS = {"POST /v1/jobs/query", "POST /v1/jobs/count", "POST /v1/jobs/results"}


@pytest.mark.parametrize("action", [a for a in RULES if a[:4] != "GET " and a not in READS])
def test_a_viewer_changes_nothing_but_what_is_its_own(action: str) -> None:
    assert RULES[action].get(Party.VIEWER, Reach.OWN) is Reach.OWN


def test_a_producer_may_send_messages_and_nothing_else() -> None:
    assert {a for a, row in RULES.items() if Party.PRODUCER in row} == {"POST /v1/messages"}


@pytest.mark.parametrize("action", RULES)
def test_sites_and_pilots_reach_no_further_than_their_site(action: str) -> None:
    assert RULES[action].get(Party.SITE, Reach.SITE) is Reach.SITE
    assert RULES[action].get(Party.SESSION, Reach.SESSION) <= Reach.SITE


@pytest.mark.parametrize("action", RULES)
def test_only_an_administrator_reaches_beyond_a_project(action: str) -> None:
    beyond = {party for party, far in RULES[action].items() if far is Reach.HUB}
    assert beyond <= {Party.ADMINISTRATOR}


def test_the_widest_of_several_parties_counts_and_nobody_is_let_in_by_chance() -> None:
    row = {Party.PERSON: Reach.OWN, Party.OWNER: Reach.PROJECT}
    assert reach(row, frozenset({Party.PERSON, Party.OWNER})) is Reach.PROJECT
    assert reach(row, frozenset({Party.PERSON, Party.VIEWER})) is Reach.OWN
    assert reach(row, frozenset({Party.VIEWER})) is None
    assert reach(row, frozenset()) is None
