"""The whole REST API under generated input, made from its own OpenAPI document.

Right and wrong requests alike: no answer is a failure of the Hub, each has a status and a form that the
document announces, and each error is one in words.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from chappe.hub.app import openapi_document
from chappe.hub.route import Route
from chappe.hub.table import ROUTES
from chappe.link.clock import new_id
from chappe.testing.hub import RunningHub, start_hub
from chappe.wire.events import ErrorReply
from tests.integration.hub_rig import raw

SCHEMA = schemathesis.openapi.from_dict(openapi_document())
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
# The stream has no end; tests/integration follows it.
TRIED = [route for route in ROUTES if route.path != "/v1/events/stream"]
# Schemathesis 4.32 rewrites `prefixItems` into what OpenAPI 3.1 does not know, and then says so.
TUPLES = {"/v1/jobs/counts"}
EXAMPLES = 15


class Scene:
    """A Hub of these tests' own, with one of everything that an id may name."""

    def __init__(self, hub: RunningHub) -> None:
        self.hub = hub
        self.site, self.batch_job, self.session, self.agent = (new_id() for _ in range(4))
        made = self.post("/v1/sites", hub.token, id=self.site, name="somewhere")
        self.post(f"/v1/sites/{self.site}/agent", made["token"], agent=self.agent, host="x")
        app = {"name": "nop", "version": "1", "digest": "0" * 64, "unsigned": True}
        path = f"/v1/sites/{self.site}/apps"
        apps = json.dumps({"apps": [app]}).encode()
        assert raw(hub, "PUT", path, made["token"], apps).status == 204
        self.post("/v1/batch-jobs", hub.token, id=self.batch_job, site=self.site)
        session = self.post(
            "/v1/sessions", made["token"], id=self.session, batch_job=self.batch_job
        )
        spec = {
            "id": new_id(),
            "project": hub.project,
            "sites": [self.site],
            "app": {"name": "nop"},
        }
        self.post("/v1/jobs", hub.token, jobs=[{"spec": spec}])
        self.ids = {
            "jobs": str(spec["id"]),
            "sites": self.site,
            "batch-jobs": self.batch_job,
            "sessions": self.session,
        }
        self.tokens = {"user": hub.token, "site": made["token"], "session": session["token"]}

    def post(self, path: str, token: str, **body: Any) -> Any:
        answer = raw(self.hub, "POST", path, token, json.dumps(body).encode())
        assert answer.status < 300, answer.body
        return json.loads(answer.body) if answer.body else None

    def token(self, route: Route) -> str:
        """The least token that a route takes."""
        if route.path == "/v1/logout":
            return str(self.post("/v1/tokens", self.hub.token)["token"])
        scopes = [s for s in ("session", "site", "user") if s in route.scopes]
        return self.tokens[scopes[0]] if scopes else ""


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with start_hub(tmp_path_factory.mktemp("fuzzed") / "hub") as hub:
        made = Scene(hub)
        yield made
        assert "unexpected error" not in hub.log


@pytest.mark.parametrize("route", TRIED, ids=lambda r: f"{r.method} {r.path}")
def test_any_request_has_an_announced_answer(scene: Scene, route: Route) -> None:
    operation = SCHEMA[route.path][route.method]
    cases = st.one_of(
        operation.as_strategy(generation_mode=schemathesis.GenerationMode.POSITIVE),
        operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE),
    )
    existing = scene.ids.get(route.path.split("/")[2] if "{id}" in route.path else "", "")
    checks = [c for c in CHECKS if c is not response_schema_conformance or route.path not in TUPLES]
    destroys = route.method == "DELETE" or route.path.endswith(("/end", "/token"))

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases, known=st.booleans())
    def attack(case: schemathesis.Case[Any], known: bool) -> None:
        if known and existing and not destroys:
            case.path_parameters = {**case.path_parameters, "id": existing}
        if isinstance(case.body, dict) and "wait_s" in case.body:
            case.body["wait_s"] = 0  # nobody waits here
        headers = {"authorization": f"Bearer {scene.token(route)}"}
        response = case.call(
            base_url=scene.hub.url, headers=headers, verify=scene.hub.ca_file, timeout=30
        )
        case.validate_response(response, checks=checks)
        if response.status_code >= 400:
            error = msgspec.json.decode(response.content, type=ErrorReply).error
            assert error.message
            assert error.code != "internal"
        elif route.signature.is_json:
            msgspec.json.decode(response.content, type=route.signature.reply)

    attack()
