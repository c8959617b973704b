"""The OpenAPI document, made from the table of routes and the types of their handlers."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import msgspec

import chappe
from chappe.core.batchjobs import BatchJobIntent
from chappe.core.errors import BY_STATUS
from chappe.core.jobs import JobSpec
from chappe.hub.route import Route, Signature
from chappe.wire.events import ErrorReply
from chappe.wire.submission import Statement

JSON = "application/json"
REF = "#/components/schemas/{name}"

#: Fields that travel verbatim (`msgspec.Raw`), and what their bytes must decode to.
RAW_FIELDS = {
    ("NewJob", "spec"): JobSpec,
    ("Grant", "spec"): JobSpec,
    ("SignedSpec", "spec"): JobSpec,
    ("Submission", "statement"): Statement,
    ("BatchJobOrder", "intent"): BatchJobIntent,
}

DESCRIPTION = """\
The hub's interface. Every request below `/v1` carries `Authorization: Bearer TOKEN`; a token's scope is
user, site (its agent), session (a pilot) or producer (of messages), and a user's has a role in its project:
viewer, operator or owner. `x-reach` says whom a route is for, and how far it sees for them: what is their
own, their session's, their site's, their project's, or the whole hub's. Errors have one form, `ErrorReply`;
where `transient` is true, the same request may be repeated."""


def document(routes: Iterable[Route]) -> dict[str, Any]:
    """The document of these routes (OpenAPI 3.1)."""
    routes = tuple(routes)
    signatures = [route.signature for route in routes]
    schemas, components = _schemas(signatures)
    paths: dict[str, dict[str, Any]] = {}
    for route, signature in zip(routes, signatures, strict=True):
        operation = _operation(route, signature, schemas)
        paths.setdefault(route.path, {})[route.method.lower()] = operation
    made = {
        "openapi": "3.1.0",
        "info": {"title": "Chappe", "version": chappe.__version__, "description": DESCRIPTION},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }
    # Defaults are Python's: what leaves here is as it will be in JSON.
    return msgspec.json.decode(msgspec.json.encode(made), type=dict[str, Any])


def _schemas(signatures: list[Signature]) -> tuple[dict[Any, Any], dict[str, Any]]:
    """Schemas by type, and the components they refer to."""
    wanted: list[Any] = [ErrorReply, *RAW_FIELDS.values()]
    for signature in signatures:
        if signature.body not in (None, bytes):
            wanted.append(signature.body)
        if signature.query is not None:
            wanted.append(signature.query)
        if signature.is_json:
            wanted.append(signature.reply)
    wanted = list(dict.fromkeys(wanted))
    found, components = msgspec.json.schema_components(wanted, ref_template=REF)
    schemas = dict(zip(wanted, found, strict=True))
    for (name, field), raw in RAW_FIELDS.items():
        components[name]["properties"][field] = schemas[raw]
    return schemas, components


def _operation(route: Route, signature: Signature, schemas: dict[Any, Any]) -> dict[str, Any]:
    words = inspect.getdoc(route.handler) or ""
    operation: dict[str, Any] = {
        "operationId": f"{route.handler.__module__.rsplit('.', 1)[1]}_{route.handler.__name__}",
        "summary": words.partition("\n")[0],
        "description": words,
        "tags": [_tag(route.path)],
        "parameters": [*_path_parameters(route), *_query_parameters(signature)],
        "responses": _responses(route, signature, schemas),
    }
    if route.scopes:
        operation["security"] = [{"token": []}]
        operation["x-scopes"] = sorted(route.scopes)
        operation["x-reach"] = {
            party.value: reach.name.lower() for party, reach in route.rule.items()
        }
    if signature.body is bytes:
        binary = {"schema": {"type": "string", "format": "binary"}}
        operation["requestBody"] = {
            "required": True,
            "content": dict.fromkeys(route.takes, binary),
        }
    elif signature.body is not None:
        content = {JSON: {"schema": schemas[signature.body]}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _tag(path: str) -> str:
    parts = path.strip("/").split("/")
    return parts[1] if parts[0] == "v1" else "process"


def _path_parameters(route: Route) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in route.parameters
    ]


def _query_parameters(signature: Signature) -> list[dict[str, Any]]:
    if signature.query is None:
        return []
    _, components = msgspec.json.schema_components([signature.query], ref_template=REF)
    schema = components[signature.query.__name__]
    required = set(schema.get("required", ()))
    return [
        {"name": name, "in": "query", "required": name in required, "schema": _without_null(field)}
        for name, field in schema["properties"].items()
    ]


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """In a URL a parameter is there or not; it cannot be null."""
    options: list[dict[str, Any]] = [s for s in schema.get("anyOf", ()) if s != {"type": "null"}]
    return options[0] if len(options) == 1 else schema


def _responses(
    route: Route, signature: Signature, schemas: dict[Any, Any]
) -> dict[str, dict[str, Any]]:
    responses: dict[str, dict[str, Any]] = {}
    if signature.is_json:
        content = {JSON: {"schema": schemas[signature.reply]}}
        responses[str(route.status)] = {"description": "Done.", "content": content}
    elif signature.reply is None:
        responses["204"] = {"description": "Done."}
    else:
        content = {route.media: {"schema": {"type": "string"}}}
        responses["200"] = {"description": "Done.", "content": content}
    error = {JSON: {"schema": schemas[ErrorReply]}}
    for status in error_statuses(route, signature):
        words = inspect.getdoc(BY_STATUS[status]) if status in BY_STATUS else "The hub failed."
        responses[str(status)] = {"description": words, "content": error}
    return responses


def error_statuses(route: Route, signature: Signature) -> list[int]:
    """The statuses of errors that a route may answer."""
    statuses = {429, 500, 503, *route.errors}
    if route.scopes:
        statuses |= {401, 403}
    if "session" in route.scopes:
        statuses.add(409)  # the pilot's Session is dead
    if route.parameters:
        statuses |= {404, 422}
    if signature.query is not None:
        statuses |= {413, 422}
    if signature.body is not None:
        statuses |= {404, 413, 422}
    return sorted(statuses)
