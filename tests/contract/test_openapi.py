"""The OpenAPI document against the table of routes, the wire types and the application."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from starlette.routing import Route as StarletteRoute

from chappe.core.errors import BY_STATUS
from chappe.hub.app import openapi_document
from chappe.hub.openapi import error_statuses
from chappe.hub.route import Route
from chappe.hub.table import ROUTES

BY_NAME = {f"{route.method} {route.path}": route for route in ROUTES}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return openapi_document()


@pytest.fixture(params=BY_NAME)
def route(request: pytest.FixtureRequest) -> Route:
    return BY_NAME[request.param]


def operation(document: dict[str, Any], route: Route) -> dict[str, Any]:
    found: dict[str, Any] = document["paths"][route.path][route.method.lower()]
    return found


def refs(node: Any) -> Iterator[str]:
    """All references in a part of the document."""
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from refs(value)
    elif isinstance(node, list):
        for value in node:
            yield from refs(value)


def test_it_is_json_and_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    assert json.loads(json.dumps(document)) == document
    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert set(refs(document)) <= known


def test_it_has_the_routes_and_no_others(document: dict[str, Any]) -> None:
    documented = {
        f"{method.upper()} {path}" for path, item in document["paths"].items() for method in item
    }
    assert documented == set(BY_NAME)


def test_the_application_serves_the_routes_and_no_others() -> None:
    from types import SimpleNamespace
    from typing import cast

    from chappe.hub.app import create_app
    from chappe.hub.state import Hub

    app = create_app(cast(Hub, SimpleNamespace()))
    served = {
        f"{method} {r.path}"
        for r in app.router.routes
        if isinstance(r, StarletteRoute)
        for method in (r.methods or set()) - {"HEAD"}
    }
    assert served == {*BY_NAME, "GET /openapi.json"}
    assert app.openapi() == openapi_document()


def test_operations_are_named_once(document: dict[str, Any]) -> None:
    names = [op["operationId"] for item in document["paths"].values() for op in item.values()]
    assert len(set(names)) == len(names)


def test_an_operation_says_what_it_does(document: dict[str, Any], route: Route) -> None:
    found = operation(document, route)
    assert found["summary"].endswith("."), "the handler's docstring begins with a sentence"
    assert found["description"].startswith(found["summary"])


def test_an_operation_says_who_may_call_it(document: dict[str, Any], route: Route) -> None:
    found = operation(document, route)
    if route.scopes:
        assert found["security"] == [{"token": []}]
        assert found["x-scopes"] == sorted(route.scopes)
        assert found["x-reach"] == {str(who): far.name.lower() for who, far in route.rule.items()}
    else:
        assert "security" not in found


def test_parameters_are_those_of_path_and_query(document: dict[str, Any], route: Route) -> None:
    found = {(p["in"], p["name"]): p for p in operation(document, route)["parameters"]}
    expected = {("path", name) for name in re.findall(r"{(\w+)}", route.path)}
    query = route.signature.query
    if query is not None:
        fields = {f.encode_name: f for f in msgspec.structs.fields(query)}
        expected |= {("query", name) for name in fields}
        for name, f in fields.items():
            assert found["query", name]["required"] is f.required
    assert set(found) == expected
    assert all(p["required"] for (where, _), p in found.items() if where == "path")


def test_the_body_is_the_type_that_is_decoded(document: dict[str, Any], route: Route) -> None:
    body = route.signature.body
    content = operation(document, route).get("requestBody", {}).get("content")
    if body is None:
        assert content is None
    elif body is bytes:
        assert tuple(content) == route.takes
    else:
        assert content["application/json"]["schema"] == {
            "$ref": f"#/components/schemas/{body.__name__}"
        }


def test_the_reply_is_the_type_that_is_encoded(document: dict[str, Any], route: Route) -> None:
    signature = route.signature
    responses = operation(document, route)["responses"]
    good = {status: r for status, r in responses.items() if status.startswith("2")}
    if signature.reply is None:
        assert list(good) == ["204"]
        assert "content" not in good["204"]
    elif signature.is_json:
        assert good[str(route.status)]["content"]["application/json"]["schema"] == {
            "$ref": f"#/components/schemas/{signature.reply.__name__}"
        }
    else:
        assert list(good["200"]["content"]) == [route.media]


def test_errors_have_the_one_form(document: dict[str, Any], route: Route) -> None:
    responses = operation(document, route)["responses"]
    errors = {int(s): r for s, r in responses.items() if not s.startswith("2")}
    assert sorted(errors) == error_statuses(route, route.signature)
    assert set(errors) <= {*BY_STATUS, 500}
    for response in errors.values():
        assert response["content"]["application/json"]["schema"] == {
            "$ref": "#/components/schemas/ErrorReply"
        }


def test_schemas_are_those_of_the_wire_types(document: dict[str, Any]) -> None:
    from chappe.wire.jobs import JobView, NewJob
    from chappe.wire.sync import Grant, SyncRequest

    schemas = document["components"]["schemas"]
    for struct in (JobView, NewJob, Grant, SyncRequest):
        fields = {f.encode_name for f in msgspec.structs.fields(struct)}
        assert set(schemas[struct.__name__]["properties"]) == fields


@pytest.mark.parametrize(
    ("name", "field", "raw"),
    [
        ("NewJob", "spec", "JobSpec"),
        ("Grant", "spec", "JobSpec"),
        ("Submission", "statement", "Statement"),
    ],
)
def test_signed_bytes_are_described_by_what_they_hold(
    document: dict[str, Any], name: str, field: str, raw: str
) -> None:
    schema = document["components"]["schemas"][name]["properties"][field]
    assert schema == {"$ref": f"#/components/schemas/{raw}"}
