"""What a running Hub answers, against the schemas that its document promises."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Generator
from typing import Any

import jsonschema_rs
import msgspec
import pytest

from chappe.core.jobs import Envelope
from chappe.hub.app import openapi_document
from chappe.hub.table import ROUTES
from chappe.link.clock import new_id
from chappe.testing.hub import RunningHub, start_hub
from chappe.wire.bulk import NewAct, NewSelection
from chappe.wire.bus import Replay
from chappe.wire.jobs import ActOnJobs, EnvelopeChange, JobFilter, QueryJobs
from chappe.wire.messages import Compare, NewProducer, Requeue
from chappe.wire.people import NewInvitation, NewProject, NewServiceToken, NewUser, SetMember
from chappe.wire.results import AskResults
from chappe.wire.sites import AgentSync, NewSite, NewToken
from tests.integration.hub_rig import World, raw, world

DIALECT = "https://json-schema.org/draft/2020-12/schema"


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return openapi_document()


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def hub(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Generator[RunningHub, None, None]:
    """A Hub on each database."""
    options = {}
    if request.param == "postgresql":
        options["db"] = request.getfixturevalue("postgres").database()
    running = start_hub(tmp_path_factory.mktemp("contract") / "hub", **options)
    yield running
    running.stop()


def validator(document: dict[str, Any], schema: dict[str, Any]) -> jsonschema_rs.Validator:
    whole = {**schema, "$schema": DIALECT, "components": document["components"]}
    return jsonschema_rs.validator_for(whole)


def test_the_schemas_are_json_schema(document: dict[str, Any]) -> None:
    for schema in document["components"]["schemas"].values():
        jsonschema_rs.meta.validate({**schema, "$schema": DIALECT})


def test_the_hub_serves_the_document(hub: RunningHub, document: dict[str, Any]) -> None:
    assert json.loads(raw(hub, "GET", "/openapi.json").body) == document


def check(document: dict[str, Any], method: str, path: str, status: int, body: bytes) -> None:
    """An answer is one of those that the document knows for the operation."""
    response = document["paths"][path][method.lower()]["responses"][str(status)]
    if status == 204:
        assert body == b""
        return
    schema = response["content"]["application/json"]["schema"]
    validator(document, schema).validate(json.loads(body))


Caller = Callable[..., Awaitable[bytes]]


async def messages(call: Caller, w: World) -> None:
    """What has to do with messages and simulations."""
    await call("POST", "/v1/producers", NewProducer(f"producer-{w.site_id}"))
    await call("GET", "/v1/producers")
    told = {"msgUID": new_id(), "msgType": "log", "msgStream": "f", "msgSeq": 1}
    await call("POST", "/v1/messages", json.dumps([told, {"x": 1}]).encode())
    await call("GET", "/v1/bus/queues/{name}", name="hub-check")
    await call("POST", "/v1/bus/queues/{name}/replay", Replay(0), name="hub-check")
    await call("GET", "/v1/metrics?simulation=x")
    begun = {"msgUID": new_id(), "msgType": "simulation.started", "simuid": new_id(), "card": "x"}
    card = {
        "msgUID": new_id(),
        "msgType": "simulation.card",
        "simuid": begun["simuid"],
        "card": "x",
    }
    await call("POST", "/v1/messages", json.dumps([begun, card]).encode())
    await call("GET", "/v1/simulations")
    for path in ("", "/jobs", "/periods", "/commands", "/actions", "/card"):
        await call("GET", "/v1/simulations/{id}" + path, id=begun["simuid"])
    for path in ("/v1/messages", "/v1/messages/stats", "/v1/messages/streams"):
        await call("GET", path)
    await call("GET", "/v1/messages/{uid}", uid=str(told["msgUID"]))
    bad = json.loads(await call("GET", "/v1/quarantine"))["quarantined"][0]
    await call("GET", "/v1/quarantine/{n}", n=str(bad["n"]))
    await call("POST", "/v1/messages/requeue", Requeue())
    await call("POST", "/v1/messages/compare", Compare(correct=True))


async def replies(w: World) -> list[tuple[str, str, int, bytes]]:
    """(method, path of the table, status, body) of requests that have something to answer."""
    found: list[tuple[str, str, int, bytes]] = []

    async def call(
        method: str, path: str, body: Any = None, client: Any = None, **ids: str
    ) -> bytes:
        real = path.format(**ids)
        answer = await (client or w.user).fetch(method, real, body)
        found.append((method, path.partition("?")[0], answer.status, answer.data))
        return bytes(answer.data)

    pilot = await w.pilot()
    envelope = Envelope(tags={"a": "b"}, data={"x": [1, None]})
    (parent,) = await w.create(1, envelope=envelope, parameters={})
    (child,) = await w.create(1, parents=[parent])
    await call("POST", "/v1/jobs", w.jobs(2))
    sync = msgspec.json.decode(await call("POST", "/v1/sync", pilot.request(slots=1), pilot.client))
    assert sync["grants"]
    for path in ("/v1/jobs", "/v1/jobs/counts", "/v1/sites", "/v1/apps", "/v1/batch-jobs"):
        await call("GET", path)
    for path in ("/v1/sessions", "/v1/events", "/v1/tokens", "/v1/projects", "/v1/whoami"):
        await call("GET", path)
    for path in ("/v1/users", "/v1/members", "/v1/audit", "/v1/bus/queues", "/v1/bus/dead"):
        await call("GET", path)
    for path in ("", "/events", "/why", "/parents"):
        await call("GET", "/v1/jobs/{id}" + path, id=child)
    await call("GET", "/v1/sites/{id}", id=w.site_id)
    await call("GET", "/v1/sites/{id}/demand", id=w.site_id)
    await call("POST", "/v1/jobs/query", QueryJobs(JobFilter()))
    await call("POST", "/v1/jobs/results", AskResults([child]))
    await call("POST", "/v1/jobs/count", JobFilter(tags={"a": "b"}))
    for act in ("cancel", "retry", "delete"):
        await call("POST", f"/v1/jobs/{act}", ActOnJobs(JobFilter(ids=[child])))
    for act in ("hold", "release", "update"):
        change = EnvelopeChange(priority=1)
        await call("POST", f"/v1/jobs/{act}", ActOnJobs(JobFilter(ids=[parent]), change=change))
    selection = NewSelection(new_id(), JobFilter(app="nop"))
    await call("POST", "/v1/selections", selection)
    await call("GET", "/v1/selections/{id}", id=selection.id)
    new = NewAct(new_id(), selection.id, "hold")
    await call("POST", "/v1/acts", new)
    await call("GET", "/v1/acts/{id}", id=new.id)
    await call("GET", "/v1/acts")
    await call("GET", "/v1/stats")
    await call("POST", "/v1/acts/{id}/stop", id=new.id)
    await call("POST", "/v1/tokens", NewToken("contract", 60.0))
    await call("POST", "/v1/tokens/service", NewServiceToken("viewer"))
    await call("POST", "/v1/users", NewUser(f"u-{w.site_id}"))
    await call("POST", "/v1/users/{name}/invite", NewInvitation(), name=f"u-{w.site_id}")
    await call("POST", "/v1/projects", NewProject(new_id(), f"p-{w.site_id}"))
    await call("PUT", "/v1/members/{name}", SetMember("viewer"), name=f"u-{w.site_id}")
    await call("POST", "/v1/sites", NewSite(new_id(), f"contract-{w.site_id}"))
    await messages(call, w)
    agent = AgentSync(w.agent)
    await call("POST", "/v1/sites/{id}/sync", agent, w.site, id=w.site_id)
    await call("POST", "/v1/sync/wake", None, pilot.client)
    return found


async def test_replies_are_what_the_document_promises(
    hub: RunningHub, document: dict[str, Any]
) -> None:
    async with world(hub) as w:
        answers = await replies(w)
    for method, path, status, body in answers:
        check(document, method, path, status, body)
    seen = {(method, path) for method, path, _, _ in answers}
    reads = {(r.method, r.path) for r in ROUTES if r.method == "GET" and r.signature.is_json}
    # The first shows what the list shows; tests/integration has the others, with a signature and a pilot.
    assert reads - seen == {
        ("GET", "/v1/batch-jobs/{id}"),
        ("GET", "/v1/jobs/{id}/signed"),
        ("GET", "/v1/jobs/{id}/logs"),
    }


@pytest.mark.parametrize(
    ("method", "path", "token", "body", "status"),
    [
        ("GET", "/v1/jobs/{id}", True, None, 404),
        ("GET", "/v1/jobs/{id}", False, None, 401),
        ("POST", "/v1/sync", True, b"{}", 403),
        ("POST", "/v1/jobs", True, b'{"jobs": [{"spec": {"id": "x"}}]}', 422),
        ("POST", "/v1/jobs", True, b"{", 422),
    ],
)
def test_errors_are_what_the_document_promises(
    hub: RunningHub,
    document: dict[str, Any],
    method: str,
    path: str,
    token: bool,
    body: bytes | None,
    status: int,
) -> None:
    answer = raw(hub, method, path.format(id=new_id()), hub.token if token else None, body)
    assert answer.status == status
    check(document, method, path, status, answer.body)
