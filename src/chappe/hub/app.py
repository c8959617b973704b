"""The application: FastAPI, with the routes of the table and the document made from it."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as StarletteRoute

import chappe
from chappe.core.errors import ChappeError, NotFound
from chappe.hub import openapi
from chappe.hub.http import Endpoint, closing, error_content, has_body
from chappe.hub.state import Hub
from chappe.hub.table import ROUTES


class _NoSuchMethod(ChappeError):
    """The path is there, the method is not."""

    status = 405
    default_code = "method_not_allowed"


def create_app(hub: Hub) -> FastAPI:
    """The application over a Hub that is (or will be) started on the same event loop."""
    app = FastAPI(
        title="Chappe",
        version=chappe.__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        exception_handlers={HTTPException: _not_routed},
    )
    for route in ROUTES:
        endpoint = Endpoint(hub, route)
        app.router.routes.append(StarletteRoute(route.path, endpoint, methods=[route.method]))
    app.openapi = openapi_document  # type: ignore[method-assign]
    app.router.routes.append(StarletteRoute("/openapi.json", _openapi))
    return app


def openapi_document() -> dict[str, Any]:
    """The OpenAPI document. Starts nothing."""
    return openapi.document(ROUTES)


async def _openapi(_request: Request) -> Response:
    import msgspec

    return Response(msgspec.json.encode(openapi_document()), media_type="application/json")


async def _not_routed(request: Request, error: Exception) -> Response:
    """What no route answers, in the form of all other errors."""
    if isinstance(error, HTTPException) and error.status_code == 405:
        answer: ChappeError = _NoSuchMethod(f"{request.method} is not possible here")
    else:
        answer = NotFound("there is nothing at this address")
    content = error_content(answer, "other")
    if has_body(request.scope):
        content = closing(content)
    return Response(content.body, content.status, content.headers, content.media)
