"""A place to attack: a Site on a Hub, plain requests to it, and its live feed as a naive reader sees it."""

from __future__ import annotations

import http.client
import json
import ssl
from typing import Any

import msgspec

from chappe.link.clock import new_id
from chappe.testing.hub import RunningHub
from chappe.wire.events import ErrorReply, Event
from tests.integration.hub_rig import WITHIN_S, Answer, raw


class Place:
    """A Site on the Hub, and plain requests to it."""

    def __init__(self, hub: RunningHub) -> None:
        self.hub = hub
        self.site, self.batch_job, self.session, self.agent = (new_id() for _ in range(4))
        made = self.ok("POST", "/v1/sites", id=self.site, name=f"p-{self.site}")
        self.token = str(made["token"])
        app = {"name": "nop", "version": "1", "digest": "0" * 64, "unsigned": True}
        any_text = {"text": {"type": "string"}, "list": {"type": "list"}}
        app["parameters"] = any_text
        self.ok("PUT", f"/v1/sites/{self.site}/apps", self.token, apps=[app])
        self.ok("POST", f"/v1/sites/{self.site}/agent", self.token, agent=self.agent, host="here")
        self.ok("POST", "/v1/batch-jobs", id=self.batch_job, site=self.site)

    def ask(self, method: str, path: str, body: Any = None, token: str | None = None) -> Answer:
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        return raw(self.hub, method, path, token or self.hub.token, data)

    def ok(self, method: str, path: str, token: str | None = None, **body: Any) -> Any:
        answer = self.ask(method, path, body if method != "GET" else None, token)
        assert answer.status < 300, answer.body
        return json.loads(answer.body) if answer.body else None

    def refused(
        self, method: str, path: str, body: Any, status: int | tuple[int, ...], field: str | None
    ) -> None:
        """It is refused, in the form of all errors, naming the field."""
        answer = self.ask(method, path, body)
        assert answer.status in (status if isinstance(status, tuple) else (status,)), answer
        assert answer.headers["content-type"] == "application/json"
        error = msgspec.json.decode(answer.body, type=ErrorReply).error
        assert error.message
        assert error.field == field, error
        assert not error.transient

    def spec(self, **fields: Any) -> dict[str, Any]:
        return {
            "id": new_id(),
            "project": self.hub.project,
            "sites": [self.site],
            "app": {"name": "nop"},
            **fields,
        }

    def create(self, envelope: dict[str, Any] | None = None, **fields: Any) -> Answer:
        job = {"spec": self.spec(**fields), "envelope": envelope or {}}
        return self.ask("POST", "/v1/jobs", {"jobs": [job]})


class Stream:
    """The live feed, read line by line by a reader who believes every line."""

    def __init__(self, hub: RunningHub) -> None:
        host, _, port = hub.url.removeprefix("https://").rpartition(":")
        context = ssl.create_default_context(cafile=hub.ca_file)
        self._connection = http.client.HTTPSConnection(
            host, int(port), timeout=WITHIN_S, context=context
        )
        auth = {"authorization": f"Bearer {hub.token}"}
        self._connection.request("GET", "/v1/events/stream", headers=auth)
        self._response = self._connection.getresponse()
        assert self._line() == ": ready"

    def until(self, state: str) -> list[Event]:
        """All Events up to the one that tells of this state; each is one id, one data line, one blank."""
        events: list[Event] = []
        while not events or events[-1].data.get("state") != state:
            line = self._line()
            if line.startswith(":") or not line:
                continue
            assert line.startswith("id: "), line
            data = self._line()
            assert data.startswith("data: "), data
            event = msgspec.json.decode(data.removeprefix("data: "), type=Event)
            assert line == f"id: {line[4:].split(':')[0]}:{event.seq}"
            assert self._line() == ""
            events.append(event)
        return events

    def _line(self) -> str:
        line = self._response.readline().decode().removesuffix("\n")
        assert "\r" not in line  # which ends a line as well
        return line

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self._response.close()
        self._connection.close()
