"""Taps a hub's wire: what was asked and answered, one JSON object a line, in the order of the answers.

Loaded into the hub's process by `record_wire`. Tokens are replaced by the number of the exchange that made
them, so that whoever replays the exchanges can put his own in their place.
"""

from __future__ import annotations

import base64
import itertools
import json
import time
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

OWNER = "owner"
UNWATCHED = ("/healthz", "/readyz", "/metrics", "/openapi.json", "/v1/events/stream")


def install(path: Path) -> None:
    """Have the application that the hub makes write to `path`."""
    from chappe.hub import app

    made = app.create_app
    app.create_app = lambda hub: Tap(made(hub), path)  # type: ignore[assignment,return-value]


def body_of(data: bytes) -> Any:
    """A body as it is kept: JSON as text (signed bytes must stay as they are), else base64."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}


def bytes_of(body: Any) -> bytes:
    """The bytes of a kept body."""
    return base64.b64decode(body["base64"]) if isinstance(body, dict) else str(body).encode()


class Tap:
    """The application, with a record of what passes."""

    def __init__(self, app: ASGIApp, path: Path) -> None:
        self._app = app
        self._file = path.open("a", encoding="utf-8", buffering=1)
        self._numbers = itertools.count()
        self._tokens: dict[str, str] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on."""
        if scope["type"] != "http" or scope["path"] in UNWATCHED:
            await self._app(scope, receive, send)
            return
        asked, answered, head = bytearray(), bytearray(), dict[str, Any]()

        async def hear() -> Message:
            message = await receive()
            asked.extend(message.get("body", b""))
            return message

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                head.update(message)
            answered.extend(message.get("body", b""))
            await send(message)

        await self._app(scope, hear, tell)
        self._write(scope, bytes(asked), head, bytes(answered))

    def _write(self, scope: Scope, asked: bytes, head: dict[str, Any], answered: bytes) -> None:
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        token = headers.get("authorization", "").removeprefix("Bearer ")
        number = next(self._numbers)
        reply = self._without_token(number, answered)
        query = scope["query_string"].decode()
        line = {
            "no": number,
            "at": time.time(),
            "as": self._tokens.get(token, OWNER) if token else "",
            "method": scope["method"],
            "path": scope["path"] + (f"?{query}" if query else ""),
            "media": headers.get("content-type", ""),
            "request": body_of(asked),
            "status": head.get("status", 0),
            "reply": reply,
        }
        self._file.write(json.dumps(line) + "\n")

    def _without_token(self, number: int, answered: bytes) -> Any:
        kept = body_of(answered)
        try:
            found = json.loads(answered)
        except ValueError:
            return kept
        if not isinstance(found, dict) or not found.get("token"):
            return kept
        self._tokens[found["token"]] = f"token of {number}"
        return json.dumps(found | {"token": "not recorded"})
